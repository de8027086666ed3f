"""Delayed redelivery: by queues of the broker, with everything the event came with."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from brokers.rabbitmq import RabbitMQ
from brokers.rabbitmq_access import RabbitMQAccess
from dispytch import Consumer, Delivery, EventBase, EventEmitter
from dispytch_rabbitmq import RabbitMQEventConfig

if TYPE_CHECKING:
    from tests.plugins.rabbitmq.conftest import OpenConsumer

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def emitter(rabbitmq_broker: RabbitMQAccess) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(rabbitmq_broker.url, timeout=10) as emitter:
        yield emitter


async def take(consumer: Consumer, count: int, within: float = 20.0) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(got) < count:
            got += await consumer.receive(count - len(got))
    return got


async def test_delayed_event_comes_back_as_it_was(
    emitter: EventEmitter,
    rabbitmq_broker: RabbitMQAccess,
    open_consumer: "OpenConsumer",
    numbered: Any,
    unique_name: str,
) -> None:
    """Topic, key, headers and properties survive; the attempt counts on, given back in between."""
    consumer = await open_consumer(rabbitmq_broker.url, f"{unique_name}", "other.{a}")
    headers = {"n": 5, "raw": b"\xff", "CC": ["nobody"]}
    config = RabbitMQEventConfig(headers=headers, correlation_id="c-1", expiration=60)
    await emitter.emit(numbered(to=unique_name, lane="lane-1"), config=config)
    (first,) = await take(consumer, 1)
    await first.nack()
    (second,) = await take(consumer, 1)
    assert second.attempt == 2
    second.headers = (*second.headers, ("x-dispytch-for-handlers", b"one,two"))
    began = time.monotonic()
    await second.nack(0.4)
    assert await consumer.backlog() == 0
    (third,) = await take(consumer, 1)
    assert 0.9 < time.monotonic() - began < 4  # rounded up to a second
    assert third.attempt == 3
    assert (third.topic, third.key, third.payload) == (unique_name, "lane-1", first.payload)
    assert third.headers == (("n", b"5"), ("raw", b"\xff"), ("x-dispytch-for-handlers", b"one,two"))
    await third.nack(1)
    (fourth,) = await take(consumer, 1)
    assert fourth.attempt == 4
    assert fourth.headers == third.headers
    raw: Any = fourth
    properties = raw.message.header.properties
    assert (properties.correlation_id, properties.headers["n"]) == ("c-1", 5)
    await fourth.ack()


async def test_delay_does_not_wait_behind_a_longer_one(
    emitter: EventEmitter,
    rabbitmq_broker: RabbitMQAccess,
    open_consumer: "OpenConsumer",
    numbered: Any,
    unique_name: str,
) -> None:
    """Each tier is a queue of its own: a second is a second, behind five."""
    consumer = await open_consumer(rabbitmq_broker.url, unique_name)
    await emitter.emit_many([numbered(to=unique_name, lane=str(n), number=n) for n in range(2)])
    long, short = await take(consumer, 2)
    await long.nack(5)
    began = time.monotonic()
    await short.nack(1)
    (delivery,) = await take(consumer, 1)
    assert time.monotonic() - began < 3.5
    assert delivery.payload == short.payload
    await delivery.ack()


async def test_pattern_keeps_the_topic_over_a_delay(
    rabbitmq_broker: RabbitMQAccess,
    emitter: EventEmitter,
    open_consumer: "OpenConsumer",
    unique_name: str,
) -> None:
    """The queue's name, by which it comes back, does not take the topic's place."""
    topic = f"{unique_name}.one"

    class Plain(EventBase):
        __topic__ = topic
        __event_type__ = "plain"

    consumer = await open_consumer(rabbitmq_broker.url, f"{unique_name}.{{any}}")
    await emitter.emit(Plain())
    (first,) = await take(consumer, 1)
    assert first.topic == topic
    await first.nack(1)
    (second,) = await take(consumer, 1)
    assert (second.topic, second.attempt) == (topic, 2)
    await second.ack()


async def test_delay_is_waited_for_here_where_the_broker_takes_no_message(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """Without the right to the delaying queue nothing is lost, and nothing comes too early."""
    await (await open_consumer(own_rabbitmq.url, "narrow")).stop()
    own_rabbitmq.add_user("narrow", "narrow")
    own_rabbitmq.set_permissions("narrow", configure="", write="dispytch|amq.default")
    url = own_rabbitmq.url_for(user="narrow", password="narrow")
    consumer = await open_consumer(f"{url}?declare=false", "narrow")
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(numbered(to="narrow"))
    (first,) = await take(consumer, 1)
    began = time.monotonic()
    await first.nack(1)
    (second,) = await take(consumer, 1)
    assert time.monotonic() - began > 0.9
    assert second.attempt == 2
    await second.ack()
    await consumer.stop()
    assert own_rabbitmq.queue_size("g.narrow") == 0


async def test_delay_survives_a_restart_of_the_broker(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """The delaying queue is durable: the event comes back."""
    consumer = await open_consumer(f"{own_rabbitmq.url}?reconnect_interval=0.3", "durable")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit(numbered(to="durable"))
        (first,) = await take(consumer, 1)
        await first.nack(5)
    await asyncio.to_thread(own_rabbitmq.restart)
    (second,) = await take(consumer, 1, within=40)
    assert second.attempt == 2
    await second.ack()
