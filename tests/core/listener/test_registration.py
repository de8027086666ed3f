"""Registration: what can't work is refused where it is written, with the handler, file and line."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, PositiveInt

from dispytch import (
    ConfigError,
    Depends,
    Event,
    EventBase,
    EventListener,
    HandlerDefinitionError,
    Retry,
    Router,
    TopicSegment,
)
from dispytch.memory import MemoryConsumer
from dispytch.testing import TestListener

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


class Placed(EventBase):
    __topic__ = "orders.{order.id}"
    __event_type__ = "placed"

    order: Order
    n: int = 0


class Order(BaseModel):
    id: str


class NoTopic(EventBase):
    __event_type__ = "no_topic"


class NoType(EventBase):
    __topic__ = "no_type"


class Adjacent(EventBase):
    __topic__ = "x.{a}{b}"
    __event_type__ = "adjacent"
    a: str
    b: str


T = TypeVar("T")


class Boxed(EventBase, Generic[T]):
    __topic__ = "boxed"
    __event_type__ = "boxed"
    value: T


class Other(BaseModel):
    x: int


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> int:
        return 1


class NoModel:
    pass


def needs_b(b: Annotated[int, Depends(lambda: needs_a)]) -> int:
    return b


def needs_a(b: int = Depends(lambda b=0: 1)) -> int:  # type: ignore[assignment]
    return b


def itself(x: Annotated[int, Depends(lambda: 0)]) -> int:
    return x


def first(x: Any) -> int:
    return 1


def second(x: Annotated[int, Depends(first)]) -> int:
    return x


first.__annotations__["x"] = Annotated[int, Depends(second)]


def needs_unknown(x: complex) -> None: ...


def wants_other(event: Event[Other]) -> None: ...


def listener() -> EventListener:
    return EventListener(MemoryConsumer())


Decorate = Callable[..., Any]
REGISTRATIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...], str]] = {}


def mistake(expected: str, *args: Any, **options: Any) -> Callable[[Any], Any]:
    def remember(fn: Any) -> Any:
        REGISTRATIONS[fn.__name__] = (fn, options, args, expected)
        return fn

    return remember


ON_ORDERS: dict[str, Any] = {"topic": "orders.{id}", "event": "placed"}


@mistake("no segment 'nope'", Placed)
async def unknown_segment(nope: Annotated[str, TopicSegment()]) -> None: ...


@mistake("no segment 'name'", **ON_ORDERS)
async def unknown_segment_by_topic(name: Annotated[str, TopicSegment()]) -> None: ...


@mistake("dependency cycle: .*first.*second", Placed)
async def cycle(x: Annotated[int, Depends(first)]) -> None: ...


@mistake("parameter 'x' has no annotation", Placed)
async def no_annotation(x) -> None: ...  # type: ignore[no-untyped-def]


@mistake("parameter 'x' can't be filled", Placed)
async def unknown_type(x: complex) -> None: ...


@mistake("dependency .*needs_unknown.*parameter 'x' can't be filled", Placed)
async def unknown_type_in_a_dependency(x: Annotated[None, Depends(needs_unknown)]) -> None: ...


@mistake("a body is a pydantic model, and NoModel is none", **ON_ORDERS)
async def no_model(event: Event[NoModel]) -> None: ...  # type: ignore[type-var,unused-ignore]


@mistake("a body is a pydantic model, and dict is none", **ON_ORDERS)
async def a_dict(event: Event[dict]) -> None: ...  # type: ignore[type-arg]


@mistake("name the body's model", **ON_ORDERS)
async def any_body(event: Event[Any]) -> None: ...


@mistake("wants a Other, but the event is a Placed", Placed)
async def wrong_body(event: Event[Other]) -> None: ...


@mistake("dependency .*wants_other.*wants a Other, but the event is a Placed", Placed)
async def wrong_body_in_a_dependency(x: Annotated[None, Depends(wants_other)]) -> None: ...


@mistake("NoTopic has no __topic__", NoTopic)
async def no_topic(event: NoTopic) -> None: ...


@mistake("NoType has no __event_type__", NoType)
async def no_type(event: NoType) -> None: ...


@mistake("is no event class", Other)
async def no_event_class(event: Other) -> None: ...


@mistake("is no event class", "placed")
async def a_name(event: Other) -> None: ...


@mistake("is generic", Boxed)
async def generic(event: Boxed[Any]) -> None: ...


@mistake("brings its own topic", Placed, topic="x")
async def class_and_topic(event: Placed) -> None: ...


@mistake("brings its own topic", Placed, event="x")
async def class_and_type(event: Placed) -> None: ...


@mistake("name an event class, or a topic", topic="x")
async def topic_alone(event: Event[Order]) -> None: ...


@mistake("name an event class, or a topic")
async def nothing_named(event: Event[Order]) -> None: ...


@mistake("has no topic", event="placed")
async def type_alone(event: Event[Order]) -> None: ...


@mistake("lone '{'", topic="orders.{id", event="x")
async def lone_brace(event: Event[Order]) -> None: ...


@mistake("can only be the whole last segment", topic="orders.*.x", event="x")
async def star_in_the_middle(event: Event[Order]) -> None: ...


@mistake("can only be the whole last segment", topic="orders.x*", event="x")
async def star_in_a_segment(event: Event[Order]) -> None: ...


@mistake("two placeholders with nothing between", topic="orders.{a}{b}", event="x")
async def adjacent(event: Event[Order]) -> None: ...


@mistake("two placeholders with nothing between", Adjacent)
async def adjacent_of_a_class(event: Adjacent) -> None: ...


@mistake("names one placeholder twice", topic="{a}.{a}", event="x")
async def twice_named(event: Event[Order]) -> None: ...


@mistake("empty segment", topic="orders..x", event="x")
async def empty_segment(event: Event[Order]) -> None: ...


@mistake("must be a non-empty str", topic="", event="x")
async def empty_topic(event: Event[Order]) -> None: ...


@mistake("must be a non-empty str", topic=7, event="x")
async def topic_of_a_wrong_type(event: Event[Order]) -> None: ...


@mistake("is no field name", topic="orders.{0}", event="x")
async def positional_placeholder(event: Event[Order]) -> None: ...


@mistake("Depends needs something to call, not 7", Placed)
async def depends_on_a_number(x: Annotated[int, Depends(7)]) -> None: ...  # type: ignore[arg-type]


@mistake("Depends needs something to call", Placed)
async def depends_on_no_annotation(x=Depends()) -> None: ...  # type: ignore[no-untyped-def]


@mistake("something hashable", Placed)
async def depends_on_the_unhashable(x: Annotated[int, Depends(Unhashable())]) -> None: ...


@mistake("more than one marker", Placed)
async def two_markers(x: Annotated[int, Depends(first), TopicSegment()]) -> None: ...


@mistake("more than one marker", Placed)
async def marker_and_default(
    x: Annotated[int, Depends(itself)] = TopicSegment("order.id"),  # type: ignore[assignment]
) -> None: ...


@mistake("retry must be a Retry", Placed, retry=3)
async def retry_of_a_wrong_type(event: Placed) -> None: ...


@mistake("ordered must be True or False", Placed, ordered="no")
async def ordered_of_a_wrong_type(event: Placed) -> None: ...


async def some_middleware(ctx: Any, call_next: Any) -> Any: ...


@mistake("middleware is a list", Placed, middleware=some_middleware)
async def bare_middleware(event: Placed) -> None: ...


@mistake("a middleware is an async function, not 7", Placed, middleware=[7])
async def no_middleware(event: Placed) -> None: ...


@mistake("OnlyForCheckers.*import that name at run time", Placed)
async def only_for_checkers(x: Annotated[OnlyForCheckers, Depends(itself)]) -> None: ...


@mistake("can't be validated as it is declared", topic="orders.{id}", event="x")
async def constraint_unfit(id: Annotated[int, TopicSegment(min_length=3)]) -> None: ...


@mistake("there is no constraint gtt", topic="orders.{id}", event="x")
async def constraint_misspelt(id: Annotated[int, TopicSegment(gtt=3)]) -> None: ...


@mistake("can't be validated as it is declared", topic="orders.{id}", event="x")
async def constraint_bad_pattern(id: Annotated[str, TopicSegment(pattern="[")]) -> None: ...


@mistake("can't be validated as it is declared", topic="orders.{id}", event="x")
async def segment_of_no_type(id: Annotated[NoModel, TopicSegment()]) -> None: ...


@mistake("is a generator", Placed)
async def an_async_generator(event: Placed) -> AsyncIterator[None]:
    yield


@mistake("is a generator", Placed)
def a_generator(event: Placed) -> Iterator[None]:
    yield


@mistake("stands behind one that is left out", Placed)
async def gap(x: int = 1, event: Event[Placed] = None, /) -> None: ...  # type: ignore[assignment]


@pytest.mark.parametrize("name", REGISTRATIONS)
@pytest.mark.parametrize("make", [listener, Router], ids=["listener", "router"])
def test_mistake_is_refused_with_handler_file_and_line(
    name: str, make: Callable[[], Router]
) -> None:
    """Every mistake is a HandlerDefinitionError that names the handler, its file and its line.

    On a router at the latest when it is included: only then its topics are known.
    """
    fn, options, args, expected = REGISTRATIONS[name]
    target = make()
    with pytest.raises(HandlerDefinitionError) as raised:
        target.handler(*args, **options)(fn)
        listener().include_router(target)
    message = str(raised.value)
    assert re.search(expected, message), message
    assert f":{name} " in message
    assert f"({inspect.getfile(fn)}:{fn.__code__.co_firstlineno})" in message
    if make is listener:
        assert target.declared == []


def test_same_function_twice_on_one_route_is_refused() -> None:
    """One function, one route, once: on a listener, on a router, and over included routers."""

    async def handle(event: Placed) -> None: ...

    for target in (listener(), Router()):
        target.handler(Placed)(handle)
        with pytest.raises(HandlerDefinitionError, match=r"handle \(.*already registered"):
            target.handler(Placed)(handle)

    router = Router("orders")
    router.handler(topic="x", event="x")(handle_order)
    ours = listener()
    ours.include_router(router)
    with pytest.raises(HandlerDefinitionError, match="already registered"):
        ours.include_router(router)
    assert len(ours.routers) == 1
    ours.handler(topic="x", event="x")(handle_order)  # another topic
    with pytest.raises(HandlerDefinitionError, match="already registered"):
        ours.handler(topic="orders.x", event="x")(handle_order)


async def test_same_function_declared_later_on_a_router_is_refused_at_start() -> None:
    """What a router gets after it was included is checked when the listener starts."""
    router, ours = Router(), listener()
    ours.handler(topic="x", event="x")(handle_order)
    ours.include_router(router)
    router.handler(topic="x", event="x")(handle_order)
    with pytest.raises(HandlerDefinitionError, match="already registered"):
        await ours.start()


async def handle_order(event: Event[Order]) -> None: ...


def test_decorator_without_parentheses_is_refused() -> None:
    """A forgotten call would leave the function unregistered without a word."""
    with pytest.raises(HandlerDefinitionError, match=r"handle_order \(.*name what it handles"):
        listener().handler(handle_order)  # type: ignore[arg-type]


def test_what_is_no_function_is_refused() -> None:
    """A thing that can't be called is no handler."""
    with pytest.raises(HandlerDefinitionError, match="can't be called"):
        listener().handler(Placed)(7)  # type: ignore[type-var]


