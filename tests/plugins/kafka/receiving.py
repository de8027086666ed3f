"""What tests of the Kafka consumer share: consumers, records, and what the broker holds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)

from brokers.kafka_access import KafkaAccess
from dispytch import Consumer, Delivery, Subscription
from dispytch.plugins import backend_for_url
from dispytch.url import connect
from dispytch_kafka import KafkaConnection

QUICK = "session_timeout_ms=3000&heartbeat_interval_ms=300&discovery_interval_ms=300"


def consumer_for(kafka: KafkaAccess, options: str = QUICK, url: str = "") -> Consumer:
    url = f"{url or 'kafka://' + kafka.bootstrap}?{options}"
    backend = backend_for_url(url)
    return backend.make_consumer(connect(url, KafkaConnection))


@contextlib.asynccontextmanager
async def subscribed(
    kafka: KafkaAccess,
    *topics: str,
    group: str | None,
    options: str = QUICK,
    drain_timeout: float = 30.0,
) -> AsyncIterator[Consumer]:
    consumer = consumer_for(kafka, options)
    consumer.drain_timeout = drain_timeout
    await consumer.start()
    try:
        await consumer.subscribe([Subscription(topic, group) for topic in topics])
        yield consumer
    finally:
        await consumer.stop()


async def produce(
    kafka: KafkaAccess, topic: str, values: Iterable[bytes | None], **fields: Any
) -> None:
    client = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=5)
    await client.start()
    try:
        sent = [await client.send(topic, value, **fields) for value in values]
        await asyncio.gather(*sent)
    finally:
        await client.stop()


def numbers(*bounds: int) -> list[bytes]:
    return [str(number).encode() for number in range(*bounds)]


async def take(consumer: Consumer, count: int, within: float = 15.0) -> list[Delivery]:
    """Receive so many, without acknowledging them."""
    taken: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(taken) < count:
            taken += await consumer.receive(count - len(taken))
    return taken


async def nothing_more(consumer: Consumer, within: float = 1.0) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(within):
            await consumer.receive(1)


async def ack_all(deliveries: Iterable[Delivery]) -> None:
    for delivery in deliveries:
        await delivery.ack()


async def committed(kafka: KafkaAccess, group: str, topic: str, partition: int = 0) -> int | None:
    """What the broker holds for the group, asked by a bare client."""
    client = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False
    )
    await client.start()
    try:
        offset: int | None = await client.committed(TopicPartition(topic, partition))
    finally:
        await client.stop()
    return offset


def payloads(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]
