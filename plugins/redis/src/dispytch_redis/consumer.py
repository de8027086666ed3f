"""RedisConsumer: receives events from streams."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Self

from redis.exceptions import RedisError

from dispytch import ConfigError, ConnectError, Consumer, Delivery, Subscription
from dispytch_redis.connection import RedisConnection
from dispytch_redis.errors import BACKEND, WireError, as_connect_error
from dispytch_redis.following import Follower
from dispytch_redis.keys import Keys
from dispytch_redis.link import Link
from dispytch_redis.membership import Membership
from dispytch_redis.news import News
from dispytch_redis.producer import RedisProducer
from dispytch_redis.reading import Reader
from dispytch_redis.settling import Settling
from dispytch_redis.shard import RedisDelivery
from dispytch_redis.subscribed import Subscribed
from dispytch_redis.wire import Wire

__all__ = ["RedisConsumer"]

_LAST_CALLS = 3.0  # seconds that stopping waits until the server knows what is done


class RedisConsumer(Consumer):
    """Receives events from Redis Streams.

    The keys of a topic are spread over shards, and each shard is with one member of a group at a
    time. A member that dies is replaced when its lease is over. Without a group it gets what is
    emitted from now on, and leaves nothing behind.

    Args:
        connection: where the server is, and how it is used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND
    delays = True

    def __init__(self, connection: RedisConnection) -> None:
        if not isinstance(connection, RedisConnection):
            raise ConfigError(
                f"RedisConsumer takes a RedisConnection, not a {type(connection).__name__}; "
                "or use EventListener.from_url('redis://localhost')"
            )
        self._connection = connection
        self._keys = Keys(connection.prefix)
        self._link = Link(connection, BACKEND, lost=self._lost, renewed=self._renewed)
        self._ready: deque[RedisDelivery] = deque()
        self._fetching: asyncio.Task[None] | None = None
        self._reader: Reader | Follower | None = None
        self._membership: Membership | None = None

    @classmethod
    def from_connection(cls, connection: RedisConnection, /) -> Self:
        """The consumer of the server a URL names."""
        return cls(connection)

    def dead_letter_producer(self) -> RedisProducer:
        """A producer on the same server."""
        return RedisProducer(self._connection)

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        if self._link.is_kept:
            return
        self._fetching = self._reader = self._membership = None  # of a loop or process before
        self._ready.clear()
        self._news = News(self._connection)
        await self._link.open()
        try:
            await self._news.open()
        except BaseException:
            await self._link.close()
            raise
        self._settling = Settling(self._link, self._wake)

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Join the group; without one, begin at the ends of the topics.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
            ConfigError: the subscriptions are of several groups.
        """
        groups = {each.group for each in subscriptions}
        if len(groups) > 1:
            raise ConfigError(f"{BACKEND}: a consumer belongs to one group, not to several")
        wire, group = self._opened(), groups.pop() if groups else None
        self._topics = Subscribed(self._keys, self._connection, subscriptions, group)
        try:
            topics = await self._topics.begin(wire)
            if group is None:
                follower = Follower(self._settling, self._keys)
                await follower.begin(wire, topics)
                self._reader = follower
                return
        except (RedisError, WireError) as error:
            raise as_connect_error(error) from error
        self._settling.group, self._settling.keys = group, self._keys.group(group)
        self._membership = Membership(
            self._link,
            self._keys,
            self._settling,
            self._connection.lease,
            self.drain_timeout,
            self._wake,
        )
        self._reader = Reader(self._settling, self._membership)
        await self._membership.join(topics)

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for events. What was fetched when it is cancelled is returned by the next one.

        Raises:
            ConnectError: there is no connection, or the server refuses to be read.
        """
        while True:
            taken: list[Delivery] = []
            while self._ready and len(taken) < limit:
                if not (delivery := self._ready.popleft()).lost:
                    taken.append(delivery)
            if taken:
                return taken
            fetching = self._fetching = self._fetching or asyncio.create_task(self._fetch(limit))
            await asyncio.wait((fetching,))
            self._fetching = None
            if not fetching.cancelled():  # else it was stopped meanwhile
                fetching.result()

    async def _fetch(self, limit: int) -> None:
        """Wait until there is something, and take it; or return after a while."""
        reader = self._reader
        if reader is None:
            raise ConnectError(
                f"{BACKEND}: the consumer is not subscribed", backend=BACKEND, retriable=False
            )
        self._ready += self._settling.take_again(limit)
        if self._ready:
            return
        wire = self._opened()
        try:
            await reader.read(wire, limit, self._ready)
            if self._ready:
                return
            marks = {**reader.marks(), **self._topics.marks()}
            came = await self._news.wait(marks, reader.next_due())
            reader.hear(came)
            if fresh := await self._topics.look(wire, came):
                reader.add(fresh)
            if came and self._reader is reader:  # at once; it may have been stopped meanwhile
                await reader.read(self._opened(), limit, self._ready)
        except (RedisError, WireError) as error:
            reader.look_again()
            failure = as_connect_error(error)
            failure.retriable = True  # it let us before, and may do so again
            raise failure from error

    async def stop(self) -> None:
        """Give back what is not settled, leave the group, disconnect."""
        if not self._link.is_kept:
            return
        fetching, self._fetching = self._fetching, None
        self._reader = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_CALLS if self._link.wire is not None else 0):
                    await self._settling.idle()
                    if fetching is not None:  # what it is given is given back, too
                        self._news.tell()
                        await asyncio.wait((fetching,))
                    if self._membership is not None:
                        await self._membership.leave()
        finally:
            if fetching is not None:
                fetching.cancel()
                await asyncio.wait((fetching,))
                if not fetching.cancelled():
                    fetching.exception()  # it is of no use to anybody
            if self._membership is not None:
                await self._membership.close()
            self._settling.abandon()
            await self._news.close()
            await self._link.close()

    async def ping(self) -> None:
        """Ask the server for a sign of life.

        Raises:
            ConnectError: there is none, or what is done can't be told, or it is not started.
        """
        self._opened()
        problem = self._settling.problem or (self._membership and self._membership.problem)
        if problem:
            raise problem
        await self._link.ping()

    async def backlog(self) -> int | None:
        """How many events wait for this group, those under way included; None: not known.

        Raises:
            ConnectError: the server can't be asked, or the consumer is not started.
        """
        if self._membership is None:
            return None
        try:
            return await self._topics.backlog(self._opened())
        except (RedisError, WireError) as error:
            raise as_connect_error(error) from error

    def _opened(self) -> Wire:
        if not self._link.is_kept:
            raise ConnectError(
                f"{BACKEND}: the consumer is not started", backend=BACKEND, retriable=False
            )
        if (wire := self._link.wire) is None:
            raise self._link.down()
        return wire

    def _wake(self) -> None:
        self._news.tell()
        if self._membership is not None and any(
            shard.is_leaving for shard in self._membership.shards.values()
        ):
            self._membership.look()

    def _lost(self) -> None:
        """The connection ended: a reply that would have given us something may be lost."""
        if self._reader is not None:
            self._reader.look_again()
        self._news.tell()

    def _renewed(self) -> None:
        if self._membership is not None:
            self._membership.look()
        self._news.tell()
