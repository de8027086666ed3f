"""SQLiteConsumer: receives events from the log of a file."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from dispytch import ConfigError, ConnectError, Consumer, Delivery, Subscription
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.database import open_reader
from dispytch_sqlite.errors import BACKEND, as_connect_error
from dispytch_sqlite.log import now_ms
from dispytch_sqlite.membership import Membership
from dispytch_sqlite.news import News
from dispytch_sqlite.producer import SQLiteProducer
from dispytch_sqlite.reading import Feed, canonical
from dispytch_sqlite.settling import Settling
from dispytch_sqlite.sharing import open_writer, release
from dispytch_sqlite.writer import Writer

__all__ = ["SQLiteConsumer"]

_LAST_WRITE = 5.0  # seconds that stopping waits until what is done is written down
_SOON = 100  # milliseconds until what is due, and could not be appended, is looked at again


class SQLiteConsumer(Consumer):
    """Receives events from a file.

    The keys of a topic are spread over partitions, and each partition is with one member of a group
    at a time. A member that dies is replaced when its lease is over. Without a group it gets what
    is appended from now on, and leaves nothing behind.

    Args:
        connection: the file, and how it is used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND
    delays = True

    def __init__(self, connection: SQLiteConnection) -> None:
        if not isinstance(connection, SQLiteConnection):
            raise ConfigError(
                f"SQLiteConsumer takes a SQLiteConnection, not a {type(connection).__name__}; "
                "or use EventListener.from_url('sqlite:///events.db')"
            )
        self._connection = connection
        self._writer: Writer | None = None
        self._db: sqlite3.Connection | None = None
        self._feeds: list[Feed] = []
        self._membership: Membership | None = None
        self._end_news: Callable[[], None] = lambda: None
        self._turn = 0

    @classmethod
    def from_connection(cls, connection: SQLiteConnection, /) -> Self:
        """The consumer of the file a URL names."""
        return cls(connection)

    def dead_letter_producer(self) -> SQLiteProducer:
        """A producer on the same file."""
        return SQLiteProducer(self._connection)

    async def start(self) -> None:
        """Open the file, or make it.

        Raises:
            ConnectError: it can't be opened or made, or can't work; the message says why.
        """
        if self._writer is not None:
            return
        writer = await open_writer(self._connection)
        try:
            self._db = await asyncio.to_thread(open_reader, writer.connection.file)
        except BaseException:
            await asyncio.to_thread(release, writer)
            raise
        self._writer = writer
        self._news = News(self._db, self._connection.poll_interval)
        self._settling = Settling(writer, self._news.tell)
        self._end_news = writer.tell_news(self._news.tell)
        self._appending = asyncio.get_running_loop().create_future()
        self._appending.set_result(None)

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Join the group; without one, begin at the end of the log.

        Raises:
            ConnectError: the file can't be written.
            ConfigError: the subscriptions are of several groups.
        """
        writer, db = self._opened()
        groups = {each.group for each in subscriptions}
        if len(groups) > 1:
            raise ConfigError(f"{BACKEND}: a consumer belongs to one group, not to several")
        self._feeds = _feeds(db, subscriptions)
        self._membership = Membership(
            writer, self._settling, self._feeds, self._news.tell, self.drain_timeout
        )
        group = groups.pop() if groups else None
        if group is None:
            self._membership.stay_alone(db)
        else:
            await self._membership.join(group)

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for events. Nothing is taken before it is returned, so cancelling loses none.

        Raises:
            ConnectError: the file can't be read; for good when it was removed or replaced.
        """
        while True:
            found: list[Delivery] = []
            may_be_more, due = False, None
            try:
                may_be_more = self._take(found, limit)
                held_back = self._append_due()
                if not (found or may_be_more):
                    due = self._next_due(held_back)
            except sqlite3.Error as error:
                if not found:
                    raise as_connect_error(error, "can't read") from error
            if found:
                self._turn = (self._turn + 1) % (len(self._feeds) or 1)
                self._news.found()
                return found
            if may_be_more:
                await asyncio.sleep(0)
            else:
                await self._news.wait(due)

    def _take(self, found: list[Delivery], limit: int) -> bool:
        """Add what there is, which is delivered even if this fails; whether there may be more."""
        _, db = self._opened()
        found += self._settling.take_again(limit)
        if self._news.take_change() and self._membership is not None:
            self._membership.look(db)
        may_be_more = False
        for feed in self._feeds[self._turn :] + self._feeds[: self._turn]:
            feed.take_retries(found, limit)
            may_be_more = feed.take(found, limit) or may_be_more
        return may_be_more

    def _append_due(self) -> int | None:
        """Let join the log what was held back and is due; when there is more to do, as `now_ms`."""
        writer, db = self._opened()
        due: int | None = db.execute("SELECT min(due_ms) FROM delayed").fetchone()[0]
        if due is None or due > (now := now_ms()):
            return due
        if self._appending.done():
            self._appending = writer.run(writer.log.append_due, appends=True)
            self._appending.add_done_callback(self._appended)
        return now + _SOON

    def _appended(self, appending: "asyncio.Future[bool]") -> None:
        if appending.exception() is None and appending.result():
            self._news.tell()  # there is more

    def _next_due(self, held_back: int | None) -> float | None:
        """When something comes by itself, on `time.time()`."""
        times = [held_back, *(feed.next_retry() for feed in self._feeds)]
        return min((each / 1000 for each in times if each is not None), default=None)

    async def stop(self) -> None:
        """Give back what is not settled, leave the group, close the file."""
        writer, db = self._writer, self._db
        self._writer = self._db = None
        if writer is None or db is None:
            return
        self._end_news()
        self._news.tell()
        try:
            with contextlib.suppress(TimeoutError):  # another process has the lock
                async with asyncio.timeout(0 if writer.lost else _LAST_WRITE):
                    await self._settling.idle()
                    if self._membership is not None:
                        await self._membership.leave()
        finally:
            if self._membership is not None:
                self._membership.close()
            self._settling.abandon()
            db.close()
            await asyncio.to_thread(release, writer)

    async def ping(self) -> None:
        """Ask whether the file can be written.

        Raises:
            ConnectError: it can't, or the consumer is not started.
        """
        writer, _ = self._opened()
        if self._settling.problem is not None:
            raise as_connect_error(self._settling.problem, "can't write down what is done")
        await writer.ping()

    async def backlog(self) -> int | None:
        """How many events wait for this group, those under way included; counts them all.

        Raises:
            ConnectError: the file can't be read, or the consumer is not started.
        """
        member = None if self._membership is None else self._membership.member
        if member is None:
            return None
        writer, _ = self._opened()
        return await asyncio.to_thread(self._count, writer.connection.file, member.group)

    def _count(self, file: Path, group: str) -> int:
        try:
            with contextlib.closing(open_reader(file)) as db:
                return sum(feed.waiting(db, group) for feed in self._feeds)
        except sqlite3.Error as error:
            raise as_connect_error(error, "can't count") from error

    def _opened(self) -> tuple[Writer, sqlite3.Connection]:
        if self._writer is None or self._db is None:
            raise ConnectError(
                f"{BACKEND}: the consumer is not started", backend=BACKEND, retriable=False
            )
        if self._writer.lost is not None:
            raise as_connect_error(self._writer.lost, "can't go on")
        return self._writer, self._db


def _feeds(db: sqlite3.Connection, subscriptions: Sequence[Subscription]) -> list[Feed]:
    """One for each topic and pattern; those that differ in names of placeholders share one."""
    alike: dict[str, list[Subscription]] = {}
    for each in subscriptions:
        alike.setdefault(canonical(each.topic), []).append(each)
    return [
        Feed(
            db,
            members[0].pattern,
            f"wanted_{number}",
            tuple(each.topic for each in members) if len(alike) > 1 else None,
        )
        for number, members in enumerate(alike.values())
    ]
