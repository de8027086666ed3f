"""Subscriber: a connection on which messages come."""

import asyncio
from collections.abc import Callable
from typing import Any, Self, TypeAlias, cast

import hiredis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from dispytch import ConnectError
from dispytch_redis.channels import Channels
from dispytch_redis.connection import RedisPubSubConnection
from dispytch_redis.errors import as_connect_error, described, without_login
from dispytch_redis.opening import close, open_connection

__all__ = ["Subscriber", "Take"]

Take: TypeAlias = Callable[[bytes | None, bytes, bytes], None]
"""Takes a message: the pattern by which it came (None: its channel's name), channel, data."""

_STEPS = 2
"""Twice in the time that a reply may take the server is asked for a sign of life."""


class Subscriber:
    """A connection that is subscribed, of which `take` gets what comes. Made by `open`.

    While there is no room nothing is read, and no sign of life is expected.

    Attributes:
        ended: done when it has ended; the result says why.
        read_to: on the loop's clock: what was published before has been read.
    """

    def __init__(self, settings: RedisPubSubConnection, connection: Connection, take: Take) -> None:
        self._settings, self._connection, self._take = settings, connection, take
        self._loop = asyncio.get_running_loop()
        self._room: asyncio.Event | None = None
        self._confirmed = 0
        self._asked: float | None = None
        self._signs = 0
        self._sign = asyncio.Event()
        self._was_full = False
        self._tasks: list[asyncio.Task[None]] = []
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.read_to = self._loop.time()

    @classmethod
    async def open(
        cls,
        settings: RedisPubSubConnection,
        backend: str,
        channels: Channels,
        take: Take,
        room: asyncio.Event,
    ) -> Self:
        """Connect and subscribe to everything.

        Args:
            settings: where to.
            backend: its name, for messages.
            channels: what to subscribe to.
            take: gets each message.
            room: unset while nothing more is to be read.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        connection = await open_connection(settings, backend)
        subscriber = cls(settings, connection, take)
        try:
            async with asyncio.timeout(settings.reply_timeout):
                await subscriber._subscribe(channels)
        except TimeoutError:
            await close(connection)
            raise ConnectError(
                f"{backend}: not subscribed within {settings.reply_timeout:g} s", backend=backend
            ) from None
        except (RedisError, OSError, AttributeError) as error:  # the last: see `open_connection`
            await close(connection)
            told = without_login(error, settings.login)
            raise as_connect_error(told, backend) from told
        except BaseException:
            await close(connection)
            raise
        subscriber._begin(room)
        return subscriber

    async def ping(self) -> None:
        """Wait for a sign of life; returns, too, when it has ended, or nothing is read."""
        if self._is_reading:
            self._sign.clear()
            await self._ask()
            await self._sign.wait()

    async def close(self) -> None:
        """End it, and close its socket."""
        self._end("it was closed")
        if self._tasks:
            await asyncio.wait(self._tasks)
        await close(self._connection)

    async def _subscribe(self, channels: Channels) -> None:
        wanted = len(channels.literal) + len(channels.globs)
        for command, names in ((b"SUBSCRIBE", channels.literal), (b"PSUBSCRIBE", channels.globs)):
            if names:
                await self._send(command, *names)
        while self._confirmed < wanted:
            self._got(await self._connection.read_response(disable_decoding=True))

    def _begin(self, room: asyncio.Event) -> None:
        self._room = room
        self._tasks = [
            self._loop.create_task(each, name="dispytch-redis-subscriber")
            for each in (self._read(room), self._prove())
        ]

    @property
    def _is_reading(self) -> bool:
        return not self.ended.done() and (self._room is None or self._room.is_set())

    def _end(self, why: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(why)
        self._sign.set()
        for task in self._tasks:
            task.cancel()

    # Reading

    async def _read(self, room: asyncio.Event) -> None:
        read = self._connection.read_response
        try:
            while True:
                if not room.is_set():
                    self._was_full = True
                    await room.wait()
                try:
                    told = await read(disable_decoding=True)
                except ResponseError:  # to a PING: who may not ping is answered, too
                    self._answered()
                else:
                    self._got(told)
                self._signs += 1
                self._sign.set()
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing more will be read
            why = described(error, self._settings.login).rstrip(".")
            self._end(f"{why}{self._likely_cause(error)}")

    def _got(self, told: Any) -> None:
        kind = told[0]
        if kind == b"message":
            self._take(None, told[1], told[2])
        elif kind == b"pmessage":
            self._take(told[1], told[2], told[3])
        elif kind == b"pong":
            self._answered()
        else:
            self._confirmed += 1

    def _answered(self) -> None:
        """What was published before we asked has been read."""
        if self._asked is not None:
            self.read_to, self._asked, self._was_full = self._asked, None, False

    def _likely_cause(self, error: Exception) -> str:
        behind = self._loop.time() - self.read_to > self._settings.reply_timeout
        if isinstance(error, RedisConnectionError) and (self._was_full or behind):
            return (
                "; if the server was not stopped, more waited unread there than its setting "
                "client-output-buffer-limit allows for pubsub: handlers are too slow"
            )
        return ""

    # Signs of life

    async def _prove(self) -> None:
        """Ask again and again; without any sign it ends.

        In steps, as an event loop that stood still says nothing of the server.
        """
        patience = self._settings.reply_timeout
        seen: tuple[float | None, int] = None, 0
        quiet = 0
        while True:
            await asyncio.sleep(patience / _STEPS)
            await self._ask()
            state = self._asked, self._signs
            quiet = quiet + 1 if state == seen and self._is_reading else 0
            seen = state
            if quiet >= _STEPS:
                self._end(f"no sign of life for {patience:g} s")

    async def _ask(self) -> None:
        """Send a PING, of which one at most is under way."""
        if self._asked is not None:
            return
        self._asked = self._loop.time()
        try:
            await self._send(b"PING")
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing more can be sent
            self._end(f"{type(error).__name__} while sending")

    async def _send(self, *command: bytes) -> None:
        if not self._connection.is_connected:  # sending would open it again, in silence
            raise RedisConnectionError("Connection closed.")
        packed = hiredis.pack_command(cast("tuple[bytes]", command))  # it takes more than it says
        await self._connection.send_packed_command([packed], check_health=False)
