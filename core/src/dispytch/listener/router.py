"""Router: handlers declared apart from a listener, with a common topic prefix and middleware."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from dispytch.errors import ConfigError, EventDefinitionError, HandlerDefinitionError
from dispytch.event import EventBase, definition_of
from dispytch.listener.failure import Retry
from dispytch.listener.injection import plan_for
from dispytch.listener.plan import Plan
from dispytch.listener.received import ListenerMiddleware, middleware_problem
from dispytch.listener.signature import located, name_of
from dispytch.template import PlaceholderError, literals_and_fields

__all__ = ["Declared", "Placed", "Router", "already"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Declared:
    """A handler as it was declared.

    Attributes:
        fn: the function.
        topic: the topic or pattern; None: the router's prefix alone.
        is_absolute: whether the topic is the event class's own, which no prefix changes.
        kind: the event's type.
        body: the event class, or None where the handler says itself what it takes.
        retry: its own, or None.
        ordered: whether the members of a group must keep the order of keys among them.
        in_lanes: whether events of one key wait for each other here.
        middleware: its own.
        local_names: names of the place where it was declared.
    """

    fn: Callable[..., Any]
    topic: str | None
    is_absolute: bool
    kind: str
    body: type[BaseModel] | None
    retry: Retry | None
    ordered: bool
    in_lanes: bool
    middleware: tuple[ListenerMiddleware, ...]
    local_names: Mapping[str, Any]

    def topic_under(self, prefixes: Sequence[str], delimiter: str) -> str:
        """The whole topic, with the prefixes of the routers around it.

        Raises:
            HandlerDefinitionError: there is none.
        """
        parts = [] if self.is_absolute else list(prefixes)
        parts += [] if self.topic is None else [self.topic]
        if not parts:
            raise HandlerDefinitionError(
                f"handler {located(self.fn)} has no topic: give it topic=..., or a router with one"
            )
        return delimiter.join(parts)

    def plan(self, segments: Sequence[str] | None, overrides: Mapping[Any, Any]) -> Plan:
        """How to call it.

        Raises:
            HandlerDefinitionError: a parameter can't be filled.
        """
        return plan_for(self.fn, self.body, segments, self.local_names, overrides)


class Placed(NamedTuple):
    """A handler and what the routers around it add.

    Attributes:
        declared: as it was declared.
        prefixes: the topics of the routers, the outermost first.
        middleware: all of it, the outermost first, its own included.
        retry: the nearest; None: the listener's default.
    """

    declared: Declared
    prefixes: Sequence[str]
    middleware: Sequence[ListenerMiddleware]
    retry: Retry | None


class Router:
    """Collects handlers, to be included in a listener or in another router.

    Args:
        topic: what stands before the topics of its handlers, without the delimiter between them.
            Handlers declared by event class keep the class's topic.
        middleware: `async def mw(ctx, call_next)` around its handlers, the first one outermost.
        retry: for handlers that name none.

    Raises:
        ConfigError: an argument can't work.
    """

    def __init__(
        self,
        topic: str | None = None,
        *,
        middleware: Sequence[ListenerMiddleware] = (),
        retry: Retry | None = None,
    ) -> None:
        if (problem := middleware_problem(middleware)) is not None:
            raise ConfigError(problem)
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigError(f"retry must be a Retry, not {retry!r}")
        if topic is not None:
            _names(topic, f"Router(topic={topic!r})", ConfigError)
        self.topic = topic
        self.middleware = tuple(middleware)
        self.retry = retry
        self.declared: list[Declared] = []
        self._routes: dict[tuple[str, str | None, str], Declared] = {}  # its own, by name
        self.routers: list[Router] = []

    def include_router(self, router: "Router") -> None:
        """Take in the handlers of another router, those declared later included.

        Raises:
            ConfigError: it is no router, or holds this one.
        """
        if not isinstance(router, Router):
            raise ConfigError(f"include_router takes a Router, not {router!r}")
        if self in router.walk():
            raise ConfigError("a router can't include itself")
        self.routers.append(router)

    def placed(
        self,
        prefixes: Sequence[str] = (),
        middleware: Sequence[ListenerMiddleware] = (),
        retry: Retry | None = None,
    ) -> "Iterator[Placed]":
        """All handlers, with what the routers around them add."""
        prefixes = prefixes if self.topic is None else (*prefixes, self.topic)
        middleware = (*middleware, *self.middleware)
        retry = self.retry or retry
        for declared in self.declared:
            own = (*middleware, *declared.middleware)
            yield Placed(declared, prefixes, own, declared.retry or retry)
        for router in self.routers:
            yield from router.placed(prefixes, middleware, retry)

    def walk(self) -> "Iterator[Router]":
        """This router and all that it includes."""
        yield self
        for router in self.routers:
            yield from router.walk()

    def handler(
        self,
        event_class: type[EventBase] | None = None,
        /,
        *,
        topic: str | None = None,
        event: str | None = None,
        retry: Retry | None = None,
        ordered: bool | None = None,
        middleware: Sequence[ListenerMiddleware] = (),
    ) -> Callable[[F], F]:
        """Declare a handler of an event class, or of an event type on a topic.

        Args:
            event_class: the class; its topic, with placeholders as segments, and its type.
            topic: a topic or pattern instead: `{name}` is a segment, a last `*` all that follow.
            event: the `__event_type__` on that topic.
            retry: when to try again; None: the router's, else the listener's.
            ordered: whether events of one key wait for each other, in this process and, as far as
                the backend can, in others. None: yes, but not for a class without a `__key__`.
            middleware: around this handler alone.

        Raises:
            HandlerDefinitionError: it can't work as declared; names function, file and line.
        """
        caller = sys._getframe(1)
        if isinstance(event_class, FunctionType):  # it would be gone without a word
            raise HandlerDefinitionError(
                f"handler {located(event_class)}: name what it handles, @...handler(EventClass)"
            )

        def declare(fn: F) -> F:
            if (problem := middleware_problem(middleware)) is not None:
                raise HandlerDefinitionError(f"handler {located(fn)}: {problem}")
            if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
                raise HandlerDefinitionError(
                    f"handler {located(fn)} is a generator: only dependencies yield"
                )
            target = _target(fn, event_class, topic, event)
            if ordered is not None and not isinstance(ordered, bool):
                raise HandlerDefinitionError(
                    f"handler {located(fn)}: ordered must be True or False"
                )
            if retry is not None and not isinstance(retry, Retry):
                raise HandlerDefinitionError(
                    f"handler {located(fn)}: retry must be a Retry, not {retry!r}"
                )
            keyed = event_class is None or definition_of(event_class).key is not None
            self._declare(
                Declared(
                    fn,
                    *target,
                    event_class,
                    retry,
                    keyed if ordered is None else ordered,
                    ordered is not False,  # an event's config may give it a key, too
                    tuple(middleware),
                    dict(caller.f_locals) | {"__name__": caller.f_globals.get("__name__")},
                )
            )
            return fn

        return declare

    def _declare(self, declared: Declared) -> None:
        route = name_of(declared.fn), declared.topic, declared.kind
        if route in self._routes:
            raise already(declared, self._routes[route], declared.topic)
        declared.plan(self._segments(declared), {})
        self.declared.append(declared)
        self._routes[route] = declared

    def _segments(self, declared: Declared) -> Sequence[str] | None:
        """The names in the topic; None: a router around this one may add some."""
        return literals_and_fields(declared.topic or "")[1] if declared.is_absolute else None


def already(declared: Declared, other: Declared, topic: str | None) -> HandlerDefinitionError:
    """What is wrong with two handlers of one name on one route."""
    known = (
        "is already registered"
        if declared.fn is other.fn
        else "has the name of another one that is registered; dead letters are addressed by names,"
        " so give it its own,"
    )
    return HandlerDefinitionError(
        f"handler {located(declared.fn)} {known} for {declared.kind!r} on {topic!r}"
    )


def _target(
    fn: Callable[..., Any], event_class: Any, topic: str | None, event: str | None
) -> tuple[str | None, bool, str]:
    """Topic, whether it is absolute, and type."""
    where = f"handler {located(fn)}"
    if event_class is None:
        if not (isinstance(event, str) and event):
            raise HandlerDefinitionError(
                f"{where}: name an event class, or a topic=... and the event=... type on it"
            )
        if topic is not None:
            _names(topic, where, HandlerDefinitionError)
        return topic, False, event
    if topic is not None or event is not None:
        raise HandlerDefinitionError(f"{where}: an event class brings its own topic and type")
    if not (isinstance(event_class, type) and issubclass(event_class, EventBase)):
        raise HandlerDefinitionError(f"{where}: {event_class!r} is no event class")
    try:
        definition = definition_of(event_class)
    except EventDefinitionError as error:
        raise HandlerDefinitionError(f"{where}: {error}") from error
    if definition.topic is None or definition.event_type is None:
        missing = "__topic__" if definition.topic is None else "__event_type__"
        raise HandlerDefinitionError(f"{where}: {event_class.__name__} has no {missing}")
    return definition.topic.text, True, definition.event_type


def _names(topic: object, where: str, kind: type[Exception]) -> tuple[str, ...]:
    if not (isinstance(topic, str) and topic):
        raise kind(f"{where}: the topic must be a non-empty str, not {topic!r}")
    try:
        return literals_and_fields(topic)[1]
    except PlaceholderError as error:
        raise kind(f"{where}: {error}") from error
