"""Faults of a disk, for the tests of what a file's users are told of them."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Event
from typing import Any

from dispytch_sqlite import sharing

__all__ = ["FaultyConnection", "can_mount", "faulty", "full_disk", "held_up", "small_disk"]


def can_mount() -> bool:
    """Whether this user may mount a small disk here."""
    if os.geteuid() != 0:
        return False
    made = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], check=False)
    return made.returncode == 0


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = directory / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """A disk on which not a byte more can be written; there is room again at the end."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        filler.unlink()


class FaultyConnection:
    """A connection whose commits are counted, and fail as they are told to.

    Attributes:
        commits: how many were tried.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.commits = 0
        self._first, self._failures, self._code, self._are_stored = 0, 0.0, 0, False

    def fail(self, count: float, code: int, *, after: int = 0, are_stored: bool = False) -> None:
        """Fail so many commits with a code of SQLite.

        Args:
            count: how many.
            code: which code.
            after: how many work before.
            are_stored: whether the disk has them nevertheless.
        """
        self._first = self.commits + after
        self._failures, self._code, self._are_stored = count, code, are_stored

    def heal(self) -> None:
        """Fail no more."""
        self._failures = 0

    def execute(self, statement: str, *parameters: Any) -> Any:
        """Execute, or fail."""
        if statement == "COMMIT":
            self.commits += 1
            if self._failures and self.commits > self._first:
                self._failures -= 1
                if self._are_stored:
                    self._db.execute(statement)
                error = sqlite3.OperationalError("a fault of the test")
                error.sqlite_errorcode, error.sqlite_errorname = self._code, "SQLITE_FAULT"
                raise error
        return self._db.execute(statement, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def faulty() -> FaultyConnection:
    """Make the connection of the one writer there is a faulty one."""
    (writer,) = sharing.writers()
    db = FaultyConnection(writer._db)
    writer._db = db  # type: ignore[assignment]
    return db


@contextlib.asynccontextmanager
async def held_up() -> AsyncIterator[None]:
    """The one writer there is writes nothing meanwhile; what comes is written together then."""
    (writer,) = sharing.writers()
    is_held, may_go_on = Event(), Event()

    def hold(_: sqlite3.Connection) -> None:
        is_held.set()
        may_go_on.wait()

    held = writer.run(hold)
    await asyncio.to_thread(is_held.wait)
    try:
        yield
    finally:
        may_go_on.set()
        await held
