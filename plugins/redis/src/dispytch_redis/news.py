"""News: waits until there is something to read, on a connection of its own: waiting blocks it."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError

from dispytch_redis.connection import RedisConnection
from dispytch_redis.errors import BACKEND, WireError
from dispytch_redis.link import Link

__all__ = ["News"]

_BLOCK = 0.5  # seconds that the server waits at most: what it waits for may be out of date by then
_PAUSE = 0.2  # seconds between two looks while there is no connection


class News:
    """Waits for the first entry of some streams. It takes nothing: who reads, reads again.

    Args:
        settings: where the server is.
    """

    def __init__(self, settings: RedisConnection) -> None:
        self._link = Link(settings, BACKEND, blocking=_BLOCK)
        self._told = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._came: dict[str, str] = {}

    async def open(self) -> None:
        """Connect.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        await self._link.open()

    async def close(self) -> None:
        """Disconnect; whoever waits goes on."""
        self.tell()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.wait((asking,))
        await self._link.close()

    def tell(self) -> None:
        """There is something, whatever the server says."""
        self._told.set()

    async def wait(self, marks: Mapping[str, str], until: float | None) -> dict[str, str]:
        """Wait until a stream has an entry after a mark; returns after a while in any case.

        Args:
            marks: for each stream, an id.
            until: on the loop's clock.

        Returns:
            For each stream that has one, the id of the first such entry.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(dict(marks)))
            self._asking.add_done_callback(self._asked)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._told.wait()
        self._told.clear()
        came, self._came = self._came, {}
        return came

    def _asked(self, _: object) -> None:
        self._asking = None
        self.tell()

    async def _ask(self, marks: dict[str, str]) -> None:
        wire = self._link.wire
        if wire is None or not marks:
            await asyncio.sleep(_PAUSE)
            return
        try:
            told: Any = await wire.call(
                "XREAD", "COUNT", 1, "BLOCK", int(_BLOCK * 1000), "STREAMS", *marks, *marks.values()
            )
        except (RedisError, WireError):
            await asyncio.sleep(_PAUSE)  # the consumer's own connection tells what is wrong
        else:
            self._came.update((name.decode(), rows[0][0].decode()) for name, rows in told or ())