def test_segment_of_a_routers_prefix_is_known_when_included() -> None:
    """A handler may name segments of the routers around it; unknown ones fail when included."""
    inner, outer = Router("{shop}.orders"), Router("{region}")

    @inner.handler(topic="{id}", event="placed")
    async def handle(
        event: Event[Order],
        id: Annotated[str, TopicSegment()],
        shop: Annotated[str, TopicSegment()],
        region: Annotated[str, TopicSegment()],
    ) -> None: ...

    with pytest.raises(HandlerDefinitionError, match="no segment 'region'"):
        listener().include_router(inner)
    outer.include_router(inner)
    listener().include_router(outer)


def test_refused_router_is_not_included() -> None:
    """After an error the listener is as it was."""
    router, ours = Router(), listener()

    @router.handler(topic="x", event="x")
    async def handle(event: Event[Order], id: Annotated[str, TopicSegment()]) -> None: ...

    with pytest.raises(HandlerDefinitionError):
        ours.include_router(router)
    assert ours.routers == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Router(middleware=some_middleware), "middleware is a list"),  # type: ignore[arg-type]
        (lambda: Router(middleware=["x"]), "not 'x'"),  # type: ignore[list-item]
        (lambda: Router(retry=3), "retry must be a Retry"),  # type: ignore[arg-type]
        (lambda: Router("a.{"), "lone"),
        (lambda: Router(""), "non-empty"),
        (lambda: Router().include_router(listener), "takes a Router"),  # type: ignore[arg-type]
        (lambda: (router := Router()).include_router(router), "can't include itself"),
        (lambda: EventListener(object()), "expected a Consumer"),  # type: ignore[arg-type]
        (lambda: EventListener(MemoryConsumer(), nope=1), "no option nope"),  # type: ignore[call-arg]
        (lambda: EventListener(MemoryConsumer(), max_in_flight=0), "max_in_flight"),
        (lambda: EventListener(MemoryConsumer(), max_parked=True), "max_parked"),
        (lambda: EventListener(MemoryConsumer(), max_threads=1.5), "max_threads"),  # type: ignore[arg-type]
        (lambda: EventListener(MemoryConsumer(), drain_timeout=float("nan")), "drain_timeout"),
        (lambda: EventListener(MemoryConsumer(), timeout=0), "timeout"),
        (lambda: EventListener(MemoryConsumer(), group=""), "group"),
        (lambda: EventListener(MemoryConsumer(), unmatched="drop"), "unmatched"),  # type: ignore[arg-type]
        (lambda: EventListener(MemoryConsumer(), retry=3), "retry"),  # type: ignore[arg-type]
        (lambda: EventListener(MemoryConsumer(), dead_letter="x"), "dead_letter"),  # type: ignore[arg-type]
        (lambda: Retry(attempts=0), "attempts"),
        (lambda: Retry(attempts=True), "attempts"),
        (lambda: Retry(attempts=2.0), "attempts"),  # type: ignore[arg-type]
        (lambda: Retry(base=-1), "base"),
        (lambda: Retry(cap=float("inf")), "cap"),
        (lambda: Retry(base="1"), "base"),  # type: ignore[arg-type]
        (lambda: Retry(on=ValueError("x")), "on"),  # type: ignore[arg-type]
        (lambda: Retry(on=BaseException), "on"),  # type: ignore[arg-type]
        (lambda: Retry(on=[ValueError]), "on"),  # type: ignore[arg-type]
    ],
)
def test_argument_that_cant_work_is_a_config_error(make: Callable[[], Any], message: str) -> None:
    """Arguments of listeners, routers and Retry are checked when given, naming the argument."""
    with pytest.raises(ConfigError, match=message):
        make()


