"""Injection: Depends, and the plan that fills a handler's parameters.

A plan is made when a handler is registered: which dependencies to make in which order, and where
each argument comes from. Per event it only runs.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from types import CoroutineType
from typing import Any, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel

from dispytch.errors import HandlerDefinitionError
from dispytch.listener.received import Event
from dispytch.listener.segment import TopicSegment, segment_validator
from dispytch.listener.signature import Parameter, located, name_of, parameters_of

__all__ = ["Depends", "Offload", "Plan"]

logger = logging.getLogger("dispytch")

_KEYWORD, _POSITION = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY


class Depends:
    """Asks for what `fn` makes: `Annotated[Session, Depends(get_session)]`.

    Args:
        fn: a sync or async function, a generator (what it yields; the rest runs afterwards), a
            context manager, or a class; it may have dependencies itself, and take `Event[T]` and
            `TopicSegment`. Sync ones run on the event loop and must not block. None: the
            annotated class.
        use_cache: whether all who ask for `fn` in one attempt of a handler share one instance.
    """

    __slots__ = ("fn", "use_cache")

    def __init__(self, fn: Callable[..., Any] | None = None, *, use_cache: bool = True) -> None:
        self.fn = fn
        self.use_cache = use_cache


Offload: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
Pick: TypeAlias = Callable[[list[Any]], Sequence[Any]]

_EVENT, _BODY, _SEGMENTS = 0, 1, 2
"""The places of what an attempt begins with among its values; each step adds one to them."""


class _Call:
    """A callable, and the places its arguments are at."""

    __slots__ = ("_by_name", "_by_position", "_fn", "_names")

    def __init__(
        self, fn: Callable[..., Any], by_position: Sequence[int], by_name: Mapping[str, int]
    ) -> None:
        self._fn, self._by_position = fn, _pick(by_position)
        self._names, self._by_name = tuple(by_name), _pick(tuple(by_name.values()))

    def __call__(self, values: list[Any]) -> Any:
        if self._names:
            named = zip(self._names, self._by_name(values), strict=True)
            return self._fn(*self._by_position(values), **dict(named))
        return self._fn(*self._by_position(values))


def _pick(places: Sequence[int]) -> Pick:
    """What picks the values at these places; without a loop, as it runs for each event."""
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


@dataclass(frozen=True, slots=True)
class _Step:
    """A value to make: how, and what to do with what the call returns."""

    call: _Call
    name: str = ""
    awaited: bool = False
    entered: str = ""  # "", "sync" or "async"


class Plan:
    """How to call a function: compiled from its signature.

    Args:
        fn: the handler.
        body: the class of the event's body, or None: the first one that is asked for.
        segments: the names in the topic; None where they are not known yet.
        local_names: names that annotations may use besides those of their module.
        overrides: what replaces which dependency.

    Attributes:
        body: the class of the body; None where nobody asks for it.

    Raises:
        HandlerDefinitionError: a parameter that can't be filled, a cycle, an unknown segment.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        body: type[BaseModel] | None,
        segments: Sequence[str] | None,
        local_names: Mapping[str, Any],
        overrides: Mapping[Any, Callable[..., Any]],
    ) -> None:
        compiler = _Compiler(fn, body, segments, local_names, overrides)
        by_position, by_name = compiler.arguments(fn, ())
        self._call = _Call(fn, by_position, by_name)
        self._steps = tuple(compiler.steps)
        self.body = compiler.body
        self.fn = fn
        self.takes_event_alone = by_position == [_EVENT] and not by_name and not self._steps

    async def run(
        self, event: Event[Any], segments: Mapping[str, str], offload: Offload | None
    ) -> Any:
        """Make the dependencies, call, and close them in reverse order, whatever happens.

        Args:
            event: the event.
            segments: the topic's segments by name.
            offload: runs the function elsewhere, where it is a sync one.

        Raises:
            BaseException: what the function, or a dependency while it was made or closed, raised.
        """
        values = [event, event.body, segments]
        opened: list[tuple[_Step, Any]] = []
        error: BaseException | None = None
        result = None
        try:
            for step in self._steps:
                made = step.call(values)
                if step.awaited or isinstance(made, CoroutineType):
                    made = await made
                if step.entered:
                    manager = made
                    is_async = step.entered == "async"
                    made = await manager.__aenter__() if is_async else manager.__enter__()
                    opened.append((step, manager))
                values.append(made)
            if offload is None:
                result = await self._call(values)
            else:
                result = await offload(lambda: self._call(values))
                if inspect.isawaitable(result):  # a coroutine function in a plain wrapper
                    result = await result
        except BaseException as raised:  # noqa: BLE001 - raised again below, after the closing
            error = raised
        for step, manager in reversed(opened):
            error = await _close(step, manager, error)
        if error is not None:
            raise error
        return result


