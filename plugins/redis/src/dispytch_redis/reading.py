"""Reader: what a member of a group takes from the shards that are its own."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from dispytch_redis.entry import message_of
from dispytch_redis.membership import Membership
from dispytch_redis.script import BEGIN, CLAIM, DUE, READ
from dispytch_redis.settling import Settling
from dispytch_redis.shard import RedisDelivery, Shard, read_again
from dispytch_redis.wire import Wire

__all__ = ["Reader"]

logger = logging.getLogger("dispytch.redis")

_BYTES = 1024 * 1024  # of events, read in one step, and one more read
_SHARDS = 500  # looked at in one step
_PAGE = 100  # of what is pending


class Reader:
    """Reads for one member.

    Args:
        settling: of the consumer; knows the group, and who we are in it.
        membership: has the shards.
    """

    def __init__(self, settling: Settling, membership: Membership) -> None:
        self._settling, self._membership = settling, membership
        self._turn = 0

    async def read(self, wire: Wire, limit: int) -> list[RedisDelivery]:
        """What can be delivered now, up to `limit`; nothing where there is nothing.

        What was put off and is due comes first, then what the owner before us left open, then what
        is new; of one shard nothing new before all that was left open.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`; look at what is pending again.
        """
        shards = [shard for shard in self._membership.shards.values() if shard.is_read]
        if fresh := [shard for shard in shards if shard.last is None]:
            await asyncio.gather(*(self._enter(wire, shard) for shard in fresh))
        taken: list[RedisDelivery] = []
        now = asyncio.get_running_loop().time()
        for shard in shards:
            if len(taken) < limit and shard.due is not None and shard.due <= now:
                await self._take_due(wire, shard, taken, limit)
        for shard in shards:
            while len(taken) < limit and shard.recovered is not None and shard.is_read:
                await self._recover(wire, shard, taken, limit)
        if len(taken) < limit:
            ready = [shard for shard in shards if shard.recovered is None and shard.is_read]
            await self._take_new(wire, ready, taken, limit)
        return taken

    def marks(self) -> dict[str, str]:
        """What tells of something to do, and up to where it was read."""
        shards = self._membership.shards.values()
        marks = {shard.stream: shard.last for shard in shards if shard.is_read and shard.last}
        marks[self._settling.keys.changes] = self._membership.change
        return marks

    def look(self) -> None:
        """The group has changed."""
        self._membership.look()

    def add(self, topics: dict[str, int]) -> None:
        """Topics that are new; how many shards each has."""
        self._membership.add(topics)

    def next_due(self) -> float | None:
        """When something is due that was put off, on the loop's clock."""
        shards = self._membership.shards.values()
        return min(
            (shard.due for shard in shards if shard.is_read and shard.due is not None), default=None
        )

    def look_again(self) -> None:
        """A reply was lost: what it gave us is pending."""
        for shard in self._membership.shards.values():
            shard.look_again()

    async def _enter(self, wire: Wire, shard: Shard) -> None:
        """Learn how far the group is with a shard that has become ours."""
        keys = [shard.stream, self._settling.keys.later(shard.name)]
        last, is_made, due = await BEGIN.run(wire, keys, self._settling.group or "")
        if is_made:
            self._tell_made(shard)
        shard.last = last.decode()
        shard.due = _in(due)

    async def _take_due(
        self, wire: Wire, shard: Shard, taken: list[RedisDelivery], limit: int
    ) -> None:
        keys, group = self._settling.keys, self._settling.group or ""
        names = [keys.owners, shard.stream, keys.later(shard.name), keys.later_data(shard.name)]
        told = await DUE.run(
            wire, names, group, self._settling.member, shard.name, limit - len(taken)
        )
        if told is None:
            self._membership.lost(shard)
            return
        entries, due = told
        for id_, fields, written in entries:
            attempt, headers = read_again(written)
            message = message_of(fields)
            message.headers = headers
            self._take(shard, id_.decode(), message, attempt + 1, taken, is_retry=True)
        shard.due = _in(due)

    async def _recover(
        self, wire: Wire, shard: Shard, taken: list[RedisDelivery], limit: int
    ) -> None:
        """Take over a part of what was delivered and is not settled, and not under way here."""
        group, start = self._settling.group or "", shard.recovered or "-"
        count = min(_PAGE, limit - len(taken))
        page = await wire.call("XPENDING", shard.stream, group, start, "+", count)
        times = {
            each[0].decode(): int(each[3])
            for each in page
            if each[0].decode() not in shard.held and each[0].decode() not in shard.ending
        }
        if times:
            keys = [self._settling.keys.owners, shard.stream, self._settling.keys.later(shard.name)]
            told = await CLAIM.run(wire, keys, group, self._settling.member, shard.name, *times)
            if told is None:
                self._membership.lost(shard)
                return
            entries, is_due, gone = told
            if gone:
                logger.warning(
                    "redis: %d events of %s were deleted before they were settled; they are lost",
                    gone, shard.stream,
                )  # fmt: skip
            if is_due:
                shard.due = asyncio.get_running_loop().time()
            for id_, fields in filter(None, entries):
                name = id_.decode()
                self._take(shard, name, message_of(fields), times[name] + 1, taken)
        shard.recovered = f"({page[-1][0].decode()}" if len(page) == count else None

    async def _take_new(
        self, wire: Wire, shards: Sequence[Shard], taken: list[RedisDelivery], limit: int
    ) -> None:
        self._turn += 1
        for first in range(0, len(shards), _SHARDS):
            part = shards[first : first + _SHARDS]
            turn = self._turn % len(part)
            part = [*part[turn:], *part[:turn]]
            await self._read_part(wire, part, taken, limit)
            if len(taken) >= limit:
                return

    async def _read_part(
        self, wire: Wire, shards: Sequence[Shard], taken: list[RedisDelivery], limit: int
    ) -> None:
        keys = self._settling.keys
        change, lost, made, found = await READ.run(
            wire,
            [keys.owners, keys.changes, *(shard.stream for shard in shards)],
            self._settling.group or "",
            self._settling.member,
            limit - len(taken),
            _BYTES,
            *(shard.name for shard in shards),
        )
        for place in lost:
            self._membership.lost(shards[place])
        for place in made:
            self._tell_made(shards[place])
        for place, entries in found:
            shard = shards[place]
            for id_, fields in entries:
                self._take(shard, id_.decode(), message_of(fields), 1, taken)
            shard.last = entries[-1][0].decode()
        self._membership.look(change.decode())

    def _take(
        self, shard: Shard, id_: str, message: Any, attempt: int, taken: list[RedisDelivery],
        *, is_retry: bool = False,
    ) -> None:  # fmt: skip
        if message.expires_ms is not None and message.expires_ms <= time.time() * 1000:
            self._settling.drop(shard, id_)
        elif shard.is_ours:  # else it is pending, and the next owner's
            taken.append(RedisDelivery(shard, id_, message, attempt, is_retry=is_retry))

    def _tell_made(self, shard: Shard) -> None:
        logger.warning(
            "redis: the group %r was gone from %s, as after a loss of data, and is made again; it "
            "begins with the first event that is there", self._settling.group, shard.stream,
        )  # fmt: skip


def _in(milliseconds: int | None) -> float | None:
    """So many from now, on the loop's clock; a little later, as the server's clock has ms only."""
    if milliseconds is None:
        return None
    return asyncio.get_running_loop().time() + (milliseconds + 1) / 1000
