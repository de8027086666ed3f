"""Batches: collects what is to be written while a write is under way, for the next one."""

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from dispytch_sqlite.errors import StoppedError, WriteError, is_locked
from dispytch_sqlite.sharing import is_inherited
from dispytch_sqlite.writer import Writer

__all__ = ["Batches"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_Part: TypeAlias = tuple[Sequence[_T], "asyncio.Future[Sequence[_R]]", float]
"""Items, the future of their results, and when they were given."""

_MOST = 1000  # items of one transaction: others wait meanwhile


class Batches(Generic[_T, _R]):
    """Hands items to a writer, those of one turn of the event loop together, one batch at a time.

    Args:
        writer: writes them.
        write: writes a batch, in the writer's thread; one result each.
    """

    def __init__(
        self,
        writer: Writer,
        write: Callable[[sqlite3.Connection, Sequence[_T]], Sequence[_R]],
    ) -> None:
        self._writer, self._write = writer, write
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Part[_T, _R]] = []
        self._is_busy = self._is_over = False
        self._idle: asyncio.Future[None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is of the running loop, and of this process."""
        return self._loop is asyncio.get_running_loop() and not is_inherited(self._writer)

    def put(self, items: Sequence[_T]) -> "asyncio.Future[Sequence[_R]]":
        """Write items, all or none; a future of a result each, or of a WriteError.

        Cancelled before their turn, they are not written.
        """
        future: asyncio.Future[Sequence[_R]] = self._loop.create_future()
        self._waiting.append((items, future, time.monotonic()))
        if self._is_over:
            self.end()
        elif not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._flush)
        return future

    async def idle(self) -> None:
        """Wait until everything has an outcome."""
        if self._is_busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def end(self) -> None:
        """Write nothing more but what is being written."""
        self._is_over = True
        for _, future, _ in self._waiting:
            if not future.done():
                future.set_exception(WriteError(StoppedError(), committing=False))
        self._waiting.clear()

    def _next_batch(self) -> "list[_Part[_T, _R]]":
        waiting = [part for part in self._waiting if not part[1].done()]
        count = size = 0
        while count < len(waiting) and size < _MOST:
            size += len(waiting[count][0])
            count += 1
        self._waiting = waiting[count:]
        return waiting[:count]

    def _flush(self) -> None:
        batch = self._next_batch()
        if not batch:
            self._is_busy = False
            if self._idle is not None:
                self._idle.set_result(None)
                self._idle = None
            return
        items = [item for part, _, _ in batch for item in part]
        write, oldest = self._write, batch[0][2]
        writing = self._writer.run(lambda db: write(db, items), appends=True, since=oldest)
        writing.add_done_callback(partial(self._done, batch))

    def _done(self, batch: "list[_Part[_T, _R]]", writing: "asyncio.Future[Sequence[_R]]") -> None:
        error = writing.exception()
        if error is not None:
            self._failed(batch, error)
        else:
            results = iter(writing.result())
            for part, future, _ in batch:
                own = list(itertools.islice(results, len(part)))
                if not future.done():
                    future.set_result(own)
        self._flush()

    def _failed(self, batch: "list[_Part[_T, _R]]", error: BaseException) -> None:
        """Tell those that it concerns: the lock may be had before others have waited too long."""
        latest = time.monotonic() - self._writer.connection.lock_timeout
        may_wait = isinstance(error, WriteError) and is_locked(error.cause) and not self._is_over
        again: list[_Part[_T, _R]] = []
        for part in batch:
            if may_wait and part[2] > latest:
                again.append(part)
            elif not part[1].done():
                part[1].set_exception(error)
        self._waiting = [*again, *self._waiting]
