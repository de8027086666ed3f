"""Settling: tells the file what is done, and keeps what is to come again."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from dispytch import SettleError
from dispytch_sqlite.delivery import Share, SQLiteDelivery
from dispytch_sqlite.errors import WriteError
from dispytch_sqlite.group import Mark, Member, Retry, Tenure, commit
from dispytch_sqlite.log import written_headers
from dispytch_sqlite.writer import Writer

__all__ = ["Settling"]

_PAUSE = 0.2  # seconds until what could not be written is written again

_NOT_OURS = "its partition is another member's, or the consumer was stopped: it comes again"

_Waiter: TypeAlias = tuple[Share, "asyncio.Future[None]"]


@dataclass(slots=True)
class _Lot:
    """What is written in one commit.

    Attributes:
        touched: the shares, a set that keeps its order; those of all the others are among them.
        waiting: who waits for it.
        retries: what is to come again later.
        retried: what came again, and is done.
    """

    touched: dict[Share, None] = field(default_factory=dict[Share, None])
    waiting: list[_Waiter] = field(default_factory=list[_Waiter])
    retries: list[tuple[Share, Retry]] = field(default_factory=list[tuple[Share, Retry]])
    retried: list[tuple[Share, int]] = field(default_factory=list[tuple[Share, int]])

    def prepend(self, earlier: "_Lot") -> None:
        """Take in what could not be written."""
        self.touched = {**earlier.touched, **self.touched}
        self.waiting[:0] = earlier.waiting
        self.retries[:0] = earlier.retries
        self.retried[:0] = earlier.retried


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
        self._lot = _Lot()
        self._is_busy = self._is_over = False
        self._idle: asyncio.Future[None] | None = None

    # What becomes of a delivery

    def done(self, delivery: SQLiteDelivery) -> "asyncio.Future[None]":
        """It is done; a future of when that is written down."""
        delivery.share.let_go(delivery)
        if delivery.is_retry:
            self._end_retry(delivery.share, delivery.seq)
        return self._written(delivery.share)

    def later(self, delivery: SQLiteDelivery, delay: float) -> "asyncio.Future[None]":
        """It is to come again after so many seconds; a future of when that is written down."""
        delivery.share.let_go(delivery)
        if self.member is None:
            self._loop.call_later(delay, self._come_again, delivery)
        else:
            headers = written_headers(delivery.headers)
            visible_ms = int((time.time() + delay) * 1000) + 1
            share, seq = delivery.share, delivery.seq
            retry = Retry(share.tenure, seq, delivery.attempt, visible_ms, headers)
            self._lot.retries.append((share, retry))
            share.ending.add(seq)
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
        self._end_retry(share, seq)
        self.touch(share)

    def _end_retry(self, share: Share, seq: int) -> None:
        self._lot.retried.append((share, seq))
        share.ending.add(seq)

    def _come_again(self, old: SQLiteDelivery) -> None:
        message = (old.topic, old.payload, old.key, old.headers, old.attempt + 1, old.via)
        again = SQLiteDelivery(old.share, old.seq, *message, is_retry=old.is_retry)
        self._nacked.append(again)
        self._wake()

    # Writing it down

    def touch(self, share: Share) -> None:
        """Write down, soon, how far a share is."""
        if share.cursor:
            self._lot.touched[share] = None
            self._begin()

    async def idle(self) -> None:
        """Wait until everything is written down."""
        if self._is_busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def abandon(self) -> None:
        """Write nothing more; who waits gets a SettleError."""
        self._is_over = True
        self._fail(self._lot.waiting)
        self._lot = _Lot()

    def _fail(self, waiting: Iterable[_Waiter]) -> None:
        for _, future in waiting:
            if not future.done():
                future.set_exception(SettleError(_NOT_OURS))

    def _written(self, share: Share) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = self._loop.create_future()
        if share.cursor:
            self._lot.waiting.append((share, future))
            self.touch(share)
        else:
            future.set_result(None)
        return future

    def _begin(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._lot.touched or self.member is None:
            self._is_busy = False
            if self._idle is not None:
                self._idle.set_result(None)
                self._idle = None
            return
        lot, self._lot = self._lot, _Lot()
        marks = [share.mark for share in lot.touched]
        write = partial(
            commit,
            member=self.member,
            marks=marks,
            retries=[retry for _, retry in lot.retries],
            retried=[(share.tenure, seq) for share, seq in lot.retried],
        )
        self._writer.run(write).add_done_callback(partial(self._flushed, lot, marks))

    def _flushed(
        self, lot: _Lot, marks: Sequence[Mark], writing: "asyncio.Future[set[Tenure]]"
    ) -> None:
        error = writing.exception()
        if self._is_over and error is not None:
            self._fail(lot.waiting)
            return
        if isinstance(error, WriteError):
            self.problem = error
            self._lot.prepend(lot)
            self._loop.call_later(_PAUSE, self._flush)
            return
        self.problem = None
        lost = writing.result()
        for share, mark in zip(lot.touched, marks, strict=True):
            if share.tenure in lost:
                share.lose()
            elif mark.is_release:
                share.is_ours = False
        for share, seq in lot.retried:
            share.ending.discard(seq)
        for share, retry in lot.retries:
            share.ending.discard(retry.seq)
        if lot.retries:
            self._wake()  # to see when they are due
        self._fail(each for each in lot.waiting if each[0].tenure in lost)
        for _, future in lot.waiting:
            if not future.done():
                future.set_result(None)
        self._flush()
