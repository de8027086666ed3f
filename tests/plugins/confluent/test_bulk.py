"""Batches whose brokers are gone in the middle of it: what is known of each event, and order."""

import asyncio

import pytest

from brokers.kafka import Kafka
from dispytch import (
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    EventBase,
    EventEmitter,
    Receipt,
)

pytest.importorskip("confluent_kafka")
pytestmark = pytest.mark.kafka


class Numbered(EventBase):
    __topic__ = "{topic}"
    __event_type__ = "numbered"
    __key__ = "{lane}"

    topic: str
    lane: int
    number: int


def batch(topic: str, count: int = 60) -> list[Numbered]:
    return [Numbered(topic=topic, lane=number % 7, number=number) for number in range(count)]


def url_of(kafka: Kafka, options: str) -> str:
    return kafka.url.replace("kafka:", "kafka+confluent:") + options


async def results(emitter: EventEmitter, topic: str) -> list[object]:
    with pytest.raises(EmitManyError) as caught:
        await emitter.emit_many(batch(topic))
    return list(caught.value.results)


async def test_a_frozen_broker_makes_what_was_sent_unknown_and_the_rest_rejected(
    own_kafka: Kafka, unique_name: str
) -> None:
    """One window is on its way; no later event was sent, and once it thaws the next batch is."""
    own_kafka.create_topic(unique_name, 2)
    url = url_of(own_kafka, "?max_batch_bytes=2000&request_timeout_ms=2000")
    async with EventEmitter.from_url(url, timeout=3) as emitter:
        await emitter.emit_many(batch(unique_name))
        await asyncio.to_thread(own_kafka.freeze)
        told = await results(emitter, unique_name)
        own_kafka.thaw()
        kinds = [type(result) for result in told]
        unknown = [n for n, result in enumerate(told) if isinstance(result, EmitUnknown)]
        assert unknown == list(range(len(unknown)))
        assert unknown
        assert set(kinds[len(unknown) :]) == {EmitRejected}
        async with asyncio.timeout(20):
            while True:  # until the client has found back
                try:
                    again = await emitter.emit_many(batch(unique_name))
                    break
                except EmitManyError:
                    continue
        assert all(isinstance(result, Receipt) for result in again)


async def test_a_batch_that_meets_a_stop_leaves_nothing_open(
    own_kafka: Kafka, unique_name: str
) -> None:
    """Every event has an outcome: unknown where it was sent, else rejected."""
    own_kafka.create_topic(unique_name, 2)
    url = url_of(own_kafka, "?max_batch_bytes=2000")
    emitter = EventEmitter.from_url(url, timeout=8)
    await emitter.start()
    await emitter.emit_many(batch(unique_name))
    await asyncio.to_thread(own_kafka.freeze)
    emitting = asyncio.create_task(results(emitter, unique_name))
    await asyncio.wait({emitting}, timeout=1.0)
    await emitter.stop()
    told = await emitting
    assert all(isinstance(result, EmitRejected | EmitUnknown) for result in told)
    assert isinstance(told[0], EmitUnknown)
    assert isinstance(told[-1], EmitRejected)


async def test_a_cancelled_batch_does_not_hold_up_the_next(
    own_kafka: Kafka, unique_name: str
) -> None:
    """What is on its way is given up, and the next batch goes out."""
    own_kafka.create_topic(unique_name, 2)
    async with EventEmitter.from_url(url_of(own_kafka, ""), timeout=20) as emitter:
        await emitter.emit_many(batch(unique_name))
        await asyncio.to_thread(own_kafka.freeze)
        emitting = asyncio.create_task(emitter.emit_many(batch(unique_name)))
        await asyncio.wait({emitting}, timeout=0.5)
        emitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await emitting
        own_kafka.thaw()
        receipts = await emitter.emit_many(batch(unique_name))
    assert len(receipts) == 60
