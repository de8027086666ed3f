"""Emits that the client has no room for: they wait, go in batches, and each has its outcome."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from brokers.kafka import Kafka
from brokers.kafka_access import KafkaAccess
from dispytch import (
    EmitRejected,
    EmitUnknown,
    EventBase,
    EventEmitter,
    Outgoing,
    ProducerTimeout,
    Receipt,
)
from dispytch_kafka import KafkaConnection, KafkaEventConfig, KafkaProducer

pytest.importorskip("aiokafka")
pytestmark = pytest.mark.kafka

FEW = "max_batch_bytes=2000"
"""Room for some ten events."""


class Numbered(EventBase):
    __topic__ = "{topic}"
    __event_type__ = "numbered"
    __key__ = "{lane}"

    topic: str
    number: int
    lane: int = 0


@pytest.fixture
async def emitter(kafka_broker: KafkaAccess) -> AsyncIterator[EventEmitter]:
    url = f"kafka://{kafka_broker.bootstrap}?{FEW}"
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        yield emitter


def begun(
    emitter: EventEmitter, topic: str, count: int, **configs: Any
) -> list[asyncio.Task[Receipt]]:
    """So many emits, all at once, over ten keys; `at_7=config` gives the seventh a config."""
    return [
        asyncio.create_task(
            emitter.emit(
                Numbered(topic=topic, number=number, lane=number % 10),
                config=configs.get(f"at_{number}"),
            )
        )
        for number in range(count)
    ]


def numbers(kafka: KafkaAccess, topic: str, count: int) -> list[int]:
    records = kafka.read_all(topic, count)
    return [json.loads(record.value or b"")["body"]["number"] for record in records]


async def waiting(emitter: EventEmitter, topic: str) -> list[asyncio.Task[Receipt]]:
    """A hundred emits; the client has had no room for the last of them."""
    await emitter.emit(Numbered(topic=topic, number=-1))
    emits = begun(emitter, topic, 100)
    await asyncio.sleep(0)  # each runs until it waits
    producer: Any = emitter.producer
    assert (topic, 0) in producer._singles._lanes
    return emits


@pytest.mark.parametrize("options", [FEW, f"{FEW}&linger_ms=20", f"{FEW}&idempotent=false"])
async def test_more_than_the_client_has_room_for_arrive_in_order(
    kafka_broker: KafkaAccess, topic: str, options: str
) -> None:
    """In the order in which they were emitted, and each receipt tells where its event is."""
    url = f"kafka://{kafka_broker.bootstrap}?{options}"
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        receipts = await asyncio.gather(*begun(emitter, topic, 500))
        last = await emitter.emit(Numbered(topic=topic, number=500))
    assert numbers(kafka_broker, topic, 501) == list(range(501))
    assert [receipt.details["offset"] for receipt in receipts] == list(range(500))
    assert last.details["offset"] == 500


async def test_ten_thousand_at_once_cost_a_few_times_a_batch(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """Those who wait are not woken again and again, which alone would cost more than all else."""
    kafka_broker.create_topic(unique_name, 4)
    url = f"kafka://{kafka_broker.bootstrap}"
    async with EventEmitter.from_url(url) as emitter:
        events = [Numbered(topic=unique_name, number=n, lane=n) for n in range(10_000)]
        await emitter.emit_many(events)
        began = time.process_time()
        await emitter.emit_many(events)
        together = time.process_time() - began
        began = time.process_time()
        await asyncio.gather(*map(emitter.emit, events))
        single = time.process_time() - began
    assert single < 5 * together


async def test_what_is_cancelled_while_it_waits_is_not_sent(
    kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
) -> None:
    """It is taken out; the others arrive."""
    emits = await waiting(emitter, topic)
    for emit in emits[50::2]:
        emit.cancel()
    outcomes = await asyncio.gather(*emits, return_exceptions=True)
    kept = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Receipt)]
    assert kept == [*range(50), *range(51, 100, 2)]
    assert numbers(kafka_broker, topic, 76) == [-1, *kept]


@pytest.mark.parametrize("idempotent", ["true", "false"])
async def test_a_refused_event_among_those_that_wait_fails_alone(
    kafka_broker: KafkaAccess, unique_name: str, idempotent: str
) -> None:
    """Its batch is refused, and idempotent clients need a successor then; the others arrive."""
    kafka_broker.create_topic(unique_name, 1, {"message.timestamp.after.max.ms": "60000"})
    url = f"kafka://{kafka_broker.bootstrap}?{FEW}&idempotent={idempotent}"
    future = KafkaEventConfig(timestamp_ms=int(time.time() * 1000) + 3_600_000)
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        producer: Any = emitter.producer
        client = producer._link.running()
        emits = begun(emitter, unique_name, 100, at_3=future, at_70=future)
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        assert (producer._link.running() is client) == (idempotent == "false")
    refused = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Receipt)]
    assert refused == [3, 70]
    assert all(isinstance(outcomes[n], EmitRejected) for n in refused)
    assert all("InvalidTimestamp" in str(outcomes[n]) for n in refused)
    stored = numbers(kafka_broker, unique_name, 98)
    assert sorted(stored) == [n for n in range(100) if n not in refused]
    receipts = [outcomes[n] for n in stored]
    offsets = [one.details["offset"] for one in receipts if isinstance(one, Receipt)]
    assert offsets == sorted(offsets)
    assert len(offsets) == 98


async def test_flush_waits_for_those_that_wait(
    kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
) -> None:
    """All that began before it have reached the broker when it returns."""
    emits = await waiting(emitter, topic)
    await emitter.producer.flush()
    assert kafka_broker.end_offsets(topic) == {0: 101}
    await asyncio.gather(*emits)


async def test_stopping_the_producer_refuses_those_that_wait(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """What was not handed to the client is not sent, and no task is left."""
    connection = KafkaConnection(hosts=(kafka_broker.bootstrap,), max_batch_bytes=2000)
    before = asyncio.all_tasks()
    emitter = EventEmitter(KafkaProducer(connection), timeout=20)
    await emitter.start()
    emits = await waiting(emitter, topic)
    await emitter.producer.stop()
    outcomes = await asyncio.gather(*emits, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {Receipt, EmitRejected, EmitUnknown}
    assert isinstance(outcomes[99], EmitRejected)
    stored = set(numbers(kafka_broker, topic, 1))
    for number, outcome in enumerate(outcomes):
        if not isinstance(outcome, EmitUnknown):
            assert (number in stored) == isinstance(outcome, Receipt)
    await emitter.stop()
    assert asyncio.all_tasks() == before


async def test_a_users_client_with_transactions_has_them_kept(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """What it has no room for goes through it, too: nothing is seen before the commit."""
    from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

    client = AIOKafkaProducer(
        bootstrap_servers=kafka_broker.bootstrap, transactional_id=topic, max_batch_size=2000
    )
    async with EventEmitter(KafkaProducer(client), timeout=20) as emitter:
        with pytest.raises(EmitRejected, match="transaction"):
            await emitter.emit(Numbered(topic=topic, number=-1))
        async with client.transaction():
            await asyncio.gather(*begun(emitter, topic, 100))
            assert kafka_broker.read_all(topic, committed_only=True) == []
    assert numbers(kafka_broker, topic, 100) == list(range(100))


async def test_each_that_waits_is_refused_at_its_own_deadline(
    own_kafka: Kafka, unique_name: str
) -> None:
    """In time, and certainly not stored; the one before it is unknown, the one behind it waits."""
    own_kafka.create_topic(unique_name)
    clock = asyncio.get_running_loop().time
    producer = KafkaProducer(KafkaConnection(hosts=(own_kafka.bootstrap,), max_batch_bytes=1000))

    def message(number: int, seconds: float) -> Outgoing:
        payload = json.dumps({"body": {"number": number}, "padding": "x" * 700}).encode()
        return Outgoing(str(number), "t", unique_name, payload, deadline=clock() + seconds)

    await producer.start()
    try:
        await producer.send_message(message(0, 10))
        own_kafka.freeze()
        messages = [message(1, 30), message(2, 1.0), message(3, 1.2), message(4, 30)]
        sends = [asyncio.create_task(producer.send_message(each)) for each in messages]
        with pytest.raises(ProducerTimeout):
            await sends[1]
        with pytest.raises(EmitRejected, match="before the deadline"):
            await sends[2]
        assert clock() < messages[2].deadline
        assert not sends[0].done()
        assert not sends[3].done()
        own_kafka.thaw()
        await asyncio.gather(sends[0], sends[3])
    finally:
        own_kafka.thaw()
        await producer.stop()
    assert numbers(own_kafka, unique_name, 4) == [0, 1, 2, 4]
