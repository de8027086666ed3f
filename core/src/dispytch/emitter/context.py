"""EmitContext and the chain of middleware around a send."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dispytch.errors import EmitUnknown
from dispytch.event import EventBase
from dispytch.producer import Receipt

__all__ = ["CallNext", "EmitContext", "Middleware", "chain", "returned"]


@dataclass(slots=True)
class EmitContext:
    """What a middleware sees of an emit, and may change before it calls on.

    Attributes:
        event: the event.
        topic: where it is to go.
        key: what it stays in order with, or None.
        config: the merged config for this backend, or None.
        headers: empty; what is put here travels as the backend's headers. On a backend without
            headers that is a `ConfigError`.
    """

    event: EventBase
    topic: str
    key: str | None
    config: Any
    headers: dict[str, str | bytes] = field(default_factory=dict[str, str | bytes])


CallNext: TypeAlias = Callable[[EmitContext], Awaitable[Receipt]]
Middleware: TypeAlias = Callable[[EmitContext, CallNext], Awaitable[Receipt]]


def chain(middleware: Sequence[Middleware], send: CallNext) -> CallNext | None:
    """The middleware around `send`, the first one outermost; None where there is none."""
    if not middleware:
        return None
    for each in reversed(middleware):
        send = _around(each, send)
    return send


def returned(result: Any) -> Receipt:
    """What the chain returned, which only a Receipt makes an accepted emit.

    Raises:
        EmitUnknown: a middleware returned something else, and hides what became of the event.
    """
    if not isinstance(result, Receipt):
        raise EmitUnknown(
            f"a middleware returned a {type(result).__name__}, not the Receipt of "
            "`await call_next(ctx)`; the event may have arrived"
        )
    return result


def _around(middleware: Middleware, call_next: CallNext) -> CallNext:
    return lambda ctx: middleware(ctx, call_next)
