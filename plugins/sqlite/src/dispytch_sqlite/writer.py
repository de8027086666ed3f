"""Writer: the one thread of this process that writes to a file, many writes in one commit."""

import asyncio
import contextlib
import logging
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dispytch import ConnectError
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.database import FileIdentity, open_database
from dispytch_sqlite.errors import (
    BACKEND,
    FileChangedError,
    WriteError,
    as_connect_error,
    is_locked,
)
from dispytch_sqlite.log import Log
from dispytch_sqlite.retention import Retention

__all__ = ["Call", "Writer"]

logger = logging.getLogger("dispytch")

_T = TypeVar("_T")

Call = Callable[[sqlite3.Connection], Any]
"""What is done inside a transaction. It runs again, by itself, when the transaction failed."""

_SWEEP_EVERY = 5.0  # seconds between two looks for what may be deleted
_SWEEP = 0.02  # seconds of deleting before what is to be written gets a turn
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01  # seconds between two attempts to get the lock
_CONTENDED = 0.5  # seconds after an attempt in vain during which others get turns
_LONGEST_TURN = 0.005  # seconds left to others
_PING = 3.0  # seconds that a sign of life may take


@dataclass(slots=True, eq=False)
class _Job:
    """Something to be written.

    Attributes:
        call: writes it.
        tell: told the result or the WriteError, in the writer's thread.
        appends: whether it appends events: then the disk must confirm, and readers are told.
        since: when it was given, on the monotonic clock.
    """

    call: Call
    tell: Callable[[Any], None]
    appends: bool = False
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Chore:
    """Something to be written again and again, as long as its event loop is there."""

    job: _Job
    loop: asyncio.AbstractEventLoop
    every: float
    due: float = field(default_factory=time.monotonic)


