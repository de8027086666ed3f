"""What dispytch-redis is measured beside: the same events through redis-py, used plainly.

As its documents show: a client made by `Redis.from_url`, and a pool that makes callers wait where
many call at once.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis

from bench.events import READ, Plain, database, envelope, key_of

GROUP, POOL = "plain", 16


def fields(event: Plain) -> dict[Any, Any]:
    """What an entry of a stream holds: as Dispytch has it."""
    return {"payload": envelope(event), "key": key_of(event)}


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Redis]:
    """A client for many callers at once; with the default pool most of 1,000 would fail."""
    pool = BlockingConnectionPool.from_url(url, max_connections=POOL, timeout=None)
    async with Redis.from_pool(pool) as client:
        yield client


async def append(client: Redis, stream: str, event: Plain) -> None:
    """Append one."""
    await client.xadd(stream, fields(event))


async def pipelined(client: Redis, stream: str, size: int, events: Sequence[Plain]) -> None:
    """Append, so many with each pipeline."""
    for first in range(0, len(events), size):
        pipeline = client.pipeline(transaction=False)
        for event in events[first : first + size]:
            pipeline.xadd(stream, fields(event))
        await pipeline.execute()


class Working:
    """A member of a group that reads 100 at a time, and handles one after the other.

    Args:
        client: of redis-py.
        stream: what it reads.
        each: acknowledge each event when it is handled; else those of a read together.
    """

    def __init__(self, client: Redis, stream: str, *, each: bool) -> None:
        self._client, self._stream, self._each = client, stream, each
        self.handled: list[int] = []

    async def run(self, count: int) -> None:
        """Work so many off."""
        client, stream = self._client, self._stream
        while len(self.handled) < count:
            told: Any = await client.xreadgroup(GROUP, "me", {stream: ">"}, count=100)
            ids: list[bytes] = []
            for entry, values in told[0][1]:
                event, _ = READ(values[b"payload"])["body"], await database()
                self.handled.append(event.timestamp)
                if self._each:
                    await client.xack(stream, GROUP, entry)
                ids.append(entry)
            if not self._each:
                await client.xack(stream, GROUP, *ids)


async def wait_for(client: Redis, stream: str, count: int, came: asyncio.Event) -> int:
    """Handle one event after the other as they come, and tell of each; how many came."""
    seen = 0
    while seen < count:
        told: Any = await client.xreadgroup(GROUP, "me", {stream: ">"}, count=100, block=1000)
        for entry, values in told[0][1] if told else ():
            READ(values[b"payload"])
            seen += 1
            came.set()
            await client.xack(stream, GROUP, entry)
    return seen
