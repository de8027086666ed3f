"""Channels: the channel for publishing of a connection of our own."""

import logging
from typing import Any

from aiormq.abc import AbstractChannel

from dispytch import ConnectError, EmitRejected
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.connection import open_channel
from dispytch_rabbitmq.link import Link
from dispytch_rabbitmq.topology import declare_missing, exchange_problem

__all__ = ["Channels"]

logger = logging.getLogger("dispytch.rabbitmq")


class Channels:
    """One channel for all exchanges, on a connection that is renewed when it ends.

    Args:
        settings: where to, as whom, and how.
        by_queue: publish to queues by their names only: no exchange is needed.
    """

    def __init__(self, settings: RabbitMQConnection, *, by_queue: bool = False) -> None:
        self._settings = settings
        self._exchange = "" if by_queue else settings.exchange
        self._falls_back = bool(self._exchange) and settings.meets_by_default
        self._meets = False
        self._link = Link(settings, self._set_up)

    @property
    def login(self) -> str:
        """The user's name."""
        return self._settings.login

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectError: no host could be reached or let us in, or the exchange named is missing.
        """
        await self._link.open()

    async def close(self) -> None:
        """Close the connection; returns within a few seconds, whatever the broker does."""
        await self._link.close()

    def choose(self, name: str | None) -> str:
        """The exchange for an event whose config names this one, or none."""
        return self._exchange if name is None else name

    async def channel(self, exchange: str | None = None) -> AbstractChannel:
        """The channel, the same for every exchange; waits for as long as there is none.

        Raises:
            EmitRejected: it was closed.
        """
        channel = await self._link.channel()
        if channel is None:
            raise EmitRejected("not sent: the producer was stopped")
        return channel

    async def keep_queue(self, name: str, arguments: dict[str, Any]) -> None:
        """Declare a queue unless there is one of that name.

        Raises:
            ConnectError: it is missing and can't be declared.
        """
        await declare_missing((await self.channel()).connection, name, arguments, self._settings)

    # The exchange where emitters and listeners meet that name none

    @property
    def falls_back(self) -> bool:
        """Whether what no queue receives goes to the queue that has the topic's name."""
        return self._falls_back

    @property
    def meets(self) -> bool:
        """Whether the meeting point is there, as far as known."""
        return self._meets

    def avoid(self) -> None:
        """Publish there no more: it is missing, or the broker refused it."""
        if self._meets:
            logger.warning(
                "rabbitmq: exchange %r takes no events: they go to the queues that have their "
                "topics' names, and reach no listener that subscribed",
                self._exchange,
            )
        self._meets = False

    async def look_again(self) -> bool:
        """Whether the meeting point is there now."""
        connection = (await self.channel()).connection
        self._meets = await exchange_problem(connection, self._settings) is None
        return self._meets

    async def _set_up(self, connection: Any) -> AbstractChannel:
        problem = await exchange_problem(connection, self._settings) if self._exchange else None
        if self._falls_back:
            self._meets = problem is None
        if problem and not (self._falls_back or self._link.is_kept):
            raise ConnectError(f"rabbitmq: {problem}", backend="rabbitmq", retriable=False)
        if problem:  # after a reconnect: its events will be rejected, others not
            logger.warning("rabbitmq: %s", problem)
        return await open_channel(connection)