class Writer:
    """Writes to a file. What comes while it writes is written together, in the next commit.

    Args:
        connection: of the URL; its path is absolute, without links.

    Attributes:
        connection: of the URL.
        log: appends events, inside a transaction.
        lost: set once the file is found to be gone: nothing more can be written or read.
    """

    def __init__(self, connection: SQLiteConnection) -> None:
        self.connection = connection
        self._db = open_database(connection.file, connection.partitions)
        self._file = FileIdentity(connection.file)
        self.log = Log(self._db.execute("SELECT partitions FROM settings").fetchone()[0])
        self._retention = Retention(connection)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._chores: list[_Chore] = []
        self._readers: set[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = set()
        self._is_closing = False
        self.lost: FileChangedError | None = None
        self._synchronous = ""
        self._lock_missed, self._next_turn = 0.0, 0.0
        self._next_sweep = time.monotonic() + _SWEEP_EVERY
        self._thread = threading.Thread(target=self._work, name="dispytch-sqlite", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises ConnectError: the file is not there any more."""
        try:
            self._file.check()
        except FileChangedError as error:
            raise as_connect_error(error, f"can't open {self.connection.file}") from error

    def is_at(self, file: Path) -> bool:
        """Whether what it has opened is the file at this path."""
        return self._file.is_at(file)

    def close(self) -> None:
        """Write what is left, and close the file. Blocks."""
        self._is_closing = True
        self._jobs.put(None)
        self._thread.join()

    # In the event loop

    def run(
        self,
        call: Callable[[sqlite3.Connection], _T],
        *,
        appends: bool = False,
        since: float | None = None,
    ) -> Any:
        """Write something; a future of what `call` returned, or of a WriteError.

        What the future's owner no longer waits for is written nevertheless.

        Args:
            call: writes it.
            appends: whether it appends events.
            since: second of the monotonic clock from which its wait for the lock counts; None: now.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        tell = partial(_in_loop, loop, partial(_resolve, future))
        self._jobs.put(_Job(call, tell, appends, time.monotonic() if since is None else since))
        return future

    def every(self, seconds: float, call: Call, tell: Callable[[Any], None]) -> Callable[[], None]:
        """Write something every so many seconds; what ends it.

        Args:
            seconds: how often.
            call: writes it.
            tell: told, in the running loop, what `call` returned, or the WriteError.
        """
        loop = asyncio.get_running_loop()
        chore = _Chore(_Job(call, partial(_in_loop, loop, tell)), loop, seconds)
        self._chores.append(chore)
        self._jobs.put(None)
        return partial(self._end, chore)

    def _end(self, chore: _Chore) -> None:
        with contextlib.suppress(ValueError):
            self._chores.remove(chore)

    def tell_news(self, reader: Callable[[], None]) -> Callable[[], None]:
        """Call back, in the running loop, when events were appended here, or the file is lost."""
        told = (asyncio.get_running_loop(), reader)
        self._readers.add(told)
        return partial(self._readers.discard, told)

    async def ping(self) -> None:
        """Wait until something could be written.

        Raises:
            ConnectError: it could not, or not soon.
        """
        try:
            async with asyncio.timeout(_PING):
                await self.run(lambda _: None)
        except WriteError as error:
            raise as_connect_error(error, "can't write") from error
        except TimeoutError as error:
            raise ConnectError(
                f"{BACKEND}: nothing could be written for {_PING:g} s: does another process hold "
                "the file's lock?", backend=BACKEND,
            ) from error  # fmt: skip

    # In the thread

    def _work(self) -> None:
        try:
            while not (self._is_closing and self._jobs.empty()):
                lot = self._next_lot()
                if lot:
                    self._write(lot)
                if time.monotonic() >= self._next_sweep:
                    self._sweep()
        finally:
            self._db.close()

    def _next_lot(self) -> list[_Job]:
        """Wait for jobs, or for a chore's time; all that there is."""
        due = min((chore.due for chore in tuple(self._chores)), default=self._next_sweep)
        wait = max(min(due, self._next_sweep) - time.monotonic(), 0.0)
        lot: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            job = self._jobs.get(timeout=wait)
            while True:
                if job is not None:
                    lot.append(job)
                job = self._jobs.get_nowait()
        now = time.monotonic()
        for chore in tuple(self._chores):
            if chore.loop.is_closed():
                self._end(chore)
            elif chore.due <= now:
                chore.due, chore.job.since = now + chore.every, now
                lot.append(chore.job)
        return lot

    def _write(self, lot: Sequence[_Job]) -> None:
        """Write a lot in one transaction. Where that fails, each job gets its own."""
        committing = False
        must_sync, since = any(job.appends for job in lot), min(job.since for job in lot)
        try:
            with self._transaction(must_sync, since):
                results = [job.call(self._db) for job in lot]
                committing = True
        except Exception as error:  # noqa: BLE001 - whoever gave the job judges it
            failure = WriteError(error, committing=committing)
            if len(lot) > 1 and not failure.is_unsure:
                for job in lot:
                    self._write([job])
            else:
                for job in lot:
                    job.tell(failure)
            return
        for job, result in zip(lot, results, strict=True):
            job.tell(result)
        if must_sync:
            self._tell_readers()

    def _tell_readers(self) -> None:
        for told in tuple(self._readers):
            loop, reader = told
            if loop.is_closed():
                self._readers.discard(told)
            else:
                with contextlib.suppress(RuntimeError):  # it is closed at this moment
                    loop.call_soon_threadsafe(reader)

    @contextlib.contextmanager
    def _transaction(self, must_sync: bool, since: float) -> Iterator[None]:  # noqa: FBT001
        """Write, all or nothing; for the arguments and what it raises see `_begin`."""
        self._begin(must_sync, since)
        began = time.monotonic()
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.log.forget()
            raise
        self._leave_a_turn(time.monotonic() - began)

    def _begin(self, must_sync: bool, since: float) -> None:  # noqa: FBT001
        """Begin to write, when it is our turn.

        Args:
            must_sync: whether the disk must confirm.
            since: second of the monotonic clock from which the wait for the lock counts.

        Raises:
            sqlite3.Error: others hold the lock for too long, or it can't be written.
            FileChangedError: the file is not there any more.
        """
        self._check_file()
        # An acknowledgement that a power cut takes back makes an event come again: allowed, and
        # much cheaper. Whatever is before the next event in the file goes to the disk with it.
        wanted = "FULL" if must_sync and self.connection.synchronous == "full" else "NORMAL"
        if wanted != self._synchronous:
            self._db.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted
        pause, deadline = _FIRST_PAUSE, since + self.connection.lock_timeout
        if (early := self._next_turn - time.monotonic()) > 0:
            time.sleep(early)
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                if not is_locked(error) or now >= deadline or self._is_closing:
                    raise
                self._lock_missed = now
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - no secret
                pause = min(1.5 * pause, _LONGEST_PAUSE)
            else:
                return

    def _check_file(self) -> None:
        """Raises FileChangedError: it is not there any more; readers are told."""
        try:
            self._file.check()
        except FileChangedError as error:
            self.lost = error
            self._tell_readers()
            raise

    def _leave_a_turn(self, took: float) -> None:
        """SQLite's lock has no queue: who has it, and wants it again at once, starves others."""
        now = time.monotonic()
        if now - self._lock_missed < _CONTENDED:
            self._next_turn = now + min(took, _LONGEST_TURN)

    def _sweep(self) -> None:
        """Delete what may be deleted, for a moment; there may be more to do after the next lot."""
        end = time.monotonic() + _SWEEP
        self._next_sweep = end + _SWEEP_EVERY
        try:
            self._check_file()
            while not self._is_closing and (step := self._retention.next_step(self._db)):
                with self._transaction(must_sync=False, since=time.monotonic()):
                    step(self._db)
                if time.monotonic() >= end and self._has_work():
                    self._next_sweep = end
                    break
            self._retention.report()
        except Exception as error:  # noqa: BLE001 - without this thread nothing is written
            told = WriteError(error, committing=False)
            with contextlib.suppress(Exception):  # a logger's filter may raise anything
                logger.warning("sqlite: nothing could be deleted: %s", told)

    def _has_work(self) -> bool:
        now = time.monotonic()
        return not self._jobs.empty() or any(chore.due <= now for chore in tuple(self._chores))


def _in_loop(loop: asyncio.AbstractEventLoop, tell: Callable[[Any], None], told: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(tell, told)


def _resolve(future: "asyncio.Future[Any]", outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, WriteError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
