"""How cost grows: with events in flight, bodies, handlers, keys, groups, and what waits.

On the memory backend, which shows what is ours, and on Redis, if it is there.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

from bench.broker import running
from bench.events import User, UserCreated, created, database
from bench.measuring import OURS, Contender, Cost, Handled, Watch, Work, at_once, compare, scaled
from bench.redis import server
from dispytch import Depends, Event, EventEmitter, EventListener

IN_FLIGHT = (1, 10, 100, 1_000, 10_000)
BODIES = (100, 1_000, 10_000, 100_000, 1_000_000)  # bytes
HANDLERS = (2, 10, 100, 1_000)
KEYS = (1, 100, 10_000, 100_000)
GROUPS = (1, 3, 10)
WAITING = (scaled(10_000), scaled(30_000), scaled(100_000))
EVENTS, FEW, MANY = scaled(10_000), scaled(500), scaled(100_000)
ROUNDS = 3

_names = itertools.count()


async def in_flight(name: str, emitter: EventEmitter) -> Work:
    """1 to 10,000 emits under way."""

    async def run(tasks: int) -> Cost:
        events = [created(number) for number in range(FEW if tasks == 1 else EVENTS)]
        with Watch(len(events)) as watch:
            await at_once(emitter.emit, tasks, events)
        return watch.cost

    return await compare(
        f"events in flight: emit, {name}",
        [Contender(f"{tasks:,}", OURS, partial(run, tasks)) for tasks in IN_FLIGHT],
        rounds=ROUNDS,
    )


def large(size: int, count: int) -> list[UserCreated]:
    """Events with a body of so many bytes."""
    user = User(id="42", email="ada@example.com", name="x" * (size - 76))
    return [UserCreated(user=user, timestamp=number) for number in range(count)]


async def bodies(name: str, url: Callable[[], str]) -> Work:
    """100 B to 1 MB, emitted one by one."""

    async def run(size: int) -> Cost:
        events = large(size, _few(size))
        async with EventEmitter.from_url(url()) as emitter:
            with Watch(len(events)) as watch:
                await at_once(emitter.emit, 1, events)
        return watch.cost

    return await compare(
        f"body in bytes: emit, {name}",
        [Contender(f"{size:,}", OURS, partial(run, size)) for size in BODIES],
        rounds=ROUNDS,
    )


async def bodies_handled() -> Work:
    """The same, handled."""

    async def run(size: int) -> Cost:
        return await handled(memory(), large(size, _few(size)))

    return await compare(
        "body in bytes: handle, memory",
        [Contender(f"{size:,}", OURS, partial(run, size)) for size in BODIES],
        rounds=ROUNDS,
    )


def _few(size: int) -> int:
    """Fewer of the larger."""
    return max(10, min(FEW, scaled(20_000_000) // size))


async def handled(url: str, events: Sequence[UserCreated], others: int = 0) -> Cost:
    """A backlog, from the listener's start to the last event.

    Args:
        url: where it is.
        events: what it is.
        others: how many handlers there are for events that don't come; then what the first event
            costs, which makes their routes, is left out.
    """
    noted = Handled(len(events))
    listener = listener_of(url, noted)
    for number in range(others):
        listener.handler(topic="user_events", event=f"other_{number}")(nothing)
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit_many(events)
    async with listener:  # started when it has subscribed
        with Watch(len(events)) as watch:
            await noted.done.wait()
    return noted.cost if others else watch.cost


def listener_of(url: str, noted: Handled) -> EventListener:
    """Of a new group, with one handler."""
    listener = EventListener.from_url(url, group=f"group{next(_names)}")

    @listener.handler(UserCreated)
    async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
        noted.note(event.body.timestamp)

    return listener


async def nothing(event: Event[UserCreated]) -> None:
    """Of another handler's type."""


async def handlers(url: Callable[[], str]) -> Work:
    """2 to 1,000 on a topic; one of them is for what comes."""
    events = [created(number) for number in range(EVENTS)]

    async def run(count: int) -> Cost:
        return await handled(url(), events, others=count - 1)

    return await compare(
        "handlers: handle, memory",
        [Contender(f"{count:,}", OURS, partial(run, count)) for count in HANDLERS],
        rounds=ROUNDS,
    )


async def keys(name: str, url: Callable[[], str]) -> Work:
    """1 to 100,000 of them."""

    async def run(count: int) -> Cost:
        return await handled(url(), keyed(count, MANY if count > EVENTS else EVENTS))

    return await compare(
        f"keys: handle, {name}",
        [Contender(f"{count:,}", OURS, partial(run, count)) for count in KEYS],
        rounds=ROUNDS,
    )


async def groups(name: str, url: Callable[[], str]) -> Work:
    """1 to 10, in one process: each gets all; the time is that of one event in one of them."""
    events = [created(number) for number in range(EVENTS)]

    async def run(count: int) -> Cost:
        place = url()
        async with EventEmitter.from_url(place) as emitter:
            await emitter.emit_many(events)
        noted = [Handled(len(events)) for _ in range(count)]
        with Watch(len(events) * count) as watch:
            async with AsyncExitStack() as stack:
                for each in noted:
                    await stack.enter_async_context(listener_of(place, each))
                for each in noted:
                    await each.done.wait()
        return watch.cost

    return await compare(
        f"groups: handle, {name}",
        [Contender(f"{count:,}", OURS, partial(run, count)) for count in GROUPS],
        rounds=ROUNDS,
    )


async def waiting(name: str, url: Callable[[], str]) -> Work:
    """10,000 to 100,000 events that wait."""

    async def run(count: int) -> Cost:
        return await handled(url(), [created(number) for number in range(count)])

    return await compare(
        f"events waiting: handle, {name}",
        [Contender(f"{count:,}", OURS, partial(run, count)) for count in WAITING],
        rounds=ROUNDS,
    )


def keyed(count: int, events: int) -> list[UserCreated]:
    """Events of so many keys."""
    users = [User(id=str(n), email="ada@example.com", name="Ada Lovelace") for n in range(count)]
    return [UserCreated(user=users[n % count], timestamp=n) for n in range(events)]


def memory() -> str:
    """A new broker."""
    return f"memory://growth{next(_names)}"


async def measure() -> list[Work]:
    """Everything."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(running(server))

        def emptied() -> str:
            assert redis is not None
            redis.call("FLUSHALL")
            return redis.url

        places = {"memory": memory}
        if redis is not None:
            places["Redis"] = emptied
        works = []
        for name, url in places.items():
            async with EventEmitter.from_url(url()) as emitter:
                works.append(await in_flight(name, emitter))
        for name, url in places.items():
            works.append(await bodies(name, url))
        works += [await bodies_handled(), await handlers(memory)]
        for name, url in places.items():
            works.append(await keys(name, url))
        for name, url in places.items():
            works.append(await groups(name, url))
        for name, url in places.items():
            works.append(await waiting(name, url))
    return works
