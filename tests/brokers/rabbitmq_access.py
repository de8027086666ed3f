"""What tests do to any RabbitMQ, ours or one that was running before: queues, reading back.

Uses aio-pika bare, so that what the code under test claims is checked without that code.
"""

import asyncio
import contextlib
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brokers.elsewhere import in_process, in_thread

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

PROPERTIES = (
    "app_id",
    "content_encoding",
    "content_type",
    "correlation_id",
    "delivery_mode",
    "expiration",
    "message_id",
    "priority",
    "reply_to",
    "timestamp",
    "type",
    "user_id",
)
"""All properties that AMQP 0-9-1 has beside the headers."""


@dataclass(frozen=True)
class Delivery:
    """A message as the broker delivered it; `properties` are as on the wire, unset ones absent."""

    exchange: str
    routing_key: str
    redelivered: bool
    properties: dict[str, Any]
    headers: dict[str, Any]
    body: bytes


class RabbitMQAccess:
    """Blocking helpers; they may be called with an event loop running, which they hold up."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where to connect, with a user who may do all."""

    def declare_queue(
        self, name: str, *, durable: bool = True, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Declare a queue."""
        in_thread(_declare_queue(self.url, name, durable, dict(arguments or {})))

    def declare_exchange(self, name: str, kind: str = "topic", *, durable: bool = True) -> None:
        """Declare an exchange."""
        in_thread(_declare_exchange(self.url, name, kind, durable))

    def bind(self, queue: str, exchange: str, routing_key: str = "#") -> None:
        """Bind an existing queue to an existing exchange."""
        in_thread(_bind(self.url, queue, exchange, routing_key))

    def delete_queue(self, name: str) -> None:
        """Delete a queue and what is in it."""
        in_thread(_delete_queue(self.url, name))

    def queue_size(self, name: str) -> int:
        """How many messages are ready in a queue."""
        return in_thread(_queue_size(self.url, name))

    def read_queue(self, queue: str, count: int = 0, timeout: float = 30.0) -> list[Delivery]:
        """Empty a queue in another process; see the function of the same name."""
        return read_queue(self.url, queue, count, timeout)


class RunningRabbitMQ(RabbitMQAccess):
    """A RabbitMQ that somebody else started."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        return self._url


def read_queue(url: str, queue: str, count: int = 0, timeout: float = 30.0) -> list[Delivery]:
    """Take all messages from a queue with a bare client in another process.

    Args:
        url: Where to connect.
        queue: It must exist; it is empty afterwards.
        count: How many messages to wait for; what is there beyond them is returned too, so that a
            duplicate shows. With 0 it returns what is there now.
        timeout: After it, what has been read so far is returned, for the test to compare.
    """
    return in_process(_read_queue, url, queue, count, timeout, timeout=timeout + 30)


@contextlib.asynccontextmanager
async def _channel(url: str) -> "AsyncIterator[AbstractChannel]":
    import aio_pika

    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def _declare_queue(url: str, name: str, durable: bool, arguments: dict[str, Any]) -> None:
    async with _channel(url) as channel:
        await channel.declare_queue(name, durable=durable, arguments=arguments)


async def _declare_exchange(url: str, name: str, kind: str, durable: bool) -> None:
    async with _channel(url) as channel:
        await channel.declare_exchange(name, kind, durable=durable)


async def _bind(url: str, queue: str, exchange: str, routing_key: str) -> None:
    async with _channel(url) as channel:
        target = await channel.get_queue(queue)
        await target.bind(exchange, routing_key)


async def _delete_queue(url: str, name: str) -> None:
    async with _channel(url) as channel:
        await channel.queue_delete(name)


async def _queue_size(url: str, name: str) -> int:
    async with _channel(url) as channel:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


async def _read_queue(url: str, name: str, count: int, timeout: float) -> list[Delivery]:
    deadline = time.monotonic() + timeout
    deliveries: list[Delivery] = []
    async with _channel(url) as channel:
        queue = await channel.get_queue(name)
        while time.monotonic() < deadline:
            message = await queue.get(fail=False)
            if message is not None:
                await message.ack()
                deliveries.append(_delivery(message))
            elif len(deliveries) >= count:
                break
            else:
                await asyncio.sleep(0.02)
    return deliveries


def _delivery(message: "AbstractIncomingMessage") -> Delivery:
    """Unpack the raw properties: aio-pika's own attributes convert some and default others."""
    raw = message.properties
    wire = {name: getattr(raw, "message_type" if name == "type" else name) for name in PROPERTIES}
    return Delivery(
        exchange=message.exchange or "",
        routing_key=message.routing_key or "",
        redelivered=bool(message.redelivered),
        properties={name: value for name, value in wire.items() if value is not None},
        headers=dict(raw.headers or {}),
        body=message.body,
    )