async def _close(step: _Step, manager: Any, error: BaseException | None) -> BaseException | None:
    """Close one dependency; the error that counts from now on. It can't be swallowed."""
    told = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
    try:
        if step.entered == "async":
            await manager.__aexit__(*told)
        else:
            manager.__exit__(*told)
    except BaseException as raised:  # noqa: BLE001 - handed back
        if raised is error:
            return error
        if isinstance(raised, RuntimeError) and str(raised).startswith("generator didn't stop"):
            raised = _twice(step, raised)
        if error is None or not isinstance(raised, Exception):
            return raised
        logger.error("dependency %s failed to close: %r", step.name, raised)  # noqa: TRY400
    return error


def _twice(step: _Step, cause: RuntimeError) -> RuntimeError:
    error = RuntimeError(
        f"dependency {step.name} yielded a second time; a generator dependency yields once, and "
        "closes after that"
    )
    error.__cause__ = cause
    return error


class _Compiler:
    def __init__(
        self,
        handler: Callable[..., Any],
        body: type[BaseModel] | None,
        segments: Sequence[str] | None,
        local_names: Mapping[str, Any],
        overrides: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.handler, self.body, self.given_body = handler, body, body
        self.segments, self.local_names, self.overrides = segments, local_names, overrides
        self.steps: list[_Step] = []
        self._shared: dict[Any, int] = {}

    def arguments(
        self, fn: Callable[..., Any], path: tuple[Any, ...]
    ) -> tuple[list[int], dict[str, int]]:
        """The places of its arguments, by position and by name."""
        by_position: list[int] = []
        by_name: dict[str, int] = {}
        gap = False
        try:
            parameters = parameters_of(fn, self.local_names, _is_marker)
        except TypeError as error:
            raise self._wrong(fn, str(error)) from error
        for parameter in parameters:
            place = self._place(fn, parameter, (*path, fn))
            if place is None:
                gap = True
            elif parameter.kind is _KEYWORD or (gap and parameter.kind is not _POSITION):
                by_name[parameter.name] = place
            elif gap:
                raise self._wrong(
                    fn, f"parameter {parameter.name!r} stands behind one that is left out"
                )
            else:
                by_position.append(place)
        return by_position, by_name

    def _place(self, fn: Any, parameter: Parameter, path: tuple[Any, ...]) -> int | None:
        annotation = parameter.annotation
        if len(parameter.markers) > 1:
            raise self._wrong(fn, f"parameter {parameter.name!r} has more than one marker")
        for marker in parameter.markers:
            if isinstance(marker, TopicSegment):
                return self._segment(fn, parameter, marker)
            return self._dependency(fn, parameter, marker, path)
        if annotation is Event or get_origin(annotation) is Event:
            self._accept(fn, parameter, get_args(annotation), is_handler=len(path) == 1)
            return _EVENT
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            self._accept(fn, parameter, (annotation,), is_handler=len(path) == 1)
            return _BODY
        if parameter.has_default:
            return None
        given = "has no annotation" if annotation is inspect.Parameter.empty else "can't be filled"
        raise self._wrong(
            fn,
            f"parameter {parameter.name!r} {given}; annotate it with Event[...], the event's "
            "class, Annotated[..., Depends(...)] or Annotated[..., TopicSegment()], or give it a "
            "default",
        )

    def _accept(
        self, fn: Any, parameter: Parameter, arguments: tuple[Any, ...], *, is_handler: bool
    ) -> None:
        """Check that the body's class fits, or learn it."""
        wanted: Any = arguments[0] if arguments else Any
        if wanted is Any or isinstance(wanted, TypeVar) or wanted is BaseModel:
            if is_handler and self.given_body is None:
                raise self._wrong(
                    fn, f"parameter {parameter.name!r}: name the body's model, Event[Model]"
                )
            return
        if not (isinstance(wanted, type) and issubclass(wanted, BaseModel)):
            shown = getattr(wanted, "__name__", wanted)
            raise self._wrong(
                fn,
                f"parameter {parameter.name!r}: a body is a pydantic model, and {shown} is none",
            )
        if self.body is None:
            self.body = wanted
        elif self.given_body is None and issubclass(wanted, self.body):
            self.body = wanted  # a dependency asked for less
        elif not issubclass(self.body, wanted):
            raise self._wrong(
                fn,
                f"parameter {parameter.name!r} wants a {wanted.__name__}, but the event is a "
                f"{self.body.__name__}",
            )

    def _segment(self, fn: Any, parameter: Parameter, marker: TopicSegment) -> int:
        wanted = marker.name or parameter.name
        known = self.segments
        name = wanted
        if known is not None and wanted not in known:
            by_underscore = {segment.replace(".", "_"): segment for segment in known}
            if wanted not in by_underscore:
                listed = ", ".join(known) or "none"
                raise self._wrong(fn, f"the topic has no segment {wanted!r}; it has: {listed}")
            name = by_underscore[wanted]
        annotation = (
            str if parameter.annotation is inspect.Parameter.empty else parameter.annotation
        )
        if annotation is str and not marker.constraints and not parameter.metadata:
            return self._add(_Step(_Call(itemgetter(name), [_SEGMENTS], {})))
        try:
            validate = segment_validator(name, annotation, (*parameter.metadata, marker))
        except TypeError as error:
            raise self._wrong(
                fn, f"segment {wanted!r} can't be validated as it is declared: {error}"
            ) from error
        read = _Call(lambda segments: validate(segments[name]), [_SEGMENTS], {})
        return self._add(_Step(read))

    def _dependency(
        self, fn: Any, parameter: Parameter, marker: Depends, path: tuple[Any, ...]
    ) -> int:
        asked = parameter.annotation if marker.fn is None else marker.fn
        if not isinstance(asked, Hashable):
            raise self._wrong(
                fn, f"parameter {parameter.name!r}: Depends needs something hashable, not {asked!r}"
            )
        wanted = self.overrides.get(asked, asked)
        if not callable(wanted) or asked is inspect.Parameter.empty:
            raise self._wrong(
                fn, f"parameter {parameter.name!r}: Depends needs something to call, not {wanted!r}"
            )
        if wanted in path:
            cycle = " -> ".join(name_of(each) for each in (*path[path.index(wanted) :], wanted))
            raise self._wrong(fn, f"dependency cycle: {cycle}")
        if marker.use_cache and wanted in self._shared:
            return self._shared[wanted]
        place = self._add(self._step(wanted, path))
        if marker.use_cache:
            self._shared[wanted] = place
        return place

    def _add(self, step: _Step) -> int:
        """The place of what this step will make."""
        self.steps.append(step)
        return _SEGMENTS + len(self.steps)

    def _step(self, fn: Any, path: tuple[Any, ...]) -> _Step:
        by_position, by_name = self.arguments(fn, path)
        made_by: Any = fn
        entered = ""
        if inspect.isasyncgenfunction(fn):
            made_by, entered = asynccontextmanager(fn), "async"
        elif inspect.isgeneratorfunction(fn):
            made_by, entered = contextmanager(fn), "sync"
        elif isinstance(fn, type):
            entered = _entering(fn)
        elif inspect.isasyncgenfunction(inspect.unwrap(fn)):  # made by @asynccontextmanager
            entered = "async"
        elif inspect.isgeneratorfunction(inspect.unwrap(fn)):
            entered = "sync"
        awaited = inspect.iscoroutinefunction(fn) or (
            not isinstance(fn, type) and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
        )
        return _Step(_Call(made_by, by_position, by_name), name_of(fn), awaited, entered)

    def _wrong(self, fn: Any, problem: str) -> HandlerDefinitionError:
        within = "" if fn is self.handler else f", dependency {located(fn)}"
        return HandlerDefinitionError(f"handler {located(self.handler)}{within}: {problem}")


def _entering(kind: type) -> str:
    if hasattr(kind, "__aenter__"):
        return "async"
    return "sync" if hasattr(kind, "__enter__") else ""


def _is_marker(value: Any) -> bool:
    return isinstance(value, Depends | TopicSegment)
