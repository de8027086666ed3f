"""What dispytch-redis is measured beside: the same events through redis-py, used plainly.

As its documents show: a client made by `Redis.from_url`, and a pool that makes callers wait where
many call at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json
from redis.asyncio import BlockingConnectionPool, Redis
from typing_extensions import TypedDict

from dispytch import EventBase

GROUP, KEYS, POOL = "plain", 50, 16


class User(BaseModel):
    """The nested part of the event."""

    id: str
    email: str
    name: str


class UserCreated(EventBase):
    """About 200 bytes on the wire, one of many keys."""

    __topic__ = "user_events"
    __event_type__ = "user_created"
    __key__ = "{user.id}"

    user: User
    timestamp: int


class Envelope(TypedDict):
    """What travels, for pydantic alone."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["user_created"]
    body: UserCreated
    timestamp: int


READ = TypeAdapter(Envelope).validator.validate_json


def created(number: int) -> UserCreated:
    """An event."""
    user = User(id=str(number % KEYS), email="ada@example.com", name="Ada Lovelace")
    return UserCreated(user=user, timestamp=number)


def fields(event: UserCreated) -> dict[str | bytes, Any]:
    """What an entry of a stream holds: as Dispytch has it."""
    now = time.time_ns() // 10**6
    envelope = {"id": event.id, "type": "user_created", "body": event, "timestamp": now}
    return {"payload": to_json(envelope), "key": event.user.id}


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Redis]:
    """A client for many callers at once; with the default pool most of 1,000 would fail."""
    pool = BlockingConnectionPool.from_url(url, max_connections=POOL, timeout=None)
    async with Redis.from_pool(pool) as client:
        yield client


async def append(client: Redis, stream: str, event: UserCreated) -> None:
    """Append one."""
    await client.xadd(stream, fields(event))


async def pipelined(client: Redis, stream: str, size: int, events: Sequence[UserCreated]) -> None:
    """Append, so many with each pipeline."""
    for first in range(0, len(events), size):
        pipeline = client.pipeline(transaction=False)
        for event in events[first : first + size]:
            pipeline.xadd(stream, fields(event))
        await pipeline.execute()


async def database() -> str:
    """An async dependency."""
    return "db"


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
                await self.handle(READ(values[b"payload"])["body"], await database())
                if self._each:
                    await client.xack(stream, GROUP, entry)
                ids.append(entry)
            if not self._each:
                await client.xack(stream, GROUP, *ids)

    async def handle(self, event: UserCreated, db: str) -> None:
        """Note which."""
        self.handled.append(event.timestamp)


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
