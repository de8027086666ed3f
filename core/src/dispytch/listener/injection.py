"""Injection: Depends, and how a function's signature becomes the plan that fills it."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from operator import itemgetter
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from dispytch.errors import HandlerDefinitionError
from dispytch.listener.plan import BODY, EVENT, SEGMENTS, Call, Plan, Step
from dispytch.listener.received import Event
from dispytch.listener.segment import TopicSegment, segment_validator
from dispytch.listener.signature import Parameter, located, name_of, parameters_of

__all__ = ["Depends", "plan_for"]

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


def plan_for(
    fn: Callable[..., Any],
    body: type[BaseModel] | None,
    segments: Sequence[str] | None,
    local_names: Mapping[str, Any],
    overrides: Mapping[Any, Callable[..., Any]],
) -> Plan:
    """How to call a function: compiled from its signature.

    Args:
        fn: the handler.
        body: the class of the event's body, or None: the first one that is asked for.
        segments: the names in the topic; None where they are not known yet.
        local_names: names that annotations may use besides those of their module.
        overrides: what replaces which dependency.

    Raises:
        HandlerDefinitionError: a parameter that can't be filled, a cycle, an unknown segment.
    """
    compiler = _Compiler(fn, body, segments, local_names, overrides)
    call = compiler.call(fn, fn, ())
    return Plan(fn, compiler.body, tuple(compiler.steps), call)


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
        self.steps: list[Step] = []
        self._shared: dict[Any, int] = {}

    def call(self, fn: Any, called: Callable[..., Any], path: tuple[Any, ...]) -> Call:
        """How `called` is called, with what `fn` asks for."""
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
        return Call(called, tuple(by_position), by_name)

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
            return EVENT
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            self._accept(fn, parameter, (annotation,), is_handler=len(path) == 1)
            return BODY
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
            return self._add(Step(Call(itemgetter(name), (SEGMENTS,), {})))
        try:
            validate = segment_validator(name, annotation, (*parameter.metadata, marker))
        except TypeError as error:
            raise self._wrong(
                fn, f"segment {wanted!r} can't be validated as it is declared: {error}"
            ) from error
        read = Call(lambda segments: validate(segments[name]), (SEGMENTS,), {})
        return self._add(Step(read))

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

    def _add(self, step: Step) -> int:
        """The place of what this step will make."""
        self.steps.append(step)
        return SEGMENTS + len(self.steps)

    def _step(self, fn: Any, path: tuple[Any, ...]) -> Step:
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
        return Step(self.call(fn, made_by, path), name_of(fn), awaited, entered)

    def _wrong(self, fn: Any, problem: str) -> HandlerDefinitionError:
        within = "" if fn is self.handler else f", dependency {located(fn)}"
        return HandlerDefinitionError(f"handler {located(self.handler)}{within}: {problem}")


def _entering(kind: type) -> str:
    if hasattr(kind, "__aenter__"):
        return "async"
    return "sync" if hasattr(kind, "__enter__") else ""


def _is_marker(value: Any) -> bool:
    return isinstance(value, Depends | TopicSegment)
