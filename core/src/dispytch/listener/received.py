"""Event: what a handler gets, and the middleware around it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from dispytch.consumer import Headers

__all__ = [
    "CallNext",
    "Event",
    "HandleContext",
    "ListenerMiddleware",
    "chain",
    "middleware_problem",
]

T = TypeVar("T")


@dataclass(slots=True)
class Event(Generic[T]):
    """A received event; each attempt of each handler gets one of its own.

    Attributes:
        id: unique; the same when the event comes a second time.
        topic: where it was emitted to.
        type: its `__event_type__`.
        body: the validated body. Where it is an `EventBase`, `body.id` is `id`.
        timestamp: when it was emitted, in milliseconds since 1970 UTC.
        key: what keeps it in order with others, or None.
        headers: (str, bytes) pairs, in order.
        attempt: 1 when this handler gets it for the first time, as far as this process and the
            broker can tell.
    """

    id: str
    topic: str
    type: str
    body: T
    timestamp: int
    key: str | None = None
    headers: Headers = ()
    attempt: int = 1


@dataclass(slots=True)
class HandleContext:
    """What a listener's middleware sees: one attempt of one handler.

    Attributes:
        event: the event.
        handler: the handler's name, `module:function`.
        segments: the topic's segments by the names in the handler's pattern.
        group: the listener's group, or None.
    """

    event: Event[Any]
    handler: str
    segments: dict[str, str]
    group: str | None


CallNext: TypeAlias = Callable[[HandleContext], Awaitable[Any]]
ListenerMiddleware: TypeAlias = Callable[[HandleContext, CallNext], Awaitable[Any]]
"""`async def mw(ctx, call_next)`: awaits `call_next(ctx)` and returns what that returned, which is
what the handler did. Without the call the event counts as handled; what it raises, as failed."""


def middleware_problem(middleware: object) -> str | None:
    """Why this can't be a list of middleware; None: it can."""
    if callable(middleware) or not isinstance(middleware, Sequence):
        return "middleware is a list of middleware, in which one may stand alone"
    strange = [each for each in middleware if not callable(each)]
    return f"a middleware is an async function, not {strange[0]!r}" if strange else None


def chain(middleware: Sequence[ListenerMiddleware], call: CallNext) -> CallNext:
    """The middleware around `call`, the first one outermost."""
    for each in reversed(middleware):
        call = _around(each, call)
    return call


def _around(middleware: ListenerMiddleware, call_next: CallNext) -> CallNext:
    return lambda ctx: middleware(ctx, call_next)
