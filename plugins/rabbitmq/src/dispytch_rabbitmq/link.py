"""Link: one connection to the broker and one channel on it, renewed whenever they end."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import aiormq
from aiormq.abc import AbstractChannel

from dispytch import ConnectError
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.connection import CLOSE_TIMEOUT, Connector, Opened, ended
from dispytch_rabbitmq.errors import CLIENT_ERRORS, describe

__all__ = ["Link", "SetUp"]

logger = logging.getLogger("dispytch.rabbitmq")

_CLOSE_GRACE = 0.5

SetUp: TypeAlias = Callable[[aiormq.Connection], Awaitable[AbstractChannel]]
"""Opens the channel of a connection and prepares it; a `ConnectError` says what can't be had."""


class Link:
    """Keeps a connection with one channel.

    Args:
        settings: where to, as whom, and how.
        set_up: makes the channel, for the first time and after each end.
        told: is told what each attempt to renew met: an error, or None where it worked.
    """

    def __init__(
        self,
        settings: RabbitMQConnection,
        set_up: SetUp,
        told: Callable[[ConnectError | None], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._connector = Connector(settings)
        self._set_up = set_up
        self._told = told
        self._opened: Opened | None = None
        self._channel: AbstractChannel | None = None
        self._usable = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def connection(self) -> aiormq.Connection | None:
        """The connection, where there is one now."""
        opened = self._opened
        return None if opened is None or opened.connection.is_closed else opened.connection

    @property
    def is_kept(self) -> bool:
        """Whether it was opened and not given up."""
        return self._keeper is not None

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectError: no host could be reached, each refused us, or the setting up failed.
        """
        self._usable = asyncio.Event()  # of the loop it is opened in
        self._opened = await self._connector.open()
        try:
            await self._new_channel(self._opened.connection)
        except BaseException:
            await self._drop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="dispytch-rabbitmq")

    async def channel(self) -> AbstractChannel | None:
        """The channel; waits for as long as there is none. None when the link was given up."""
        while self._channel is None or self._channel.is_closed:
            if self._keeper is None:
                return None
            self._usable.clear()
            await self._usable.wait()
        return self._channel

    async def give_up(self) -> None:
        """Leave connection and channel as they are, and renew them no more."""
        keeper, self._keeper = self._keeper, None
        self._channel = None
        self._usable.set()
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,), timeout=CLOSE_TIMEOUT)

    async def close(self) -> None:
        """Close both; returns within a few seconds, whatever the broker does."""
        try:
            await self.give_up()
        finally:
            await self._drop(grace=_CLOSE_GRACE)

    async def _keep(self) -> None:
        while True:
            if self._channel is not None:
                await ended(self._channel)
            try:
                await self._renew()
            except ConnectError as error:
                logger.warning("%s; trying again", error)
                self._told(error)
            except Exception as error:  # noqa: BLE001 - a bug must not end the reconnecting
                logger.error("rabbitmq: %s while reconnecting; trying again", type(error).__name__)  # noqa: TRY400 - a traceback may hold the login
            else:
                self._told(None)
                continue
            pause = self._settings.reconnect_interval
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311

    async def _renew(self) -> None:
        """Open a channel again, on a new connection where the old one gives none."""
        if (connection := self.connection) is not None:
            with contextlib.suppress(ConnectError):  # it shows again on a new connection
                await self._new_channel(connection)
                return
        self._channel = None
        await self._drop()
        self._opened = await self._connector.open()
        await self._new_channel(self._opened.connection)
        logger.warning("rabbitmq: connected again")

    async def _new_channel(self, connection: aiormq.Connection) -> None:
        told = ""
        try:
            self._channel = await self._set_up(connection)
        except CLIENT_ERRORS as error:
            told = describe(error, self._settings.login)
        if told:  # outside the handler: the client's error may name the login
            raise ConnectError(f"rabbitmq: no channel: {told}", backend="rabbitmq")
        self._usable.set()

    async def _drop(self, grace: float = 0.0) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close(grace)
