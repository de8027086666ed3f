"""Handler: a declared handler, compiled for one listener."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from dispytch.consumer import Delivery
from dispytch.envelope import Deserializer
from dispytch.errors import HandlerDefinitionError
from dispytch.listener.failure import Retry
from dispytch.listener.lanes import Lanes
from dispytch.listener.plan import Invoke, Offload, Plan
from dispytch.listener.reading import BodyReader, Read
from dispytch.listener.received import (
    Event,
    HandleContext,
    ListenerMiddleware,
    chain,
)
from dispytch.listener.router import Placed
from dispytch.listener.signature import located, name_of
from dispytch.template import PlaceholderError
from dispytch.topics import TopicPattern

__all__ = ["Handler", "Surroundings", "pattern_of"]


class Surroundings:
    """What a handler gets from the listener and the routers around it.

    Args:
        group: the listener's group.
        delimiter: separates the segments of a topic.
        deserializer: the format; None: JSON.
        executor: where sync handlers run.
        overrides: what replaces which dependency.
    """

    def __init__(
        self,
        group: str | None,
        delimiter: str,
        deserializer: Deserializer | None,
        executor: Executor,
        overrides: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.group, self.delimiter, self.deserializer = group, delimiter, deserializer
        self.executor, self.overrides = executor, overrides


class Handler:
    """One handler of one listener.

    Args:
        placed: as it was declared, and what the routers around it add.
        around: what it gets from the listener.

    Attributes:
        name: `module:function`.
        pattern: the topics it handles.
        kind: the type it handles.
        ordered: whether the members of a group must keep the order of keys among them.
        retry: when to try again.
        reader: reads the events it takes.
        lanes: where those wait that stand behind another one of their key.
        invoke: awaited with the event and the topic's segments; returns what the function does.

    Raises:
        HandlerDefinitionError: topic or parameters can't work.
    """

    def __init__(self, placed: Placed, around: Surroundings) -> None:
        declared = placed.declared
        self.name = name_of(declared.fn)
        self.kind = declared.kind
        self.ordered = declared.ordered
        self._in_lanes = declared.in_lanes
        self.retry = placed.retry or Retry()
        self.pattern = pattern_of(placed, around.delimiter)
        plan = declared.plan(self.pattern.names, around.overrides)
        self.reader = BodyReader(self.kind, plan.body, around.deserializer)
        self.lanes: Lanes[Any] = Lanes()
        self.invoke = _invocation(plan, placed.middleware, self.name, around)

    def again(self, delivery: Delivery, attempt: int) -> Event[Any]:
        """The event once more, for the next attempt: nothing the last one changed is in it."""
        return self.event(self.reader.read(delivery.payload), delivery, attempt)

    def event(self, read: Read, delivery: Delivery, attempt: int) -> Event[Any]:
        """What the function gets."""
        return Event(
            read["id"],
            delivery.topic,
            read["type"],
            read["body"],
            read["timestamp"],
            delivery.key,
            delivery.headers,
            attempt,
        )

    def lane(self, delivery: Delivery) -> tuple[str, str] | None:
        """What waits for each other: events of one key on one topic."""
        if delivery.key is None or not self._in_lanes:
            return None
        return delivery.topic, delivery.key


def pattern_of(placed: Placed, delimiter: str) -> TopicPattern:
    """The topics of a handler, the prefixes of the routers around it included.

    Raises:
        HandlerDefinitionError: it has no topic, or one that can't work.
    """
    try:
        return TopicPattern(placed.declared.topic_under(placed.prefixes, delimiter), delimiter)
    except PlaceholderError as error:
        where = located(placed.declared.fn)
        raise HandlerDefinitionError(f"handler {where}: {error}") from error


def _invocation(
    plan: Plan, middleware: Sequence[ListenerMiddleware], name: str, around: Surroundings
) -> Invoke:
    fn: Any = plan.fn
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
    )
    offload = None if is_async else _offload(around.executor)
    invoke = (plan.written_out() if is_async else None) or partial(plan.run, offload=offload)
    if not middleware:
        return invoke
    call = chain(middleware, lambda ctx: invoke(ctx.event, ctx.segments))
    return lambda event, segments: call(HandleContext(event, name, dict(segments), around.group))


def _offload(executor: Executor) -> Offload:
    async def run(bound: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, lambda: context.run(_without_stop, bound))

    return run


def _without_stop(bound: Callable[[], Any]) -> Any:
    """Call it; a `StopIteration`, which no future carries, as the error it is in a coroutine."""
    try:
        return bound()
    except StopIteration as error:
        raise RuntimeError("the handler raised StopIteration") from error
