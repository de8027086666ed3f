"""Queues: publishing to queues by their names, declared where they are missing."""

from typing import Any, Protocol

from aiormq.abc import AbstractChannel

from dispytch_rabbitmq.errors import unroutable
from dispytch_rabbitmq.properties import Message
from dispytch_rabbitmq.publisher import Publisher

__all__ = ["Queues"]


class Keeper(Protocol):
    """What queues are declared with."""

    async def channel(self, exchange: str | None = None) -> AbstractChannel:
        """An open channel."""
        ...

    async def keep_queue(self, name: str, arguments: dict[str, Any]) -> None:
        """Declare a queue unless there is one of that name."""


class Queues:
    """Remembers which queues are there, so that each is declared once.

    Args:
        keeper: declares them.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._there: set[str] = set()

    def forget(self) -> None:
        """Look again whether they are there."""
        self._there.clear()

    async def publish(
        self, message: Message, arguments: dict[str, Any], publisher: Publisher
    ) -> None:
        """Put a mandatory message into the queue that its routing key names.

        Raises:
            ConnectError: the queue is missing and can't be declared.
            EmitRejected, EmitUnknown: as for `Publisher.publish`.
        """
        name = message.routing_key
        if name in self._there:
            if await publisher.publish(message, self._keeper.channel):
                return
            self._there.discard(name)  # deleted meanwhile
        await self._keeper.keep_queue(name, arguments)
        if not await publisher.publish(message, self._keeper.channel):
            raise unroutable("", name)
        self._there.add(name)
