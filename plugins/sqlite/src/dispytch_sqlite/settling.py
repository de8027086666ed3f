"""Settling: tells the file what is done, and keeps what is to come again."""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from dispytch import SettleError
from dispytch_sqlite.delivery import Share, SQLiteDelivery
from dispytch_sqlite.errors import WriteError
from dispytch_sqlite.group import Member, Retry, commit
from dispytch_sqlite.log import written_headers
from dispytch_sqlite.writer import Writer

__all__ = ["Settling"]

_PAUSE = 0.2  # seconds until what could not be written is written again

_NOT_OURS = "its partition is another member's, or the consumer was stopped: it comes again"

_Waiter: TypeAlias = tuple[Share, "asyncio.Future[None]"]


class Settling:
    """Settles the deliveries of one consumer; those of a moment in one commit.

    What can't be written for now, because another process writes or the disk is full, is kept and
    tried again: the event is done, and must not run twice for that.

    Args:
        writer: of the file.
        wake: called when there is something to be delivered again, or a share is free.

    Attributes:
        member: for whom; None: there is no group, and nothing to be written down.
        problem: why nothing can be written now; None: it can.
    """

    def __init__(self, writer: Writer, wake: Callable[[], None]) -> None:
        self._writer, self._wake = writer, wake
        self._loop = asyncio.get_running_loop()
        self.member: Member | None = None
        self.problem: WriteError | None = None
        self._nacked: list[SQLiteDelivery] = []
        self._touched: dict[Share, None] = {}
        self._retries: list[Retry] = []
        self._retried: list[tuple[int, int]] = []
        self._waiting: list[_Waiter] = []
        self._is_busy = self._is_over = False
        self._idle: asyncio.Future[None] | None = None

    # What becomes of a delivery

    def done(self, delivery: SQLiteDelivery) -> "asyncio.Future[None]":
        """It is done; a future of when that is written down."""
        delivery.share.let_go(delivery)
        if delivery.is_retry:
            self._retried.append((delivery.share.cursor, delivery.seq))
        return self._written(delivery.share)

    def later(self, delivery: SQLiteDelivery, delay: float) -> "asyncio.Future[None]":
        """It is to come again after so many seconds; a future of when that is written down."""
        delivery.share.let_go(delivery)
        if self.member is None:
            self._loop.call_later(delay, self._come_again, delivery)
        else:
            headers = written_headers(delivery.headers)
            visible_ms = int((time.time() + delay) * 1000) + 1
            share, attempt = delivery.share, delivery.attempt
            self._retries.append(Retry(share.cursor, delivery.seq, attempt, visible_ms, headers))
        return self._written(delivery.share)

    def again(self, delivery: SQLiteDelivery) -> None:
        """It is to come again at once."""
        delivery.share.let_go(delivery)
        self._come_again(delivery)

    def take_again(self, limit: int) -> list[SQLiteDelivery]:
        """What is to come again at once, the oldest first."""
        if not self._nacked:
            return []
        self._nacked = [each for each in self._nacked if not each.lost]
        self._nacked.sort(key=lambda delivery: delivery.seq)
        taken, self._nacked = self._nacked[:limit], self._nacked[limit:]
        return taken

    def drop(self, share: Share, seq: int) -> None:
        """An event that was to come again is not there any more."""
        self._retried.append((share.cursor, seq))
        self.touch(share)

    def _come_again(self, old: SQLiteDelivery) -> None:
        message = (old.topic, old.payload, old.key, old.headers, old.attempt + 1, old.via)
        again = SQLiteDelivery(old.share, old.seq, *message, is_retry=old.is_retry)
        self._nacked.append(again)
        self._wake()

    # Writing it down

    def touch(self, share: Share) -> None:
        """Write down, soon, how far a share is."""
        if share.cursor:
            self._touched[share] = None
            self._begin()

    async def idle(self) -> None:
        """Wait until everything is written down."""
        if self._is_busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def abandon(self) -> None:
        """Write nothing more; who waits gets a SettleError."""
        self._is_over = True
        self._touched.clear()
        self._fail(self._waiting)

    def _fail(self, waiting: Iterable[_Waiter]) -> None:
        for _, future in waiting:
            if not future.done():
                future.set_exception(SettleError(_NOT_OURS))

    def _written(self, share: Share) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = self._loop.create_future()
        if share.cursor:
            self._waiting.append((share, future))
            self.touch(share)
        else:
            future.set_result(None)
        return future

    def _begin(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._touched or self.member is None:
            self._is_busy = False
            if self._idle is not None:
                self._idle.set_result(None)
                self._idle = None
            return
        shares, self._touched = list(self._touched), {}
        waiting, self._waiting = self._waiting, []
        retries, self._retries = self._retries, []
        retried, self._retried = self._retried, []
        marks = [share.mark for share in shares]
        write = partial(commit, member=self.member, marks=marks, retries=retries, retried=retried)

        def done(writing: "asyncio.Future[set[int]]") -> None:
            error = writing.exception()
            if self._is_over and error is not None:
                self._fail(waiting)
                return
            if isinstance(error, WriteError):
                self.problem = error
                self._touched = dict.fromkeys((*shares, *self._touched))
                self._waiting = [*waiting, *self._waiting]
                self._retries = [*retries, *self._retries]
                self._retried = [*retried, *self._retried]
                self._loop.call_later(_PAUSE, self._flush)
                return
            self.problem = None
            lost = writing.result()
            for share, mark in zip(shares, marks, strict=True):
                if share.cursor in lost:
                    share.lose()
                elif mark.is_release:
                    share.is_ours = False
            self._fail(each for each in waiting if each[0].cursor in lost)
            for _, future in waiting:
                if not future.done():
                    future.set_result(None)
            self._flush()

        self._writer.run(write).add_done_callback(done)
