"""Wire: one connection to the server, which many use at once.

redis-py's clients take a connection for each command under way. A wire sends what is asked for in
one turn of the event loop together, and the server answers in the same order: that is faster, for
one command at a time as well, and it learns at once of a connection that was reset.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import hiredis
from redis.asyncio import Connection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ResponseError,
)

from dispytch_redis.errors import NotSentError, WireError, without_login
from dispytch_redis.opening import close

__all__ = ["Argument", "Wire"]

Argument: TypeAlias = bytes | str | int

_REPLIES = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
"""What redis-py raises for a refusal: all else means that there is no reply."""

# It takes more than its types say.
_pack = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)

_DOUBT = 0.05  # seconds in which what has come is read


class Wire:
    """A connection in use.

    Args:
        connection: open.
        patience: seconds without a reply after which it is given up.

    Attributes:
        ended: done when it has ended; the result says why.
    """

    def __init__(self, connection: Connection, patience: float) -> None:
        self._connection, self._patience = connection, patience
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._waiting: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._under_way: deque[asyncio.Future[Any]] = deque()
        self._heard = self._loop.time()
        self._more = asyncio.Event()
        self._tasks = [asyncio.create_task(each) for each in (self._write(), self._read())]
        self._watching = self._loop.call_later(patience, self._watch)

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """Send a command; a future of its reply. Cancelled in this turn, it is not sent.

        The future raises:
            redis.exceptions.RedisError: the server refused it: it was not executed.
            NotSentError, WireError: the connection ended before, or after it was sent.
        """
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.ended.done():
            _fail(reply, NotSentError())
        else:
            self._waiting.append((_pack(command), reply))
            self._more.set()
        return reply

    def abort(self, why: str) -> None:
        """End it at once."""
        if self.ended.done():
            return
        self.ended.set_result(why)
        self._watching.cancel()
        for task in self._tasks:
            task.cancel()
        for _, reply in self._waiting:
            _fail(reply, NotSentError())
        for reply in self._under_way:
            _fail(reply, WireError(why))
        self._waiting.clear()
        self._under_way.clear()

    async def close(self) -> None:
        """End it, and close its socket."""
        self.abort("it was closed")
        await asyncio.wait(self._tasks)
        await close(self._connection)

    async def _write(self) -> None:
        connection = self._connection
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                wanted = [each for each in self._waiting if not each[1].done()]
                if not wanted:
                    self._waiting = []
                    continue
                # Not connected, redis-py would open it again in silence; closing, nothing would go.
                if not connection.is_connected or _is_closing(connection):
                    self.abort("it was closed by the other side")
                    return
                self._waiting = []
                if not self._under_way:
                    self._heard = self._loop.time()
                self._under_way += [reply for _, reply in wanted]
                packed = [command for command, _ in wanted]
                await connection.send_packed_command(packed, check_health=False)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing more can be sent
            self.abort(f"{type(error).__name__} while sending")

    async def _read(self) -> None:
        connection, under_way, loop = self._connection, self._under_way, self._loop
        try:
            while True:
                try:
                    told = await connection.read_response(disable_decoding=True)
                except _REPLIES as error:
                    _fail(under_way.popleft(), without_login(error, connection.username))
                    if not connection.is_connected:
                        raise
                else:
                    reply = under_way.popleft()
                    if not reply.done():
                        reply.set_result(told)
                self._heard = loop.time()
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing more will be read
            self.abort(f"{type(error).__name__} while reading")

    def _watch(self, doubted: float | None = None) -> None:
        """Give up a connection on which nothing comes.

        Args:
            doubted: when something came last, where that was found to be too long ago just now.
        """
        left = self._heard + self._patience - self._loop.time()
        if not self._under_way:
            self._watching = self._loop.call_later(self._patience, self._watch)
        elif left > 0:
            self._watching = self._loop.call_later(left, self._watch)
        elif doubted != self._heard:  # the loop may have stood still, with what came unread
            self._watching = self._loop.call_later(_DOUBT, self._watch, self._heard)
        else:
            self.abort(f"no reply for {self._patience:g} s")


def _is_closing(connection: Connection) -> bool:
    """Whether it ended, and redis-py has not noticed yet."""
    writer = connection._writer
    return writer is None or writer.is_closing()


def _fail(reply: "asyncio.Future[Any]", error: Exception) -> None:
    if not reply.done():
        reply.set_exception(error)
        reply.exception()  # it has been seen, also where its caller has gone
