"""How cost grows: with events in flight, bodies, handlers, keys, groups, and what waits.

On the memory backend, which shows what is ours, and on the brokers that are there. Each point is
what was received, once each; where a broker takes long it is measured once.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeAlias

from bench.broker import running
from bench.events import User, UserCreated, database, on_topic, user
from bench.measuring import OURS, Contender, Cost, Handled, Watch, Work, at_once, compare, scaled
from bench.redis import server
from brokers.kafka import Kafka
from brokers.rabbitmq import RabbitMQ
from dispytch import Depends, Event, EventEmitter, EventListener

IN_FLIGHT = (1, 10, 100, 1_000, 10_000)
BODIES = (100, 1_000, 10_000, 100_000, 1_000_000)  # bytes
HANDLERS = (2, 10, 100, 1_000)
KEYS = (1, 100, 10_000, 100_000)
GROUPS = (1, 3, 10)
WAITING = (scaled(10_000), scaled(30_000), scaled(100_000))
EVENTS, FEW, MANY = scaled(10_000), scaled(500), scaled(100_000)
TOGETHER = 5_000  # events of one `emit_many`: a backlog takes longer than its timeout

_names = itertools.count()

Kind: TypeAlias = type[UserCreated]
Make: TypeAlias = Callable[[Kind], Sequence[UserCreated]]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where nothing waits.

    Attributes:
        url: of the broker.
        kind: the event, on a topic that nobody used.
        early: whether a group gets only what is emitted after it has subscribed.
    """

    url: str
    kind: Kind
    early: bool = False

    async def subscribe(self, group: str) -> None:
        """Have a group get what is emitted from now on."""
        if self.early:
            async with self.listener(group, Handled(FEW)):
                pass

    async def fill(self, events: Sequence[UserCreated]) -> None:
        """Emit these."""
        async with EventEmitter.from_url(self.url) as emitter:
            for first in range(0, len(events), TOGETHER):
                await emitter.emit_many(events[first : first + TOGETHER])

    def listener(self, group: str, noted: Handled) -> EventListener:
        """Of this group, with one handler."""
        listener = EventListener.from_url(self.url, group=group)

        @listener.handler(self.kind)
        async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
            noted.note(event.body.timestamp)

        return listener


@dataclass(frozen=True, slots=True)
class Place:
    """A broker.

    Attributes:
        name: what it is.
        spot: makes one.
        rounds: how many are measured, after one that warms up; a single one is not warmed up.
    """

    name: str
    spot: Callable[[], Awaitable[Spot]]
    rounds: int = 3

    async def compare(
        self, title: str, points: Iterable[int], run: Callable[[int], Awaitable[Cost]]
    ) -> Work:
        """Measure these points."""
        return await compare(
            f"{title}, {self.name}",
            [Contender(f"{point:,}", OURS, partial(run, point)) for point in points],
            rounds=self.rounds,
            warm_up=self.rounds > 1,
        )

    async def emitted(self, tasks: int, make: Make) -> Cost:
        """So many tasks emit these; all of them are received then. The first one connects."""
        spot, group = await self.spot(), f"group{next(_names)}"
        first, *events = make(spot.kind)
        await spot.subscribe(group)
        async with EventEmitter.from_url(spot.url) as emitter:
            await emitter.emit(first)
            with Watch(len(events)) as watch:
                await at_once(emitter.emit, tasks, events)
        noted = Handled(len(events) + 1)
        async with spot.listener(group, noted):
            await noted.done.wait()
        noted.verify()
        return watch.cost

    async def handled(self, make: Make, *, others: int = 0, few: bool = False) -> Cost:
        """A backlog.

        Args:
            make: what it is.
            others: how many handlers there are for events that don't come.
            few: it may all be read ahead: measured from the listener's start to the last event.
        """
        spot, group = await self.spot(), f"group{next(_names)}"
        events = make(spot.kind)
        await spot.subscribe(group)
        await spot.fill(events)
        noted = Handled(len(events))
        listener = spot.listener(group, noted)
        for number in range(others):
            listener.handler(topic=spot.kind.__topic__, event=f"other_{number}")(nothing)
        async with listener:
            with Watch(len(events)) as watch:
                await noted.done.wait()
        noted.verify()
        return watch.cost if few else noted.cost


async def nothing(event: Event[UserCreated]) -> None:
    """Of another handler's type."""


# Events


def some(count: int, kind: Kind) -> list[UserCreated]:
    """So many."""
    return [kind(user=user(number), timestamp=number) for number in range(count)]


