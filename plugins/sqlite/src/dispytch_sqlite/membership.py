"""Membership: keeps a consumer in its group, and its shares as large as they should be."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from dispytch_sqlite.delivery import Share
from dispytch_sqlite.errors import WriteError, as_connect_error
from dispytch_sqlite.group import Balance, Member, State, balance, join, leave, renew, state_of
from dispytch_sqlite.reading import Feed
from dispytch_sqlite.settling import Settling
from dispytch_sqlite.writer import Writer

__all__ = ["Membership"]

logger = logging.getLogger("dispytch")

_OFTEN = 3  # times a lease is renewed while it lasts
_PAUSE = 1.0  # seconds until a member that could not come back tries again
_GRACE = 1.0  # seconds until what no handler works on is left to the next owner


class Membership:
    """A consumer's place in its group. Everything but the leases happens in the event loop.

    A lease is renewed by the writer's thread: handlers that hold the event loop up lose nothing.

    Args:
        writer: of the file.
        settling: of the consumer; knows the member.
        feeds: get the shares.
        wake: called when there may be something to receive.
        drain_timeout: seconds that handlers under way get when their share goes to another member.
    """

    def __init__(
        self,
        writer: Writer,
        settling: Settling,
        feeds: Sequence[Feed],
        wake: Callable[[], None],
        drain_timeout: float,
    ) -> None:
        self._writer, self._settling, self._wake = writer, settling, wake
        self._feeds = {feed.topic: feed for feed in feeds}
        self._drain_timeout = drain_timeout
        self._loop = asyncio.get_running_loop()
        self._state: State | None = None
        self._is_balancing = self._has_left = False
        self._entering: asyncio.Task[None] | None = None
        self._end_renewing: Callable[[], None] = lambda: None

    @property
    def member(self) -> Member | None:
        """Who we are in the group; None: there is none."""
        return self._settling.member

    # Coming and going

    def stay_alone(self, db: sqlite3.Connection) -> None:
        """Without a group everything from now on is ours."""
        (end,) = db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()
        for topic, feed in self._feeds.items():
            for number in range(self._writer.log.partitions):
                feed.shares[number] = Share(self._settling, topic, number, end)

    async def join(self, group: str) -> None:
        """Become a member, and take what is free.

        Raises:
            ConnectError: the file can't be written.
        """
        self._group = group
        try:
            await self._enter()
        except WriteError as error:
            raise as_connect_error(error, f"can't join the group {group!r}") from error
        every = self._writer.connection.lease / _OFTEN
        self._end_renewing = self._writer.every(every, self._renew, self._renewed)

    async def _enter(self) -> None:
        connection = self._writer.connection
        member = self._settling.member = await self._writer.run(
            partial(
                join,
                group=self._group,
                topics=list(self._feeds),
                lease=connection.lease,
                begin=connection.begins_at(),
            )
        )
        self._take(await self._writer.run(partial(balance, member=member)))

    async def leave(self) -> None:
        """Give everything back, and be a member no more."""
        self._has_left = True
        self._end_renewing()
        if self._entering is not None:
            await asyncio.wait({self._entering})
        member = self.member
        if member is None:
            return
        shares = self._shares()
        for share in shares:
            share.lose()
            share.is_leaving = True
        marks = [share.mark for share in shares]
        try:
            await self._writer.run(partial(leave, member=member, marks=marks))
        except WriteError as error:
            logger.warning(
                "sqlite: can't leave %r, its others wait for the end of the lease: %s",
                self._group, error,
            )  # fmt: skip

    def close(self) -> None:
        """Have nothing any more, whether the others know of it or not."""
        self._has_left = True
        self._end_renewing()
        if self._entering is not None:
            self._entering.cancel()
        for share in self._shares():
            share.lose()

    # In the writer's thread

    def _renew(self, db: sqlite3.Connection) -> State | None:
        member = self.member
        return None if member is None else renew(db, member)

    # What shares there are

    def look(self, db: sqlite3.Connection) -> None:
        """Somebody has written: see whether there are other members, or free partitions."""
        if self.member is not None:
            self._changed(state_of(db, self._group))

    def _renewed(self, told: Any) -> None:
        if self._has_left or isinstance(told, WriteError):
            return
        if told is None:
            self._expelled()
            return
        if self._entering is not None:
            return
        for share in self._shares():
            if share.told != share.position:
                share.told = share.position
                self._settling.touch(share)
        if told.dead:  # it was too early to bury them
            self._state = None
        self._changed(told)

    def _changed(self, state: State) -> None:
        """Look after our share, where anything is different from when we did last."""
        is_busy = self._is_balancing or self._has_left or self._entering is not None
        if state != self._state and self.member is not None and not is_busy:
            self._is_balancing = True
            writing = self._writer.run(partial(balance, member=self.member))
            writing.add_done_callback(self._balanced)

    def _balanced(self, writing: "asyncio.Future[Balance | None]") -> None:
        self._is_balancing = False
        if self._has_left or self._entering is not None or writing.exception() is not None:
            return  # the next renewal tries again
        self._take(writing.result())

    def _take(self, balance: Balance | None) -> None:
        if balance is None:
            self._expelled()
            return
        self._state = balance.state
        for claim in balance.claims:
            self._feeds[claim.topic].shares[claim.partition] = Share(
                self._settling,
                claim.topic,
                claim.partition,
                claim.position,
                cursor=claim.cursor,
                epoch=claim.epoch,
                left=[(seq, times) for seq, times in claim.open],
            )
        for topic, count in balance.surplus.items():
            self._give_away(self._feeds[topic], count)
        self._wake()

    def _give_away(self, feed: Feed, count: int) -> None:
        """Let others have so many partitions: the quietest ones, when their handlers are done."""
        ours = [share for share in feed.shares.values() if share.is_ours]
        staying = sorted(
            (share for share in ours if not share.is_leaving), key=lambda share: len(share.held)
        )
        leaving = staying[: max(count - (len(ours) - len(staying)), 0)]
        for share in leaving:
            share.is_leaving = True
            self._settling.touch(share)
        self._loop.call_later(_GRACE, self._end_leaving, leaving, Share.leave_unbegun)
        self._loop.call_later(self._drain_timeout, self._end_leaving, leaving, Share.leave_all)

    def _end_leaving(self, shares: Iterable[Share], end: Callable[[Share], None]) -> None:
        for share in shares:
            if share.is_ours:
                end(share)
                self._settling.touch(share)

    def _expelled(self) -> None:
        """We were taken for dead: what we had is with others. Come back as somebody else."""
        for share in self._shares():
            share.lose()
        if self._entering is None:
            logger.warning(
                "sqlite: this member of %r renewed its lease too late and was taken for dead; what "
                "it had under way comes again", self._group,
            )  # fmt: skip
            self._entering = self._loop.create_task(self._enter_again())

    async def _enter_again(self) -> None:
        try:
            while not self._has_left:
                try:
                    await self._enter()
                except WriteError as error:
                    logger.warning("sqlite: can't join %r again: %s", self._group, error)
                    await asyncio.sleep(_PAUSE)
                else:
                    return
        finally:
            self._entering = None

    def _shares(self) -> list[Share]:
        every = (share for feed in self._feeds.values() for share in feed.shares.values())
        return [share for share in every if share.is_ours]
