"""News: waits until something in a file has changed, whoever changed it."""

import asyncio
import sqlite3
import time

__all__ = ["News"]

_SHORTEST = 0.001  # seconds between two looks while much happens
_LAZINESS = 50  # a look is made so many times in the time that nothing has happened


class News:
    """Tells a consumer when to look for events.

    What this process does is told at once. What others do shows in the file's `data_version`, which
    is looked at each millisecond while events come, and ever more rarely while none do.

    Args:
        db: the consumer's own connection.
        longest: seconds between two looks when nothing has happened for a while.
    """

    def __init__(self, db: sqlite3.Connection, longest: float) -> None:
        self._db, self._longest = db, longest
        self._loop = asyncio.get_running_loop()
        self._version, self._has_changed = 0, True
        self._latest = time.monotonic()  # when something happened
        self._due = float("inf")
        self._waiter: asyncio.Future[None] | None = None
        self._is_told = False

    def tell(self) -> None:
        """Something has happened."""
        self._is_told = True
        self._wake()

    def take_change(self) -> bool:
        """Whether anybody has written since the last call. To be called before reading."""
        self._notice()
        changed, self._has_changed = self._has_changed, False
        return changed

    def found(self) -> None:
        """There was something: more may come soon."""
        self._latest = time.monotonic()

    async def wait(self, due: float | None) -> None:
        """Wait until something has happened.

        Args:
            due: on `time.time()`, when something will have; None: nothing is known of.
        """
        if not self._is_told:
            self._due = float("inf") if due is None else time.monotonic() + due - time.time()
            self._waiter = self._loop.create_future()
            self._look_later()
            try:
                await self._waiter
            finally:
                self._timer.cancel()
                self._waiter = None
        self._is_told = False

    def _look_later(self) -> None:
        now = time.monotonic()
        pause = min(max((now - self._latest) / _LAZINESS, _SHORTEST), self._longest)
        self._timer = self._loop.call_later(max(min(pause, self._due - now), 0.0), self._look)

    def _look(self) -> None:
        try:
            self._notice()
        except sqlite3.Error:  # reading will tell of it
            self._has_changed = True
        if self._has_changed or time.monotonic() >= self._due:
            self._wake()
        else:
            self._look_later()

    def _notice(self) -> None:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version, self._has_changed = version, True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
