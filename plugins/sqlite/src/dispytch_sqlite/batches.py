"""Batches: collects what is to be written while a write is under way, for the next one."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from dispytch_sqlite.errors import WriteError
from dispytch_sqlite.writer import Writer

__all__ = ["Batches"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_MOST = 1000  # items of one transaction: others wait meanwhile


class Batches(Generic[_T, _R]):
    """Hands items to a writer, those of one turn of the event loop together, one batch at a time.

    Args:
        writer: writes them.
        write: writes a batch, in the writer's thread; one result each.
        error: makes the error of one item.
    """

    def __init__(
        self,
        writer: Writer,
        write: Callable[[sqlite3.Connection, Sequence[_T]], Sequence[_R]],
        error: Callable[[WriteError], BaseException],
    ) -> None:
        self._writer, self._write, self._error = writer, write, error
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[_T, asyncio.Future[_R]]] = []
        self._is_busy = False
        self._idle: asyncio.Future[None] | None = None

    def put(self, item: _T) -> "asyncio.Future[_R]":
        """Write an item; cancelled before its turn, it is not written."""
        future: asyncio.Future[_R] = self._loop.create_future()
        self._waiting.append((item, future))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._flush)
        return future

    async def idle(self) -> None:
        """Wait until everything has an outcome."""
        if self._is_busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def _flush(self) -> None:
        waiting = [each for each in self._waiting if not each[1].done()]
        batch, self._waiting = waiting[:_MOST], waiting[_MOST:]
        if not batch:
            self._is_busy = False
            if self._idle is not None:
                self._idle.set_result(None)
                self._idle = None
            return
        items = [item for item, _ in batch]
        write = self._write
        writing = self._writer.run(lambda db: write(db, items), appends=True)
        writing.add_done_callback(partial(self._done, [future for _, future in batch]))

    def _done(
        self, futures: Sequence["asyncio.Future[_R]"], writing: "asyncio.Future[Sequence[_R]]"
    ) -> None:
        error = writing.exception()
        if error is not None:
            for future in futures:
                if not future.done():
                    own = self._error(error) if isinstance(error, WriteError) else error
                    future.set_exception(own)
        else:
            for future, outcome in zip(futures, writing.result(), strict=True):
                if not future.done():
                    future.set_result(outcome)
        self._flush()