def large(size: int, kind: Kind) -> list[UserCreated]:
    """With a body of so many bytes; fewer of the larger."""
    count = max(10, min(FEW, scaled(20_000_000) // size))
    one = User(id="42", email="ada@example.com", name="x" * (size - 76))
    return [kind(user=one, timestamp=number) for number in range(count)]


def keyed(count: int, kind: Kind) -> list[UserCreated]:
    """Of so many keys."""
    users = [User(id=str(n), email="ada@example.com", name="Ada Lovelace") for n in range(count)]
    events = MANY if count > EVENTS else EVENTS
    return [kind(user=users[n % count], timestamp=n) for n in range(events)]


# Dimensions


async def in_flight(place: Place) -> Work:
    """1 to 10,000 emits under way."""

    async def run(tasks: int) -> Cost:
        return await place.emitted(tasks, partial(some, FEW if tasks == 1 else EVENTS))

    return await place.compare("events in flight: emit", IN_FLIGHT, run)


async def bodies(place: Place) -> Work:
    """100 B to 1 MB, emitted one by one."""

    async def run(size: int) -> Cost:
        return await place.emitted(1, partial(large, size))

    return await place.compare("body in bytes: emit", BODIES, run)


async def bodies_handled(place: Place) -> Work:
    """The same, handled."""

    async def run(size: int) -> Cost:
        return await place.handled(partial(large, size), few=True)

    return await place.compare("body in bytes: handle", BODIES, run)


async def handlers(place: Place) -> Work:
    """2 to 1,000 on a topic; one of them is for what comes."""

    async def run(count: int) -> Cost:
        return await place.handled(partial(some, EVENTS), others=count - 1)

    return await place.compare("handlers: handle", HANDLERS, run)


async def keys(place: Place) -> Work:
    """1 to 100,000 of them."""

    async def run(count: int) -> Cost:
        return await place.handled(partial(keyed, count))

    return await place.compare("keys: handle", KEYS, run)


async def groups(place: Place) -> Work:
    """1 to 10, in one process: each gets all; the time is that of one event in one of them."""

    async def run(count: int) -> Cost:
        spot, names = await place.spot(), [f"group{next(_names)}" for _ in range(count)]
        share = EVENTS if place.rounds > 1 else EVENTS // count  # where it takes long: as much work
        events = some(max(10, share), spot.kind)
        for name in names:
            await spot.subscribe(name)
        await spot.fill(events)
        noted = {name: Handled(len(events)) for name in names}
        listeners = [spot.listener(name, each) for name, each in noted.items()]
        with Watch(len(events) * count) as watch:
            await asyncio.gather(*(each.start() for each in listeners))
            await asyncio.gather(*(each.done.wait() for each in noted.values()))
        await asyncio.gather(*(each.stop() for each in listeners))
        for each in noted.values():
            each.verify()
        return watch.cost

    return await place.compare("groups: handle", GROUPS, run)


async def waiting(place: Place) -> Work:
    """10,000 to 100,000 events that wait."""

    async def run(count: int) -> Cost:
        return await place.handled(partial(some, count))

    return await place.compare("events waiting: handle", WAITING, run)


# Places


async def in_memory() -> Spot:
    """A new broker."""
    return Spot(f"memory://growth{next(_names)}", UserCreated)


@asynccontextmanager
async def all_places() -> AsyncIterator[list[Place]]:
    """Those there are."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # leaders are elected
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(running(server))
        kafka = await stack.enter_async_context(running(Kafka))
        rabbitmq = await stack.enter_async_context(running(RabbitMQ))

        async def emptied() -> Spot:
            assert redis is not None
            redis.call("FLUSHALL")
            return Spot(redis.url, UserCreated)

        async def created() -> Spot:
            assert kafka is not None
            topic = f"growth{next(_names)}"
            await asyncio.to_thread(kafka.create_topic, topic, 4)
            return Spot(kafka.url, on_topic(topic))

        async def unbound() -> Spot:
            assert rabbitmq is not None
            return Spot(rabbitmq.url, on_topic(f"growth{next(_names)}"), early=True)

        places = [Place("memory", in_memory)]
        places += [Place("Redis", emptied)] if redis is not None else []
        places += [Place("Kafka", created, rounds=2)] if kafka is not None else []
        places += [Place("RabbitMQ", unbound, rounds=1)] if rabbitmq is not None else []
        yield places


async def measure() -> list[Work]:
    """Everything."""
    works = []
    async with all_places() as places:
        for dimension in (in_flight, bodies, bodies_handled, handlers, keys, groups, waiting):
            # Without a network where it is about what is ours alone.
            alone = dimension in {bodies_handled, handlers}
            works += [await dimension(place) for place in (places[:1] if alone else places)]
    return works
