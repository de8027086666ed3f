"""From what a producer returned or raised to what the caller of an emit gets."""

from typing import Any

from dispytch.errors import EmitError, ProducerTimeout
from dispytch.event import EventBase
from dispytch.producer import Outgoing, Producer, Receipt

__all__ = ["completed", "deadline_passed", "receipt"]


def receipt(out: Outgoing, details: Any, producer: Producer) -> Receipt:
    """The receipt for what the producer says it sent."""
    return Receipt(out.event_id, out.topic, producer.backend, details or {})


def deadline_passed(event: EventBase) -> ProducerTimeout:
    """The outcome of an event whose deadline passed: unknown, never failed."""
    return ProducerTimeout(
        f"{type(event).__name__} {event.id}: no outcome before the deadline; it may still arrive",
        retriable=True,
    )


def completed(
    error: BaseException, event: EventBase, topic: str, producer: Producer
) -> BaseException:
    """The same error, knowing its event, topic and backend where it is one of ours."""
    if isinstance(error, EmitError):
        error.event = event
        error.topic = error.topic or topic
        error.backend = error.backend or producer.backend
    return error
