"""Injection: what a handler asks for is made for each attempt, and closed again."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Annotated, Any, Self

import pytest

from dispytch import Depends, Event, EventBase, EventListener, Retry, TopicSegment
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage
from dispytch.testing import TestListener

ONCE = Retry(attempts=1)


class Base(EventBase):
    shop: str = "s"
    n: int = 0


class Placed(Base):
    __topic__ = "shops.{shop}.{n}"
    __event_type__ = "placed"
    __key__ = "{shop}"


def listener(**options: Any) -> EventListener:
    return EventListener(MemoryConsumer(MemoryBroker()), **options)


async def handle_one(ours: EventListener, event: EventBase | None = None) -> list[MemoryMessage]:
    """Handle one event to its end; what was dead-lettered."""
    async with TestListener(ours) as t:
        await t.emit(event or Placed())
        await t.settled()
        return t.dead_letters


def reason(letters: list[MemoryMessage]) -> str:
    assert len(letters) == 1
    return str(letters[0].headers["x-dispytch-dlq-reason"])


async def test_every_kind_of_dependency_is_made() -> None:
    """Functions, generators and context managers, sync and async, and classes; nested."""
    log: list[str] = []

    def function() -> str:
        return "function"

    async def coroutine() -> str:
        return "coroutine"

    def generator() -> Iterator[str]:
        yield "generator"
        log.append("generator closed")

    async def async_generator(inner: Annotated[str, Depends(generator)]) -> AsyncIterator[str]:
        yield f"async {inner}"
        log.append("async generator closed")

    @contextmanager
    def manager() -> Iterator[str]:
        yield "manager"
        log.append("manager closed")

    @asynccontextmanager
    async def async_manager() -> AsyncIterator[str]:
        yield "async manager"
        log.append("async manager closed")

    class Service:
        def __init__(self, name: Annotated[str, Depends(function)]) -> None:
            self.name = name

    class Client:
        async def __aenter__(self) -> str:
            return "entered client"

        async def __aexit__(self, *_: object) -> None:
            log.append("client closed")

    class Lock:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            log.append("lock closed")

    class Factory:
        async def __call__(self) -> str:
            return "object"

        def method(self) -> str:
            return "method"

    ours, seen = listener(), []

    @ours.handler(Placed)
    async def handle(
        a: Annotated[str, Depends(function)],
        b: Annotated[str, Depends(coroutine)],
        c: Annotated[str, Depends(async_generator)],
        d: Annotated[str, Depends(manager)],
        e: Annotated[str, Depends(async_manager)],
        f: Annotated[Service, Depends()],
        g: Annotated[Any, Depends(Client)],
        h: Annotated[Lock, Depends()],
        i: Annotated[str, Depends(Factory())],
        j: Annotated[str, Depends(Factory().method)],
        k: str = Depends(lambda: "default"),  # type: ignore[assignment]
    ) -> None:
        seen.extend([a, b, c, d, e, f.name, g, type(h).__name__, i, j, k])

    assert not await handle_one(ours)
    assert seen == [
        "function",
        "coroutine",
        "async generator",
        "manager",
        "async manager",
        "function",
        "entered client",
        "Lock",
        "object",
        "method",
        "default",
    ]
    assert log == [
        "lock closed",
        "client closed",
        "async manager closed",
        "manager closed",
        "async generator closed",
        "generator closed",
    ]


async def test_instance_is_shared_within_an_attempt_only() -> None:
    """One instance per attempt of a handler, unless `use_cache=False`."""
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    def nested(x: Annotated[object, Depends(make)]) -> object:
        return x

    ours, seen = listener(), []

    @ours.handler(Placed, retry=Retry(attempts=2, base=0))
    async def handle(
        a: Annotated[object, Depends(make)],
        b: Annotated[object, Depends(make)],
        c: Annotated[object, Depends(nested)],
        d: Annotated[object, Depends(make, use_cache=False)],
    ) -> None:
        assert a is b
        assert b is c
        assert d is not a
        seen.append(a)
        if len(seen) == 1:
            raise ValueError

    @ours.handler(Placed)
    async def other(a: Annotated[object, Depends(make)]) -> None:
        seen.append(a)

    assert not await handle_one(ours)
    assert len(made) == 5
    assert len({id(each) for each in seen}) == 3


@pytest.mark.parametrize("is_async", [True, False])
async def test_dependency_sees_the_failure_and_cant_swallow_it(is_async: bool) -> None:
    """A failing handler's exception is raised at the `yield`; swallowed, it still counts."""
    seen: list[str] = []

    async def async_swallowing() -> AsyncIterator[int]:
        try:
            yield 1
        except ValueError as error:
            seen.append(f"async {error}")

    def swallowing() -> Iterator[int]:
        try:
            yield 1
        except ValueError as error:
            seen.append(str(error))

    def outer(x: Annotated[int, Depends(swallowing)]) -> Iterator[int]:
        with pytest.raises(ValueError, match="no"):
            yield x
        seen.append("outer")

    ours = listener(retry=ONCE)
    chosen: Any = async_swallowing if is_async else outer

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(chosen)]) -> None:
        raise ValueError("no")

    assert reason(await handle_one(ours)) == "failed once: ValueError: no"
    assert seen == (["async no"] if is_async else ["outer", "no"])


