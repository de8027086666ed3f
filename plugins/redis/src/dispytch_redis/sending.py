"""RedisSender: what both producers share: a connection, and what is under way on it."""

import asyncio
import contextlib
from collections.abc import Hashable

from dispytch import EmitRejected, Outgoing, Producer
from dispytch.fields import effective_key
from dispytch_redis.connection import RedisServer
from dispytch_redis.link import Link
from dispytch_redis.wire import Wire

__all__ = ["MARGIN", "RedisSender"]

_FLUSH = 5.0  # seconds that stopping waits for what is under way
MARGIN = 0.05
"""Seconds before its deadline when what was not sent is given up, in time to say so."""


class RedisSender(Producer):
    """Sends over one connection, which all events share.

    While there is no connection emits wait for one, until their deadline. What was sent when the
    connection ended is unknown, and is not sent again.

    Args:
        settings: where the server is, and how it is used.
    """

    carries_headers = True

    def __init__(self, settings: RedisServer) -> None:
        self._largest = settings.max_event_bytes
        self._link = Link(settings, self.backend, renewed=self._renewed)
        self._begin()

    def _begin(self) -> None:
        """Know nothing yet; tasks and events of another loop or process are of no use here."""
        self._under_way = 0
        self._idle = asyncio.Event()

    def _renewed(self) -> None:
        """There is another connection."""

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        if not self._link.is_kept:
            self._begin()
            await self._link.open()

    async def stop(self) -> None:
        """Wait for what is under way, and disconnect; returns soon, whatever the server does."""
        if not self._link.is_kept:
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH):
                    await self.flush()
        finally:
            await self._link.close()

    async def flush(self) -> None:
        """Wait until everything that was given has an outcome."""
        while self._under_way > 0:  # less: some of a process or loop before ended here
            self._idle.clear()
            await self._idle.wait()

    async def ping(self) -> None:
        """Ask the server for a sign of life.

        Raises:
            ConnectError: there is none, or the producer is not started.
        """
        await self._link.ping()

    def ordering_key(self, out: Outgoing, /) -> Hashable | None:
        """The config's `partition_key`, else the event's `__key__`."""
        return effective_key(out)

    def check_size(self, out: Outgoing) -> None:
        """Refuse what is too large.

        Raises:
            EmitRejected: it has more bytes than `max_event_bytes`.
        """
        if len(out.payload) > self._largest:
            raise EmitRejected(
                f"the event has {len(out.payload):,} bytes, the limit is {self._largest:,} "
                "(max_event_bytes)"
            )

    async def connected(self, deadline: float) -> Wire:
        """The connection; waits for one until shortly before a deadline, on the loop's clock.

        Raises:
            EmitRejected: there was none until then; the producer is not started, or was stopped.
        """
        wire = self._link.wire
        if wire is not None:
            return wire
        try:
            async with asyncio.timeout_at(deadline - MARGIN):
                wire = await self._link.connected()
        except TimeoutError as error:
            raise self.too_late() from error
        if wire is None:
            raise EmitRejected("not sent: the producer is not started", retriable=True)
        return wire

    def too_late(self) -> EmitRejected:
        """The outcome of an event that was not sent before its deadline."""
        why = "the server does not answer" if self._link.wire else str(self._link.down())
        return EmitRejected(f"not sent before its deadline: {why}", retriable=True)

    def _done(self) -> None:
        """Something that was under way has its outcome."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
