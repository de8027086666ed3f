"""Delays: sends messages through queues that hold them for a while."""

import asyncio

from aiormq.abc import DeliveredMessage

from dispytch import ConnectError, Delivery
from dispytch_rabbitmq.channels import Channels
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.publisher import Publisher
from dispytch_rabbitmq.queues import Queues
from dispytch_rabbitmq.received import again
from dispytch_rabbitmq.topology import delay_queue, tier

__all__ = ["Delays"]

_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 1.0


class Delays:
    """Publishes on a connection of its own, opened when first needed.

    A broker short of memory blocks connections that publish: on the one that consumes, it would
    block the acknowledgements too.

    Args:
        settings: where to, as whom, and how.
    """

    def __init__(self, settings: RabbitMQConnection) -> None:
        self._channels = Channels(settings, by_queue=True)
        self._queues = Queues(self._channels)
        self._publisher: Publisher | None = None
        self._opening = asyncio.Lock()

    async def send(
        self, message: DeliveredMessage, delivery: Delivery, queue: str, delay: float
    ) -> None:
        """Have the broker bring a message back to its queue; returns when it has the copy.

        Raises:
            ConnectError, EmitError: it may not have it.
            ValueError: a header can't travel.
        """
        name, arguments = delay_queue(queue, tier(delay))
        copy = again(
            message, delivery.headers, name, attempt=delivery.attempt, topic=delivery.topic
        )
        try:
            async with asyncio.timeout(_TIMEOUT):
                publisher = await self._ready()
                await self._queues.publish(copy, arguments, publisher)
        except TimeoutError:
            told = f"queue {name!r} did not confirm within {_TIMEOUT:g} s"
        else:
            return
        raise ConnectError(f"rabbitmq: {told}", backend="rabbitmq")

    async def close(self) -> None:
        """Close the connection, in a few seconds also where the broker is gone."""
        publisher, self._publisher = self._publisher, None
        try:
            await self._channels.close()
        finally:
            if publisher is not None:
                await publisher.close(_CLOSE_TIMEOUT)

    async def _ready(self) -> Publisher:
        async with self._opening:
            if self._publisher is None:
                await self._channels.open()
                self._publisher = Publisher(self._channels.login)
            return self._publisher