async def test_failing_close_fails_the_attempt_and_closes_the_rest() -> None:
    """What a dependency raises when it is closed is the attempt's failure; all others close."""
    log: list[str] = []

    def first() -> Iterator[int]:
        try:
            yield 1
        finally:
            log.append("first closed")

    def second(x: Annotated[int, Depends(first)]) -> Iterator[int]:
        yield x
        raise OSError("flush failed")

    ours = listener(retry=ONCE)

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(second)]) -> None:
        log.append("handled")

    assert reason(await handle_one(ours)) == "failed once: OSError: flush failed"
    assert log == ["handled", "first closed"]


async def test_failing_close_after_a_failure_does_not_hide_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The handler's own error is the reason; the other one is logged."""

    def broken() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("flush failed")

    ours = listener(retry=ONCE)

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(broken)]) -> None:
        raise ValueError("first")

    assert "ValueError: first" in reason(await handle_one(ours))
    assert "flush failed" in caplog.text


async def test_failing_dependency_closes_those_before_it() -> None:
    """A dependency that can't be made fails the attempt; what was opened is closed."""
    log: list[str] = []

    async def first() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            log.append("closed")

    def second() -> int:
        raise LookupError("no database")

    ours = listener(retry=ONCE)

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(first)], y: Annotated[int, Depends(second)]) -> None:
        log.append("handled")

    assert "LookupError: no database" in reason(await handle_one(ours))
    assert log == ["closed"]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("yields", [0, 2])
async def test_generator_that_does_not_yield_once_is_a_clear_failure(
    is_async: bool, yields: int
) -> None:
    """A generator dependency yields exactly once; the dead letter says what it did instead."""

    async def async_odd() -> AsyncIterator[int]:
        for number in range(yields):
            yield number

    def odd() -> Iterator[int]:
        yield from range(yields)

    ours = listener(retry=ONCE)
    chosen: Any = async_odd if is_async else odd

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(chosen)]) -> None: ...

    expected = "odd yielded a second time" if yields else "generator didn't yield"
    assert expected in reason(await handle_one(ours))


async def test_dependencies_are_closed_when_cancelled_at_shutdown() -> None:
    """A handler that outlives the drain is cancelled, and what it opened is closed."""
    log: list[str] = []
    begun = asyncio.Event()

    async def session() -> AsyncIterator[int]:
        try:
            yield 1
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            log.append("closed")

    ours = listener(drain_timeout=0)

    @ours.handler(Placed)
    async def handle(x: Annotated[int, Depends(session)]) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with TestListener(ours) as t:
        await t.emit(Placed())
        await begun.wait()
    assert log == ["cancelled", "closed"]


async def test_dependencies_take_the_event_and_segments() -> None:
    """`Event[T]`, the event itself and segments, by name, dotted or not, in dependencies too."""

    def tenant(
        event: Event[Base], shop: Annotated[str, TopicSegment(min_length=1)], body: Placed
    ) -> tuple[str, str, bool]:
        return event.body.shop, shop, event.body is body

    ours, seen = listener(), []

    @ours.handler(Placed)
    async def handle(
        of: Annotated[Any, Depends(tenant)],
        n: Annotated[int, TopicSegment(ge=3)],
        other: Annotated[str, TopicSegment("n")],
        plain: Annotated[str, TopicSegment("shop")],
    ) -> None:
        seen.append((of, n, other, plain))

    assert not await handle_one(ours, Placed(shop="one", n=3))
    assert seen == [(("one", "one", True), 3, "3", "one")]
    letters = await handle_one(ours, Placed(shop="one", n=2))
    assert "segment 'n' of the topic" in reason(letters)
    assert letters[0].headers["x-dispytch-dlq-attempts"] == "1"


async def test_dependency_may_ask_for_less_than_the_handler() -> None:
    """A dependency takes a base of the body's class, wherever it stands among the parameters."""

    def shop_of(event: Event[Base]) -> str:
        return event.body.shop

    ours, seen = listener(), []

    @ours.handler(topic="shops.{shop}.{n}", event="placed")
    async def handle(shop: Annotated[str, Depends(shop_of)], event: Event[Placed]) -> None:
        seen.append((shop, type(event.body)))

    assert not await handle_one(ours)
    assert seen == [("s", Placed)]


