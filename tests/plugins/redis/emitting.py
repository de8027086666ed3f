"""What tests of emitting to Redis Streams share."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

from brokers.redis_access import RedisAccess
from dispytch import EventBase, Outgoing
from dispytch.url import connect
from dispytch_redis import RedisConnection, RedisProducer
from dispytch_redis.opening import open_connection
from dispytch_redis.wire import Wire


class Note(EventBase):
    """An event whose topic and key the test chooses."""

    __topic__ = "{to}"
    __event_type__ = "note"
    __key__ = "{lane}"

    to: str
    lane: str = "a"
    number: int = 0
    text: str = ""


def out(topic: str, payload: bytes = b"{}", key: str | None = None, **rest: Any) -> Outgoing:
    return Outgoing("id", "note", topic, payload, key, **rest)


def settings(url: str, **options: Any) -> RedisConnection:
    return connect(f"{url}?{urlencode(options)}", RedisConnection)


@contextlib.asynccontextmanager
async def producing(url: str, **options: Any) -> AsyncIterator[RedisProducer]:
    producer = RedisProducer(settings(url, **options))
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def wired(url: str, patience: float = 10.0) -> AsyncIterator[Wire]:
    wire = Wire(await open_connection(settings(url), "redis"), patience)
    try:
        yield wire
    finally:
        await wire.close()


async def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Look again and again: what a server does tells nobody here."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def streams(broker: RedisAccess, topic: str) -> list[str]:
    """Those of a topic that there are."""
    shards = int(broker.call("HGET", "dispytch:topics", topic) or 0)
    names = [f"dispytch:stream:{topic}:{number}" for number in range(shards)]
    return [name for name in names if broker.call("EXISTS", name)]


def payloads(broker: RedisAccess, topic: str) -> list[bytes]:
    """Of all that is stored of a topic, shard by shard, oldest first."""
    return [
        entry.fields[b"payload"]
        for stream in streams(broker, topic)
        for entry in broker.entries(stream)
    ]


def ids(broker: RedisAccess, topic: str) -> list[str]:
    """Of the events that are stored, in the same order."""
    return [json.loads(payload)["id"] for payload in payloads(broker, topic)]


def commands(broker: RedisAccess, name: str) -> int:
    """How often a command was executed until now."""
    for line in broker.call("INFO", "commandstats").decode().splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0
