"""Declaring, binding and consuming queues of any name.

The client's own methods refuse names that the broker takes, those with `*` or letters beyond ASCII
among them.
"""

from collections.abc import Mapping
from typing import Any

from aiormq import spec
from aiormq.abc import ConsumerCallback

__all__ = ["bind_queue", "consume_queue", "declare_queue"]


class _Declare(spec.Queue.Declare):
    def validate(self) -> None:
        """Leave it to the broker."""


class _Bind(spec.Queue.Bind):
    def validate(self) -> None:
        """Leave it to the broker."""


class _Consume(spec.Basic.Consume):
    def validate(self) -> None:
        """Leave it to the broker."""


async def declare_queue(
    channel: Any,
    name: str,
    *,
    passive: bool = False,
    ours_alone: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, int]:
    """Declare a durable queue, or one that goes with its consumer.

    Returns:
        Its name, and how many messages are ready in it.
    """
    frame = _Declare(
        queue=name,
        passive=passive,
        durable=not ours_alone,
        exclusive=ours_alone,
        auto_delete=ours_alone,
        arguments=dict(arguments or {}),
    )
    answer = await channel.rpc(frame)
    return answer.queue, answer.message_count


async def bind_queue(channel: Any, name: str, exchange: str, binding: str) -> None:
    """Bind a queue to an exchange."""
    await channel.rpc(_Bind(queue=name, exchange=exchange, routing_key=binding))


async def consume_queue(
    channel: Any, name: str, consumer_tag: str, callback: ConsumerCallback
) -> None:
    """Begin to consume a queue; deliveries are acknowledged by the caller."""
    channel.consumers[consumer_tag] = callback
    await channel.rpc(_Consume(queue=name, consumer_tag=consumer_tag))
