"""What tests of the Redis consumer share: a place of their own, consumers, and lost replies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

import pytest

from brokers.redis_access import RedisAccess
from dispytch import ConnectError, Delivery, Outgoing, Subscription
from dispytch.url import connect
from dispytch_redis import RedisConnection, RedisConsumer, RedisEventConfig, RedisProducer
from dispytch_redis.errors import WireError
from dispytch_redis.keys import Keys
from dispytch_redis.script import Script
from dispytch_redis.wire import Wire

GROUP = "g"


class Place:
    """A part of a Redis that no other test uses: a prefix."""

    def __init__(self, broker: RedisAccess, prefix: str, **options: Any) -> None:
        self.broker, self.prefix, self.options = broker, prefix, options
        self.keys = Keys(prefix)
        self.group = self.keys.group(GROUP)
        self.call = broker.call

    def url(self, url: str = "", **options: Any) -> str:
        given = {"prefix": self.prefix, **self.options, **options}
        return f"{url or self.broker.url}?{urlencode(given)}"

    def connection(self, url: str = "", **options: Any) -> RedisConnection:
        return connect(self.url(url, **options), RedisConnection)

    @contextlib.asynccontextmanager
    async def subscribed(
        self, *topics: str, group: str | None = GROUP, url: str = "",
        drain_timeout: float = 30.0, **options: Any
    ) -> AsyncIterator[RedisConsumer]:  # fmt: skip
        consumer = RedisConsumer(self.connection(url, **options))
        consumer.drain_timeout = drain_timeout
        await consumer.start()
        try:
            await consumer.subscribe([Subscription(topic, group) for topic in topics])
            yield consumer
        finally:
            await consumer.stop()

    @contextlib.asynccontextmanager
    async def producer(self, **options: Any) -> AsyncIterator[RedisProducer]:
        producer = RedisProducer(self.connection(**options))
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def emit(
        self, topic: str, *payloads: bytes, key: str | None = None, **config: Any
    ) -> None:  # fmt: skip
        """Append some, all of one key or each of its own."""
        settings = RedisEventConfig(**config) if config else None
        async with self.producer() as producer:
            batch = [
                Outgoing("", "", topic, each, key or f"key {number}", settings)
                for number, each in enumerate(payloads)
            ]
            for outcome in await producer.send_messages(batch):
                assert not isinstance(outcome, BaseException), outcome

    def pending(self, topic: str, shards: int) -> list[tuple[str, int]]:
        """Ids and numbers of deliveries of all that is delivered and not settled."""
        found: list[tuple[str, int]] = []
        for number in range(shards):
            stream = self.keys.stream(self.keys.shard(topic, number))
            page = self.call("XPENDING", stream, GROUP, "-", "+", 10_000)
            found += [(row[0].decode(), row[3]) for row in page]
        return found

    def owners(self) -> dict[str, str]:
        """Whose each shard is."""
        pairs = [each.decode() for each in self.call("HGETALL", self.group.owners)]
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    def left(self) -> set[str]:
        """All keys there are."""
        return {each.decode() for each in self.call("KEYS", f"{self.prefix}:*")}

    async def kill(self, consumer: RedisConsumer) -> None:
        """It is dead to the others, as if its process had been killed a while ago."""
        membership: Any = consumer._membership
        await membership._end_keeping()
        self.call("HSET", self.group.members, member(consumer), "1000 1000")


def member(consumer: RedisConsumer) -> str:
    return consumer._settling.member


def shards(consumer: RedisConsumer) -> set[str]:
    """What it believes to own."""
    membership: Any = consumer._membership
    return set(membership.shards)


def lose_replies(
    patch: pytest.MonkeyPatch, consumer: RedisConsumer, script: Script,
    when: Callable[[Any], object] = lambda _: True, times: int = 1,
) -> list[Any]:  # fmt: skip
    """The connection ends when a script was executed, and its reply is lost; what was told."""
    run, lost = script.run, list[Any]()

    async def run_and_lose(wire: Wire, keys: list[str], *arguments: Any) -> Any:
        told = await run(wire, keys, *arguments)
        if len(lost) < times and wire is consumer._link.wire and when(told):
            lost.append(told)
            wire.abort("the reply was lost")
            raise WireError("the reply was lost")
        return told

    patch.setattr(script, "run", run_and_lose)
    return lost


async def take(consumer: RedisConsumer, count: int, within: float = 20.0) -> list[Delivery]:
    """Receive so many, without acknowledging them; wait out lost connections."""
    taken: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(taken) < count:
            try:
                taken += await consumer.receive(count - len(taken))
            except ConnectError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(0.02)
    return taken


async def nothing_more(consumer: RedisConsumer, within: float = 0.3) -> None:
    receiving = asyncio.ensure_future(consumer.receive(100))
    await asyncio.wait({receiving}, timeout=within)
    assert not receiving.done(), f"there was more: {payloads(receiving.result())}"
    receiving.cancel()
    await asyncio.wait({receiving})


async def ack_all(deliveries: Iterable[Delivery]) -> None:
    await asyncio.gather(*(delivery.ack() for delivery in deliveries))


async def until(true: Callable[[], object], within: float = 20.0) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


def payloads(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


def attempts(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.attempt for delivery in deliveries]


def numbered(*bounds: int) -> list[bytes]:
    return [b"%d" % number for number in range(*bounds)]
