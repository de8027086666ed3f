"""Link: one connection to the broker and one channel on it, renewed whenever they end."""

import asyncio
import logging
import random
import ssl
from typing import Any
from urllib.parse import quote, urlencode

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory

from dispytch import ConnectError, EmitRejected
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.errors import CLIENT_ERRORS, connect_problem, describe

__all__ = ["Link", "open_channel"]

logger = logging.getLogger("dispytch.rabbitmq")

_CLOSE_GRACE = 0.5
_CLOSE_TIMEOUT = 2.0
_CHANNEL_TIMEOUT = 5.0


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


class Link:
    """Keeps a connection with one channel for publishing.

    Args:
        settings: where to, as whom, and how.
    """

    def __init__(self, settings: RabbitMQConnection) -> None:
        self._settings = settings
        self._addresses = settings.addresses
        self._context: ssl.SSLContext | None = None
        self._transport = _Transport(None)
        self._connection: aiormq.Connection | None = None
        self._channel: AbstractChannel | None = None
        self._usable = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectError: no host could be reached, or each refused us; names no secrets.
        """
        if self._settings.scheme == "amqps":
            self._context = await asyncio.to_thread(_tls_context, self._settings)
        await self._connect()
        if problem := await self._exchange_problem() or await self._new_channel():
            await self._drop()
            raise ConnectError(f"rabbitmq: {problem}", backend="rabbitmq", retriable=False)
        self._keeper = asyncio.create_task(self._keep(), name="dispytch-rabbitmq")

    @property
    def login(self) -> str:
        """The user's name."""
        return self._settings.login

    def choose(self, name: str | None) -> str:
        """The exchange for an event whose config names this one, or none."""
        return self._settings.exchange if name is None else name

    async def channel(self, exchange: str | None = None) -> AbstractChannel:
        """The channel for publishing, one for all exchanges; waits for as long as there is none.

        Raises:
            EmitRejected: the link was closed.
        """
        while self._channel is None or self._channel.is_closed:
            if self._keeper is None:
                raise EmitRejected("not sent: the producer was stopped")
            self._usable.clear()
            await self._usable.wait()
        return self._channel

    async def close(self) -> None:
        """Close both; returns within a few seconds, whatever the broker does."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
        self._channel = None
        self._usable.set()
        await self._drop(grace=_CLOSE_GRACE)
        if keeper is not None:
            await asyncio.wait((keeper,), timeout=_CLOSE_TIMEOUT)

    # Keeping

    async def _keep(self) -> None:
        while True:
            if self._channel is not None:
                await _ended(self._channel)
            try:
                await self._renew()
                continue
            except ConnectError as error:
                logger.warning("%s; trying again", error)
            except Exception as error:  # noqa: BLE001 - a bug must not end the reconnecting
                logger.error("rabbitmq: %s while reconnecting; trying again", type(error).__name__)  # noqa: TRY400 - a traceback may hold the login
            pause = self._settings.reconnect_interval
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311

    async def _renew(self) -> None:
        """Open a channel again, on a new connection where the old one gives none."""
        alive = self._connection is not None and not self._connection.is_closed
        if alive and await self._new_channel() is None:
            return
        self._channel = None
        await self._drop()
        await self._connect()
        if problem := await self._exchange_problem():
            logger.warning("rabbitmq: %s", problem)  # its events will be rejected, others not
        if problem := await self._new_channel():
            raise ConnectError(f"rabbitmq: {problem}", backend="rabbitmq")
        logger.warning("rabbitmq: connected again")

    async def _new_channel(self) -> str | None:
        """Open the channel for publishing; None, or what went wrong."""
        try:
            self._channel = await open_channel(self._connection)
        except CLIENT_ERRORS as error:
            return f"no channel: {describe(error, self.login)}"
        self._usable.set()
        return None

    async def _drop(self, grace: float = 0.0) -> None:
        """Close the connection, after `grace` seconds by force."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        closing = asyncio.ensure_future(connection.close())
        closing.add_done_callback(_seen)
        try:
            if grace:
                await asyncio.wait((closing,), timeout=grace)
        finally:
            self._transport.abort()  # also where the time to stop is over: then all tasks end
        await asyncio.wait((closing,), timeout=_CLOSE_TIMEOUT)

    # Connecting

    async def _connect(self) -> None:
        """Try the hosts in turn, beginning with the one that worked last."""
        problems: list[str] = []
        retriable = False
        for _ in range(len(self._addresses)):
            host, port = self._addresses[0]
            problem = await self._attempt(host, port)
            if problem is None:
                return
            self._addresses = [*self._addresses[1:], self._addresses[0]]
            problems.append(f"{host}:{port}: {problem[0]}")
            retriable = retriable or problem[1]
        raise ConnectError(
            f"rabbitmq: can't connect to {'; '.join(problems)}",
            backend="rabbitmq",
            retriable=retriable,
        )

    async def _attempt(self, host: str, port: int) -> tuple[str, bool] | None:
        """Connect to one host; None, or what went wrong and whether it may pass."""
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
        self._connection, self._transport = connection, transport
        return None

    async def _exchange_problem(self) -> str | None:
        """Make sure that the connection's exchange exists; None, or why it does not."""
        name = self._settings.exchange
        if not name:
            return None
        problem = await self._try_declare(passive=True)
        if problem is not None and self._settings.declare:
            problem = await self._try_declare(passive=False)
        return problem and f"exchange {name!r}: {problem}"

    async def _try_declare(self, *, passive: bool) -> str | None:
        """Declare the exchange on a channel of its own, which a refusal closes."""
        settings = self._settings
        try:
            channel = await open_channel(self._connection)
            await channel.exchange_declare(
                settings.exchange,
                exchange_type=settings.exchange_type,
                durable=True,
                passive=passive,
                timeout=_CHANNEL_TIMEOUT,
            )
            await channel.close()
        except CLIENT_ERRORS as error:
            return describe(error, self.login)
        return None


async def open_channel(connection: Any) -> AbstractChannel:
    """Open a channel with confirmations, on which what comes back raises."""
    async with asyncio.timeout(_CHANNEL_TIMEOUT):
        channel: AbstractChannel = await connection.channel(
            publisher_confirms=True, on_return_raises=True
        )
    return channel


def _url(settings: RabbitMQConnection, host: str, port: int) -> str:
    """The URL that aiormq wants."""
    user, password = quote(settings.login, safe=""), quote(settings.login_password, safe="")
    query = urlencode({"heartbeat": settings.heartbeat, "name": settings.connection_name or ""})
    host = f"[{host}]" if ":" in host else host
    scheme = "amqps" if settings.scheme == "amqps" else "amqp"
    return f"{scheme}://{user}:{password}@{host}:{port}/?{query}"


async def _ended(channel: AbstractChannel) -> None:
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