async def test_override_replaces_and_gives_back() -> None:
    """An override counts from now on, or until its block ends; its own dependencies are made."""

    def number() -> int:
        return 1

    def real(x: Annotated[int, Depends(number)]) -> str:
        return f"real {x}"

    def fake(x: Annotated[int, Depends(number)], event: Placed) -> Iterator[str]:
        yield f"fake {x} {event.n}"
        seen.append("fake closed")

    ours = listener()
    seen: list[str] = []

    @ours.handler(Placed)
    async def handle(x: Annotated[str, Depends(real)]) -> None:
        seen.append(x)

    await handle_one(ours)
    with ours.override(real, fake):
        await handle_one(ours)
        with ours.override(real, lambda: "inner"):
            await handle_one(ours)
        await handle_one(ours)
    await handle_one(ours)
    ours.override(number, lambda: 2)
    await handle_one(ours)
    assert seen == [
        "real 1",
        "fake 1 0",
        "fake closed",
        "inner",
        "fake 1 0",
        "fake closed",
        "real 1",
        "real 2",
    ]


async def test_parameters_of_every_kind_are_filled() -> None:
    """Positional-only, keyword-only, and those left to their defaults."""
    ours, seen = listener(), []

    @ours.handler(Placed)
    async def handle(
        event: Event[Placed],
        /,
        left: str = "default",
        *rest: int,
        n: Annotated[int, TopicSegment()],
        last: complex = 1j,
        **more: Any,
    ) -> None:
        seen.append((event.body.n, left, rest, n, last, more))

    @ours.handler(Placed)
    async def nothing() -> None:
        seen.append("nothing")

    assert not await handle_one(ours, Placed(n=4))
    assert seen == [(4, "default", (), 4, 1j, {}), "nothing"]


async def test_wrapped_coroutine_functions_are_awaited() -> None:
    """A plain decorator around a coroutine function hides that it is one: it runs all the same."""

    def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return wrapper

    ours, seen = listener(), []

    @plain
    async def make() -> int:
        return 5

    @ours.handler(Placed)
    @plain
    async def handle(event: Placed, x: Annotated[int, Depends(make)]) -> None:
        await asyncio.sleep(0)
        seen.append(x)

    assert not await handle_one(ours)
    assert seen == [5]


async def test_sync_handlers_run_on_few_threads_with_their_context() -> None:
    """Sync handlers run beside each other, `max_threads` at most, and see context variables."""
    tenant = contextvars.ContextVar("tenant", default="none")
    ours = listener(max_threads=3)
    lock, together, most = threading.Lock(), 0, 0
    barrier = threading.Barrier(3, timeout=5)
    seen: list[tuple[str, bool]] = []

    async def middleware(ctx: Any, call_next: Any) -> Any:
        token = tenant.set(ctx.segments["shop"])
        try:
            return await call_next(ctx)
        finally:
            tenant.reset(token)

    @ours.handler(Placed, ordered=False, middleware=[middleware])
    def handle(event: Event[Placed]) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        barrier.wait()
        with lock:
            together -= 1
        seen.append((tenant.get(), threading.current_thread() is threading.main_thread()))

    async with TestListener(ours) as t:
        for number in range(12):
            await t.emit(Placed(shop=f"s{number}"))
        await t.settled()
        assert not t.dead_letters
    assert most == 3
    assert sorted(seen) == sorted((f"s{n}", False) for n in range(12))


@pytest.mark.parametrize("error", [ValueError("x"), StopIteration(), KeyError("k")])
async def test_sync_handler_that_raises_is_dead_lettered(error: Exception) -> None:
    """Whatever a sync handler raises is its failure: StopIteration too, which no future carries."""
    ours = listener(retry=ONCE)

    @ours.handler(Placed)
    def handle(event: Placed) -> None:
        raise error

    assert type(error).__name__ in reason(await handle_one(ours))


async def test_error_without_words_is_dead_lettered(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that can't even be printed is a failure like any other."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("mute")

        __repr__ = __str__

    ours, attempts = listener(), []

    @ours.handler(Placed)
    async def handle(event: Event[Placed]) -> None:
        attempts.append(event.attempt)
        raise MuteError

    with caplog.at_level(logging.DEBUG):
        assert "Mute" in reason(await handle_one(ours))
    assert attempts == [1, 2, 3]


async def test_context_variables_do_not_reach_the_next_event() -> None:
    """What an async handler or its dependencies set in the context ends with their attempt."""
    tenant = contextvars.ContextVar("tenant", default="none")
    tenant.set("the application")
    ours, seen = listener(max_in_flight=2), []

    async def enter(event: Event[Placed]) -> None:
        tenant.set(event.body.shop)

    @ours.handler(Placed)
    async def handle(event: Placed) -> None:
        seen.append(tenant.get())
        tenant.set(event.shop)
        if event.n % 2:
            raise ValueError

    @ours.handler(Placed)
    async def other(event: Placed, entered: Annotated[None, Depends(enter)]) -> None:
        assert tenant.get() == event.shop

    async with TestListener(ours) as t:
        for n in range(10):
            await t.emit(Placed(shop=f"s{n % 3}", n=n))
        await t.settled()
        assert len(t.dead_letters) == 5
    assert seen == ["the application"] * 20
