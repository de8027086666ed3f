"""What tests of Pub/Sub share: consumers and producers on a server, and waiting for what comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

from brokers.redis import Redis
from dispytch import ConnectError, Delivery, Outgoing, Subscription
from dispytch.url import connect
from dispytch_redis import RedisPubSubConnection, RedisPubSubConsumer, RedisPubSubProducer

SCHEME = "redis+pubsub"


def url_of(redis: Redis, *, user: str | None = None, port: int | None = None, **given: Any) -> str:
    """A URL of this server, with options."""
    return f"{redis.url_for(scheme=SCHEME, user=user, port=port)}?{urlencode(given)}"


def connection_of(redis: Redis, **given: Any) -> RedisPubSubConnection:
    return connect(url_of(redis, **given), RedisPubSubConnection)


@contextlib.asynccontextmanager
async def subscribed(
    redis: Redis, *topics: str, held: int = 1000, **given: Any
) -> AsyncIterator[RedisPubSubConsumer]:
    """A consumer of these topics or patterns."""
    consumer = RedisPubSubConsumer(connection_of(redis, **given))
    consumer.max_held = held
    await consumer.start()
    try:
        await consumer.subscribe([Subscription(topic) for topic in topics])
        yield consumer
    finally:
        await consumer.stop()


@contextlib.asynccontextmanager
async def producing(redis: Redis, **given: Any) -> AsyncIterator[RedisPubSubProducer]:
    producer = RedisPubSubProducer(connection_of(redis, **given))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def out(topic: str, payload: bytes = b"{}", key: str | None = None, **rest: Any) -> Outgoing:
    """A message, with ten seconds until its deadline."""
    rest.setdefault("deadline", asyncio.get_running_loop().time() + 10)
    return Outgoing("id", "type", topic, payload, key, **rest)


async def received(consumer: RedisPubSubConsumer, count: int, limit: int = 100) -> list[Delivery]:
    """So many deliveries; a gap raises."""
    came: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(came) < count:
            came += await consumer.receive(min(limit, count - len(came)))
    return came


async def nothing_more(consumer: RedisPubSubConsumer, redis: Redis, topic: str) -> None:
    """See that the next that comes is what is published now."""
    await asyncio.to_thread(redis.call, "PUBLISH", topic, "last")
    (last,) = await received(consumer, 1)
    assert last.payload == b"last"


async def subscribed_again(consumer: RedisPubSubConsumer) -> None:
    """Wait for the end of a gap."""
    async with asyncio.timeout(20):
        while True:
            try:
                await consumer.ping()
            except ConnectError:
                await asyncio.sleep(0.01)
            else:
                return


async def true_soon(true: Callable[[], object], within: float = 20.0) -> None:
    """Wait for what tells nobody."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
