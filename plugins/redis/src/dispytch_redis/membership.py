"""Membership: keeps a consumer in its group, and its shards as many as they should be."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence

from redis.exceptions import RedisError

from dispytch import ConnectError
from dispytch_redis.errors import WireError, as_connect_error
from dispytch_redis.keys import Keys
from dispytch_redis.link import Link
from dispytch_redis.script import BALANCE, LEAVE, RELEASE
from dispytch_redis.settling import Settling
from dispytch_redis.shard import Shard
from dispytch_redis.wire import Argument, Wire

__all__ = ["Membership"]

logger = logging.getLogger("dispytch.redis")

_OFTEN = 3  # times a lease is renewed while it lasts, at least
_PAUSE = 1.0  # seconds until the group is looked at again, at most
_GRACE = 1.0  # seconds until what no handler works on is left to the next owner


class Membership:
    """A consumer's place in its group.

    Args:
        link: to the server.
        keys: names in Redis.
        settling: of the consumer; knows the group, and who we are in it.
        lease: seconds after which the others take over what we had, unless we renew it.
        drain_timeout: seconds that handlers under way get when their shard goes to another member.
        wake: called when there may be something to receive.

    Attributes:
        shards: what is ours, by name.
        heard: the last change of the group that we heard of.
        wake: as given.
        problem: why the lease could not be renewed; None: it was.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        settling: Settling,
        lease: float,
        drain_timeout: float,
        wake: Callable[[], None],
    ) -> None:
        self._link, self._keys, self._settling = link, keys, settling
        self._lease, self._drain_timeout, self.wake = lease, drain_timeout, wake
        self._loop = asyncio.get_running_loop()
        self._topics: dict[str, tuple[str, int]] = {}
        settling.member = uuid.uuid4().hex
        self._is_new = self._is_stale = True
        self._change = ""
        self._keeper: asyncio.Task[None] | None = None
        self._lapsing: asyncio.TimerHandle | None = None
        self._look = asyncio.Event()
        self.shards: dict[str, Shard] = {}
        self.heard = "0-0"
        self.problem: ConnectError | None = None

    async def join(self, topics: dict[str, int]) -> None:
        """Become a member, and take what is free.

        Args:
            topics: how many shards each has.

        Raises:
            ConnectError: the server does not let us.
        """
        self.add(topics)
        wire = self._link.wire
        if wire is None:
            raise self._link.down()
        try:
            await self._balance(wire)
        except (RedisError, WireError) as error:
            raise as_connect_error(error) from error
        self._keeper = self._loop.create_task(self._keep())

    def add(self, topics: dict[str, int]) -> None:
        """Topics that we receive, too; how many shards each has."""
        for topic, count in topics.items():
            self._topics[self._keys.topic(topic)] = (topic, count)
        self._look.set()

    def look(self, change: str | None = None) -> None:
        """Others came or went, or shards are free: see what is ours now."""
        if change != self.heard:
            self.heard = change or self.heard
            self._look.set()

    async def leave(self) -> None:
        """Give everything back, and be a member no more."""
        await self._end_keeping()
        for shard in self.shards.values():
            if shard.is_ours:
                shard.leave_all()
        wire, keys = self._link.wire, self._settling.keys
        if wire is not None:
            names = [keys.members, keys.subscriptions, keys.owners, keys.changes]
            try:
                await LEAVE.run(wire, names, self._settling.member)
            except (RedisError, WireError) as error:
                logger.warning(
                    "redis: can't leave %r, its others wait for the end of the lease: %s",
                    self._settling.group, type(error).__name__,
                )  # fmt: skip

    async def close(self) -> None:
        """Have nothing any more, whether the others know of it or not."""
        await self._end_keeping()
        self._lose(self.shards.values())

    async def _end_keeping(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        if self._lapsing is not None:
            self._lapsing.cancel()

    # Renewing

    async def _keep(self) -> None:
        """Renew the lease often enough, and look after our shards where anything changed."""
        while True:
            self._look.clear()
            wire = self._link.wire
            try:
                if wire is not None:
                    await self._balance(wire)
                    self.problem = None
            except WireError:
                pass  # the link tells
            except RedisError as error:
                self.problem = as_connect_error(error)
            except Exception:
                logger.exception("redis: a mistake while renewing the lease")
            try:
                async with asyncio.timeout(min(self._lease / _OFTEN, _PAUSE)):
                    await self._look.wait()
                await self._give_free()
            except TimeoutError:
                pass

    def _lapse(self) -> None:
        """The lease is over: others may have what we have. No handler begins before we know.

        A timer, so that it comes before anything else where this process stood still.
        """
        self._lapse_at(self._loop.time() + self._lease)
        for shard in self.shards.values():
            if shard.is_ours:
                shard.doubt()

    def _lapse_at(self, when: float) -> None:
        if self._lapsing is not None:
            self._lapsing.cancel()
        self._lapsing = self._loop.call_at(when, self._lapse)

    async def _balance(self, wire: Wire) -> None:
        keys, before = self._settling.keys, self._loop.time()
        known, self._is_stale = "" if self._is_stale else self._change, False
        self._change = ""  # until the server has told what is
        topics: list[Argument] = []
        for name, (_, count) in self._topics.items():
            topics += (name, count)
        told = await BALANCE.run(
            wire,
            [keys.members, keys.subscriptions, keys.owners, keys.changes],
            self._settling.member,
            int(self._lease * 1000),
            int(self._is_new),
            known,
            *topics,
        )
        if told is None:
            self._expelled()
            return
        self._is_new = False
        self._lapse_at(before + self._lease)
        self._change = self.heard = told[0].decode()
        if len(told) > 1:
            self._take({name.decode() for name in told[1]})
            for name, count in zip(told[2][::2], told[2][1::2], strict=True):
                self._give_away(self._topics[name.decode()][0], count)

    def _expelled(self) -> None:
        """We were taken for dead: what we had is with others. Come back as somebody else."""
        logger.warning(
            "redis: this member of %r was taken for dead, as it renewed its lease too late or the "
            "server lost its data; what it had under way comes again", self._settling.group,
        )  # fmt: skip
        self._lose(self.shards.values())
        self.shards.clear()
        self._settling.member, self._is_new = uuid.uuid4().hex, True
        self._look.set()

    # What is ours

    def _take(self, names: set[str]) -> None:
        lost = [shard for name, shard in self.shards.items() if name not in names]
        self._lose(lost)
        for shard in lost:
            del self.shards[shard.name]
        for name in names - self.shards.keys():
            topic = self._topics[name.rpartition(":")[0]][0]
            self.shards[name] = Shard(self._settling, topic, name, self._keys.stream(name))
        self.wake()

    @staticmethod
    def _lose(shards: Iterable[Shard]) -> None:
        for shard in shards:
            shard.lose()

    def lost(self, shards: Sequence[Shard]) -> None:
        """Shards turned out not to be ours."""
        lost = [shard for shard in shards if shard.is_ours]
        if lost:
            logger.warning(
                "redis: %d shards of %r are not this member's any more; what it had under way of "
                "them comes again", len(lost), self._settling.group,
            )  # fmt: skip
        self._lose(lost)
        for shard in lost:
            del self.shards[shard.name]
        self._is_stale = True
        self._look.set()

    def _give_away(self, topic: str, count: int) -> None:
        """Let others have so many shards: the quietest ones, when their handlers are done."""
        ours = [shard for shard in self.shards.values() if shard.topic == topic]
        staying = sorted(
            (shard for shard in ours if not shard.is_leaving), key=lambda shard: len(shard.held)
        )
        leaving = staying[: max(count - (len(ours) - len(staying)), 0)]
        for shard in leaving:
            shard.is_leaving = True
        self._loop.call_later(_GRACE, self._end_leaving, leaving, Shard.leave_unbegun)
        self._loop.call_later(self._drain_timeout, self._end_leaving, leaving, Shard.leave_all)
        self._look.set()

    def _end_leaving(self, shards: Sequence[Shard], end: Callable[[Shard], None]) -> None:
        for shard in shards:
            if shard.is_ours:
                end(shard)
        self._look.set()

    async def _give_free(self) -> None:
        """Give away what is to be given away and has nothing under way."""
        free = [shard for shard in self.shards.values() if shard.is_free]
        wire, keys = self._link.wire, self._settling.keys
        if not free or wire is None:
            return
        for shard in free:
            shard.lose()
            del self.shards[shard.name]
        try:
            await RELEASE.run(
                wire,
                [keys.owners, keys.changes],
                self._settling.member,
                *(shard.name for shard in free),
            )
        except (RedisError, WireError):
            self._is_stale = True  # they may still be ours: then we take them again
