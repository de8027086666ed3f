"""What tests of the SQLite consumer share: files, consumers, and what the file holds."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dispytch import Delivery, Outgoing, Subscription
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer, SQLiteEventConfig, SQLiteProducer


class File:
    """A file of events; another `process` stands for another process, with its own writer."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path, self.options = path, options

    def url(self, process: int = 0, **options: Any) -> str:
        given = {"lock_timeout": 10 + process, **self.options, **options}
        return f"sqlite:///{self.path}?{urlencode(given)}"

    def connection(self, process: int = 0, **options: Any) -> SQLiteConnection:
        return connect(self.url(process, **options), SQLiteConnection)

    @contextlib.asynccontextmanager
    async def subscribed(
        self, *topics: str, group: str | None = "g", process: int = 0, **options: Any
    ) -> AsyncIterator[SQLiteConsumer]:
        consumer = SQLiteConsumer(self.connection(process, **options))
        await consumer.start()
        try:
            await consumer.subscribe([Subscription(topic, group) for topic in topics])
            yield consumer
        finally:
            await consumer.stop()

    @contextlib.asynccontextmanager
    async def producer(self, process: int = 0, **options: Any) -> AsyncIterator[SQLiteProducer]:
        producer = SQLiteProducer(self.connection(process, **options))
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def emit(
        self, topic: str, *payloads: bytes, key: str | None = None, process: int = 0, **config: Any
    ) -> None:  # fmt: skip
        """Append some, all of one key or each of its own."""
        settings = SQLiteEventConfig(**config) if config else None
        async with self.producer(process) as producer:
            batch = [
                Outgoing("", "", topic, each, key or f"key {number}", settings)
                for number, each in enumerate(payloads)
            ]
            for outcome in await producer.send_messages(batch):
                assert not isinstance(outcome, BaseException), outcome

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("PRAGMA busy_timeout = 5000")
            yield db

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What the file holds, asked by a bare connection."""
        with self.opened() as db:
            return db.execute(query, values).fetchall()

    def kill(self, consumer: SQLiteConsumer) -> None:
        """A consumer is dead to the others, as if its process had been killed a while ago."""
        membership: Any = consumer._membership
        membership._end_renewing()
        past = time.monotonic() - 0.001
        self.rows("UPDATE members SET until = ? WHERE id = ?", past, membership.member.id)


async def take(consumer: SQLiteConsumer, count: int, within: float = 10.0) -> list[Delivery]:
    """Receive so many, without acknowledging them."""
    taken: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(taken) < count:
            taken += await consumer.receive(count - len(taken))
    return taken


async def nothing_more(consumer: SQLiteConsumer, within: float = 0.2) -> None:
    receiving = asyncio.ensure_future(consumer.receive(100))
    await asyncio.wait({receiving}, timeout=within)
    assert not receiving.done(), f"there was more: {payloads(receiving.result())}"
    receiving.cancel()
    await asyncio.wait({receiving})


async def ack_all(deliveries: Iterable[Delivery]) -> None:
    await asyncio.gather(*(delivery.ack() for delivery in deliveries))


def payloads(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


def numbered(*bounds: int) -> list[bytes]:
    return [b"%d" % number for number in range(*bounds)]
