"""Opening connections and channels of aiormq, and closing them whatever the broker does."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory

from dispytch import ConnectError
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.errors import CLIENT_ERRORS, connect_problem

__all__ = [
    "CHANNEL_TIMEOUT",
    "CLOSE_TIMEOUT",
    "Connector",
    "Opened",
    "ended",
    "open_channel",
    "round_trip",
]

CHANNEL_TIMEOUT = 5.0
"""Seconds the broker has to open a channel or to declare something."""

CLOSE_TIMEOUT = 2.0
"""Seconds a closing that is forced may take."""


class _Transport(TransportFactory):
    """Opens the socket, and can drop it whatever state the connection is in."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._writer: asyncio.StreamWriter | None = None

    async def create(
        self, url: Any, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open it; `kwargs` are for aiormq's own way of doing this."""
        reader, self._writer = await asyncio.open_connection(url.host, url.port, ssl=self._context)
        return reader, self._writer

    def abort(self) -> None:
        """Drop it at once, with what was not sent."""
        if self._writer is not None:
            self._writer.transport.abort()


class _Connection(aiormq.Connection):
    """aiormq's connection, which never writes the user's name into a log."""

    def __str__(self) -> str:
        return f"{self.url.host}:{self.url.port}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that is open, or was.

    Attributes:
        connection: aiormq's.
        transport: its socket.
    """

    connection: aiormq.Connection
    transport: "_Transport"

    async def close(self, grace: float = 0.0) -> None:
        """Close it, after `grace` seconds by force."""
        closing = asyncio.ensure_future(self.connection.close())
        closing.add_done_callback(_seen)
        try:
            if grace:
                await asyncio.wait((closing,), timeout=grace)
        finally:
            self.transport.abort()  # also where the time to stop is over: then all tasks end
        await asyncio.wait((closing,), timeout=CLOSE_TIMEOUT)


class Connector:
    """Opens connections to the first host that lets us in.

    Args:
        settings: where to, as whom, and how.
    """

    def __init__(self, settings: RabbitMQConnection) -> None:
        self._settings = settings
        self._addresses = settings.addresses
        self._context: ssl.SSLContext | None = None

    async def open(self) -> Opened:
        """Try the hosts in turn, beginning with the one that worked last.

        Raises:
            ConnectError: no host could be reached, or each refused us; names no secrets.
        """
        if self._settings.scheme == "amqps" and self._context is None:
            self._context = await asyncio.to_thread(_tls_context, self._settings)
        problems: list[str] = []
        retriable = False
        for _ in range(len(self._addresses)):
            host, port = self._addresses[0]
            opened = await self._attempt(host, port)
            if isinstance(opened, Opened):
                return opened
            self._addresses = [*self._addresses[1:], self._addresses[0]]
            problems.append(f"{host}:{port}: {opened[0]}")
            retriable = retriable or opened[1]
        raise ConnectError(
            f"rabbitmq: can't connect to {'; '.join(problems)}",
            backend="rabbitmq",
            retriable=retriable,
        )

    async def _attempt(self, host: str, port: int) -> Opened | tuple[str, bool]:
        """Connect to one host; or what went wrong and whether it may pass."""
        settings = self._settings
        transport = _Transport(self._context)
        connection = _Connection(_url(settings, host, port), transport_factory=transport)
        connection.vhost = settings.vhost  # as it is: aiormq's URL can't express every name
        try:
            async with asyncio.timeout(settings.connect_timeout):
                await connection.connect()
        except CLIENT_ERRORS as error:
            transport.abort()
            return connect_problem(error, settings.login)
        except BaseException:
            transport.abort()
            raise
        return Opened(connection, transport)


async def open_channel(connection: Any) -> AbstractChannel:
    """Open a channel with confirmations, on which what comes back raises."""
    async with asyncio.timeout(CHANNEL_TIMEOUT):
        channel: AbstractChannel = await connection.channel(
            publisher_confirms=True, on_return_raises=True
        )
    return channel


async def round_trip(connection: Any) -> None:
    """Have the broker answer, on a channel of its own: an answer missed would cost the channel."""
    await connection.ready()  # on a blocked connection, closing a channel could end it
    await (await open_channel(connection)).close()


def _url(settings: RabbitMQConnection, host: str, port: int) -> str:
    """The URL that aiormq wants."""
    user, password = quote(settings.login, safe=""), quote(settings.login_password, safe="")
    query = urlencode({"heartbeat": settings.heartbeat, "name": settings.connection_name or ""})
    host = f"[{host}]" if ":" in host else host
    scheme = "amqps" if settings.scheme == "amqps" else "amqp"
    return f"{scheme}://{user}:{password}@{host}:{port}/?{query}"


async def ended(channel: AbstractChannel) -> None:
    """Wait until a channel has ended."""
    closing = channel.closing
    await asyncio.wait((closing,))
    _seen(closing)


def _seen(done: "asyncio.Future[None]") -> None:
    """Keep asyncio from reporting an exception that nobody needs."""
    if not done.cancelled():
        done.exception()


def _tls_context(settings: RabbitMQConnection) -> ssl.SSLContext:
    problem = ""
    try:
        context = ssl.create_default_context(cafile=settings.cafile)
        if settings.certfile is not None:
            password = settings.keyfile_password
            context.load_cert_chain(
                settings.certfile,
                settings.keyfile,
                password.get_secret_value() if password is not None else "",
            )
    except (OSError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        return context
    raise ConnectError(
        f"rabbitmq: cafile, certfile or keyfile can't be used: {problem}",
        backend="rabbitmq",
        retriable=False,
    )
