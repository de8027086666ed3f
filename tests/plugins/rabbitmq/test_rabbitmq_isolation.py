"""One bad event fails alone, and what blocks or refuses publishers passes."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.rabbitmq import RabbitMQ
from dispytch import (
    EmitRejected,
    EmitUnknown,
    EventBase,
    EventEmitter,
    ProducerTimeout,
    Receipt,
)
from dispytch_rabbitmq import RabbitMQEventConfig

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


class Note(EventBase):
    __topic__ = "{queue}"
    __event_type__ = "note"

    queue: str
    text: str = ""


@pytest.fixture(scope="module")
def small_broker() -> Any:
    """A RabbitMQ that takes messages up to 4 KB."""
    with started(lambda: RabbitMQ(config={"max_message_size": "4096"})) as broker:
        broker.declare_queue("all")
        broker.declare_exchange("hidden", "fanout")
        broker.bind("all", "hidden")
        broker.add_user("half", "half")
        broker.set_permissions("half", write="amq.default|topics")
        broker.declare_exchange("topics", "topic")
        broker.bind("all", "topics")
        broker.ctl("set_topic_permissions", "half", "topics", "^open", ".*")
        yield broker


BAD: dict[str, tuple[RabbitMQEventConfig | None, Note]] = {
    "too large": (None, Note(queue="all", text="x" * 5000)),
    "unroutable": (None, Note(queue="nobody-reads-this")),
    "unauthorised": (RabbitMQEventConfig(exchange="hidden"), Note(queue="all")),
    "no such exchange": (RabbitMQEventConfig(exchange="absent"), Note(queue="all")),
    "foreign user": (RabbitMQEventConfig(user_id="guest"), Note(queue="all")),
    "long routing key": (None, Note(queue="q" * 256)),
    "large headers": (RabbitMQEventConfig(headers={"x": "x" * 140_000}), Note(queue="all")),
    "past deadline": (
        RabbitMQEventConfig(expiration=datetime(2020, 1, 1, tzinfo=UTC)),
        Note(queue="all"),
    ),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("kind", BAD)
async def test_one_bad_event_in_200_fails_alone(
    small_broker: RabbitMQ, kind: str, warm: bool
) -> None:
    """199 neighbours at the same time get their receipts, and are in the queue."""
    config, bad = BAD[kind]
    small_broker.read_queue("all")
    async with EventEmitter.from_url(
        small_broker.url_for(user="half", password="half"), timeout=20
    ) as emitter:
        if warm:
            await emitter.emit_many([Note(queue="all") for _ in range(50)])
        good = [Note(queue="all", text="x" * (i % 50)) for i in range(199)]
        given = [*((event, None) for event in good[:100]), (bad, config)]
        given += [(event, None) for event in good[100:]]
        results = await asyncio.gather(
            *(emitter.emit(event, config=config) for event, config in given),
            return_exceptions=True,
        )
    assert isinstance(results.pop(100), EmitRejected)
    assert {type(result) for result in results} == {Receipt}
    stored = {d.properties["message_id"] for d in small_broker.read_queue("all", 199)}
    assert stored >= {event.id for event in good}
    assert bad.id not in stored


async def test_refused_routing_key_is_learned(small_broker: RabbitMQ) -> None:
    """Rights on routing keys can't be known ahead: after the first refusal they are respected."""
    config = RabbitMQEventConfig(exchange="topics")
    url = small_broker.url_for(user="half", password="half")
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        await emitter.emit(Note(queue="open-a"), config=config)
        with pytest.raises(EmitUnknown, match="access to topic"):
            await emitter.emit(Note(queue="shut-a"), config=config)
        topics = ["open-a", "shut-a", "open-b"] * 20
        results = await asyncio.gather(
            *(emitter.emit(Note(queue=topic), config=config) for topic in topics),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [Receipt, EmitRejected, Receipt] * 20


async def test_memory_alarm_ends_in_timeouts_and_passes(own_rabbitmq: RabbitMQ) -> None:
    """While the broker blocks publishers emits time out, unknown; afterwards the next succeeds."""
    own_rabbitmq.declare_queue("alarm")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=2) as emitter:
        await emitter.emit(Note(queue="alarm"))
        with own_rabbitmq.memory_alarm():
            for _ in range(2):
                began = time.monotonic()
                results = await asyncio.gather(
                    *(emitter.emit(Note(queue="alarm")) for _ in range(20)),
                    return_exceptions=True,
                )
                assert {type(result) for result in results} == {ProducerTimeout}
                assert time.monotonic() - began < 4
        await emitter.emit(Note(queue="alarm"))


async def test_stop_returns_while_the_broker_blocks(own_rabbitmq: RabbitMQ) -> None:
    """Leaving does not wait for the memory alarm to end."""
    own_rabbitmq.declare_queue("alarm")
    emitter = EventEmitter.from_url(own_rabbitmq.url, timeout=1)
    await emitter.start()
    await emitter.emit(Note(queue="alarm"))
    with own_rabbitmq.memory_alarm():
        with pytest.raises(ProducerTimeout):
            await emitter.emit(Note(queue="alarm"))
        began = time.monotonic()
        await emitter.stop()
        assert time.monotonic() - began < 6


async def test_deleted_exchange_is_noticed(own_rabbitmq: RabbitMQ) -> None:
    """An exchange that goes away rejects its events, and not those of others."""
    own_rabbitmq.declare_queue("left")
    own_rabbitmq.declare_exchange("leaving", "fanout")
    own_rabbitmq.bind("left", "leaving")
    config = RabbitMQEventConfig(exchange="leaving")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as own:
        await own.emit(Note(queue="left"), config=config)
        own_rabbitmq.ctl("eval", _DELETE_EXCHANGE)
        with pytest.raises(EmitUnknown, match="no exchange"):  # others were in flight, maybe
            await own.emit(Note(queue="left"), config=config)
        for _ in range(3):
            with pytest.raises(EmitRejected, match="no exchange"):
                await own.emit(Note(queue="left"), config=config)
            await own.emit(Note(queue="left"))


_DELETE_EXCHANGE = (
    'rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, <<"leaving">>), false, <<"t">>).'
)
