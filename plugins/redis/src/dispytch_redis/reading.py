"""Reader: what a member of a group takes from the shards that are its own."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from dispytch_redis.entry import message_of
from dispytch_redis.membership import Membership
from dispytch_redis.script import BEGIN, CLAIM, DUE, READ, Script
from dispytch_redis.settling import Settling
from dispytch_redis.shard import STEP_BYTES, RedisDelivery, Shard, in_turn, read_again
from dispytch_redis.wire import Argument, Wire

__all__ = ["Reader"]

logger = logging.getLogger("dispytch.redis")

_PAGE = 100  # of what is pending

_Entry: TypeAlias = tuple[bytes, int, list[bytes], bytes | None]
"""Id, attempt, fields, and what comes with it where it had been put off."""


class Reader:
    """Reads for one member.

    Args:
        settling: of the consumer; knows the group, and who we are in it.
        membership: has the shards.
    """

    def __init__(self, settling: Settling, membership: Membership) -> None:
        self._settling, self._membership = settling, membership
        self._turn = 0
        self._came: Mapping[str, str] = {}

    async def read(self, wire: Wire, limit: int, taken: deque[RedisDelivery]) -> None:
        """Add what can be delivered now to `taken`, until it holds `limit`.

        What was put off and is due comes first, then what the owner before us left open, then what
        is new; of one shard nothing new before all that was left open.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`; look at what is pending again.
        """
        shards = [shard for shard in self._membership.shards.values() if shard.is_read]
        for shard in shards:
            shard.is_asked = True
        try:
            await self._read(wire, limit, shards, taken)
        finally:
            for shard in shards:
                shard.is_asked = False
            if any(shard.is_free for shard in shards):
                self._membership.look()

    async def _read(
        self, wire: Wire, limit: int, shards: Sequence[Shard], taken: deque[RedisDelivery]
    ) -> None:
        if fresh := [shard for shard in shards if shard.last is None]:
            await asyncio.gather(*(self._enter(wire, shard) for shard in fresh))
        now = asyncio.get_running_loop().time()
        for shard in shards:
            if shard.due is not None and shard.due <= now and _has_room(taken, limit):
                await self._take_due(wire, shard, taken, limit)
        for shard in shards:
            while shard.recovered is not None and shard.is_read and _has_room(taken, limit):
                await self._recover(wire, shard, taken, limit)
        if _has_room(taken, limit):
            ready = [shard for shard in shards if shard.recovered is None and shard.is_read]
            await self._take_new(wire, ready, taken, limit)

    def marks(self) -> dict[str, str]:
        """What tells of something to do, and up to where it was read."""
        shards = self._membership.shards.values()
        marks = {shard.stream: shard.last for shard in shards if shard.is_read and shard.last}
        marks[self._settling.keys.changes] = self._membership.heard
        return marks

    def hear(self, came: Mapping[str, str]) -> None:
        """What there was news of, and the first id of it."""
        self._came = came
        if change := came.get(self._settling.keys.changes):
            self._membership.look(change)

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
        _, *keys = self._settling.names(shard)
        last, is_made, due = await BEGIN.run(wire, keys, self._settling.group or "")
        if is_made:
            logger.warning(
                "redis: the group %r was gone from %s, as after a loss of data, and is made again; "
                "it begins with the first event that is there", self._settling.group, shard.stream,
            )  # fmt: skip
        shard.last = last.decode()
        shard.due = _in(due)

    async def _take_due(
        self, wire: Wire, shard: Shard, taken: deque[RedisDelivery], limit: int
    ) -> None:
        told = await self._ask(DUE, wire, shard, limit - len(taken), STEP_BYTES)
        if told is None:
            return
        entries, due = told
        shard.due = _in(due)
        self._take(shard, entries, taken)

    async def _recover(
        self, wire: Wire, shard: Shard, taken: deque[RedisDelivery], limit: int
    ) -> None:
        """Take over a part of what was delivered and is not settled, and not under way here."""
        group, start = self._settling.group or "", shard.recovered or "-"
        page = await wire.call("XPENDING", shard.stream, group, start, "+", _PAGE)
        found = [(each[0].decode(), each[3]) for each in page]
        wanted = [
            each for each in found if each[0] not in shard.held and each[0] not in shard.ending
        ]
        looked = 0
        if asked := wanted[: limit - len(taken)]:
            arguments: list[Argument] = []
            for id_, times in asked:
                attempt = shard.attempts.setdefault(id_, times + shard.is_inherited)
                arguments += (id_, attempt)
            told = await self._ask(CLAIM, wire, shard, STEP_BYTES, *arguments)
            if told is None:
                return
            looked, gone, entries = told
            if gone:
                logger.warning(
                    "redis: %d events of %s were deleted before they were settled; they are lost",
                    gone, shard.stream,
                )  # fmt: skip
            self._take(shard, entries, taken)
        if looked < len(wanted):
            shard.recovered = f"({asked[looked - 1][0]}"
        elif len(page) == _PAGE:
            shard.recovered = f"({found[-1][0]}"
        else:
            shard.recovered, shard.is_inherited = None, False
            shard.attempts.clear()

    async def _ask(self, script: Script, wire: Wire, shard: Shard, *arguments: Argument) -> Any:
        """Run a script on a shard; None: what it told is of no use.

        It is another member's by now; or we have to look again, and then find what this gave us.
        """
        settling, looks = self._settling, shard.looks
        group, names = settling.group or "", settling.names(shard)
        told = await script.run(wire, names, group, settling.member, shard.name, *arguments)
        if told is None:
            self._membership.lost([shard])
        return told if shard.is_ours and shard.looks == looks else None

    async def _take_new(
        self, wire: Wire, shards: Sequence[Shard], taken: deque[RedisDelivery], limit: int
    ) -> None:
        self._turn += 1
        for part in in_turn(shards, self._turn):
            await self._read_part(wire, part, taken, limit)
            if len(taken) >= limit:
                break
        self._came = {}

    async def _read_part(
        self, wire: Wire, shards: Sequence[Shard], taken: deque[RedisDelivery], limit: int
    ) -> None:
        keys = self._settling.keys
        change, lost, gone, found = await READ.run(
            wire,
            [keys.owners, keys.changes, *(shard.stream for shard in shards)],
            self._settling.group or "",
            self._settling.member,
            limit - len(taken),
            STEP_BYTES,
            *(shard.name for shard in shards),
        )
        if lost:
            self._membership.lost([shards[place] for place in lost])
        for place in gone:
            shards[place].look_again()
            self._membership.wake()
        for place, entries in found:
            shard = shards[place]
            if shard.is_ours and shard.recovered is None:  # else it is found as pending
                self._take(shard, ((id_, 1, fields, None) for id_, fields in entries), taken)
                shard.last = entries[-1][0].decode()
        self._membership.look(change.decode())
        if not found:
            self._look_for_news(shards)

    def _look_for_news(self, shards: Sequence[Shard]) -> None:
        """Nothing was there to be read: what is new is with somebody who has set the group on."""
        for shard in shards:
            came = self._came.get(shard.stream)
            if came is not None and shard.last is not None and _order(came) > _order(shard.last):
                shard.look_again()
                self._membership.wake()

    def _take(self, shard: Shard, entries: Iterable[_Entry], taken: deque[RedisDelivery]) -> None:
        now = time.time() * 1000
        for id_, attempt, fields, written in entries:
            name, message, is_retry = id_.decode(), message_of(fields), written is not None
            shard.attempts.pop(name, None)
            if name in shard.held or name in shard.ending:  # the group has been set back
                continue
            if message.expires_ms is not None and message.expires_ms <= now:
                self._settling.drop(shard, name, is_retry=is_retry)
                continue
            if written is not None:
                message.headers = read_again(written)
            taken.append(RedisDelivery(shard, name, message, attempt, is_retry=is_retry))


def _order(id_: str) -> tuple[int, ...]:
    return tuple(map(int, id_.split("-")))


def _has_room(taken: deque[RedisDelivery], limit: int) -> bool:
    return len(taken) < limit and sum(len(each.payload) for each in taken) < STEP_BYTES


def _in(milliseconds: int | None) -> float | None:
    """So many from now, on the loop's clock; a little later, as the server's clock has ms only."""
    if milliseconds is None:
        return None
    return asyncio.get_running_loop().time() + (milliseconds + 1) / 1000