def test_routers_that_include_each_other_are_refused() -> None:
    """A circle of routers would have no end."""
    a, b = Router(), Router()
    a.include_router(b)
    with pytest.raises(ConfigError, match="can't include itself"):
        b.include_router(a)


async def test_listener_without_handlers_does_not_start() -> None:
    """A listener that would receive nothing says so."""
    with pytest.raises(ConfigError, match="no handlers"):
        await listener().start()


async def test_annotations_may_use_local_names() -> None:
    """With postponed annotations, classes of the place where the handler stands are found."""

    class Local(BaseModel):
        id: str

    def make_local() -> Local:
        return Local(id="made")

    ours, seen = listener(), []

    @ours.handler(topic="x.{n}", event="x")
    async def handle(
        event: Event[Local],
        made: Annotated[Local, Depends(make_local)],
        n: Annotated[PositiveInt, TopicSegment()],
    ) -> None:
        seen.append((event.body.id, made.id, n))

    async with TestListener(ours) as t:
        payload = b'{"id":"1","type":"x","body":{"id":"b"},"timestamp":1}'
        await t.send("x.7", payload)
        await t.send("x.0", payload)
        await t.settled()
        assert len(t.dead_letters) == 1
    assert seen == [("b", "made", 7)]


async def test_local_names_do_not_hide_those_of_another_module() -> None:
    """A dependency of another module means its own names, whatever the handler's module calls so."""
    namespace: dict[str, Any] = {"__name__": "elsewhere", "Order": int}
    code = "from __future__ import annotations\ndef make(n: Order = 5) -> Order: return n\n"
    exec(compile(code, "elsewhere.py", "exec"), namespace)

    class Order(BaseModel):  # what `make` must not take for its own
        id: str

    ours, seen = listener(), []

    @ours.handler(Placed)
    async def handle(event: Placed, n: Annotated[int, Depends(namespace["make"])]) -> None:
        seen.append(n)

    async with TestListener(ours) as t:
        await t.emit(Placed.model_validate({"order": {"id": "1"}}))
        await t.settled()
    assert seen == [5]


async def test_partial_method_and_object_are_handlers() -> None:
    """Whatever can be called handles: methods, partials, objects."""
    seen: list[str] = []

    class Service:
        def __init__(self, name: str) -> None:
            self.name = name

        async def handle(self, event: Placed) -> None:
            seen.append(self.name)

        async def __call__(self, event: Event[Placed]) -> None:
            seen.append("object")

    async def partly(prefix: str, event: Event[Placed], *, suffix: str) -> None:
        seen.append(prefix + suffix)

    ours = listener()
    ours.handler(Placed)(Service("method").handle)
    ours.handler(Placed)(Service("x"))
    ours.handler(Placed)(partial(partly, "par", suffix="tial"))
    async with TestListener(ours) as t:
        await t.emit(Placed.model_validate({"order": {"id": "1"}}))
        await t.settled()
        assert not t.dead_letters
    assert sorted(seen) == ["method", "object", "partial"]
