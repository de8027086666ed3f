"""What dispytch-redis costs and gains: emitting, handling and waking, on a real server.

Beside it, interleaved on the same machine at the same time, redis-py used plainly and pipelined,
with the same bytes and the same validation. The server is one of its own that appends to its file
(AOF, everysec). Each run checks that every event arrived; nothing is asserted of time.

Run: python -m nox -s bench
One part: PYTHONPATH=tests python tests/bench/redis_streams.py emitting|handling|waking
"""

import asyncio
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Self

import redis
from redis.asyncio import Redis as Client
from redis_plain import (
    GROUP,
    READ,
    UserCreated,
    Working,
    append,
    created,
    database,
    pipelined,
    pooled,
    wait_for,
)

from brokers.redis import Redis
from dispytch import Depends, Event, EventEmitter, EventListener, Subscription
from dispytch_redis import RedisConnection, RedisConsumer

ROUNDS = 9
FEW, MANY = 1_500, 10_000  # events one by one; many at once, and a backlog
WAKES, PAUSE = 300, 0.01  # events one at a time, and seconds between them
PLAIN = "plain"  # the stream beside ours
OURS = [f"dispytch:stream:user_events:{number}" for number in range(16)]

_groups = (f"group{number}" for number in itertools.count())

Emit = Callable[[Sequence[UserCreated]], Awaitable[object]]
Cost = tuple[float, float]
"""Microseconds per event, and those of processor time that the client took."""
Contender = Callable[[], Awaitable[Cost]]


class Watch:
    """Measures what is done in it.

    Args:
        events: with so many.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self.cost: Cost = (0.0, 0.0)

    def __enter__(self) -> Self:
        gc.collect()
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        now = time.perf_counter(), time.process_time()
        wall, cpu = ((b - a) / self._events * 1e6 for a, b in zip(self._begun, now, strict=True))
        self.cost = wall, cpu


def check(what: str, found: int, expected: int) -> None:
    """What loses or doubles events is not worth measuring.

    Raises:
        RuntimeError: it did.
    """
    if found != expected:
        raise RuntimeError(f"{what}: {found:,} events instead of {expected:,}")


async def compare(title: str, contenders: Mapping[str, Contender]) -> None:
    """All contenders, round by round; ratios of time per event to the first."""
    samples: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, run in contenders.items():
            cost = await run()
            if number:  # the first round warms up
                samples[name].append(cost)
    print(f"{title:<44} {'µs per event':>18}   ratio {'of it client CPU':>18}")
    base, *_ = ([wall for wall, _ in costs] for costs in samples.values())
    for name, costs in samples.items():
        walls, cpus = zip(*costs, strict=True)
        ratio = statistics.median(wall / other for wall, other in zip(walls, base, strict=True))
        print(f"  {name:<42} {spread(walls)}  {ratio:6.2f} {spread(cpus)}")


def spread(values: Sequence[float]) -> str:
    """The median with the middle half's width."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:10.1f} ±{(high - low) / 2:6.1f}"


# Emitting


def emitted(
    broker: Redis, streams: Sequence[str], ready: Sequence[UserCreated], emit: Emit
) -> Contender:
    """A contender that emits these; they are there then, and deleted."""

    async def run() -> Cost:
        with Watch(len(ready)) as watch:
            await emit(ready)
        check("emitted", sum(broker.call("XLEN", stream) for stream in streams), len(ready))
        broker.call("DEL", *streams)
        return watch.cost

    return run


async def at_once(
    emit: Callable[[UserCreated], Awaitable[object]], tasks: int, events: Sequence[UserCreated]
) -> None:
    """So many tasks emit, each one event after the other."""

    async def work(left: Iterable[UserCreated]) -> None:
        for event in left:
            await emit(event)

    left = iter(events)
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work(left))


async def together(emitter: EventEmitter, size: int, events: Sequence[UserCreated]) -> None:
    """Emit so many with each call."""
    for first in range(0, len(events), size):
        await emitter.emit_many(events[first : first + size])


async def emitting(broker: Redis) -> None:
    """1, 16, 100 and 1,000 in flight, and many together."""
    many = [created(number) for number in range(MANY)]
    few = many[:FEW]
    plain = partial(emitted, broker, [PLAIN])
    ours = partial(emitted, broker, OURS)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.from_url(broker.url))
        pool = await stack.enter_async_context(pooled(broker.url))
        emitter = await stack.enter_async_context(EventEmitter.from_url(broker.url))
        one, shared = partial(append, client, PLAIN), partial(append, pool, PLAIN)
        pipeline = partial(pipelined, client, PLAIN)
        await compare(
            "emitting",
            {
                "redis-py, one by one": plain(few, partial(at_once, one, 1)),
                "redis-py, 16 in flight": plain(many, partial(at_once, shared, 16)),
                "redis-py, 100 in flight": plain(many, partial(at_once, shared, 100)),
                "redis-py, 1,000 in flight": plain(many, partial(at_once, shared, 1_000)),
                "redis-py, pipelines of 100": plain(many, partial(pipeline, 100)),
                "redis-py, pipelines of 1,000": plain(many, partial(pipeline, 1_000)),
                "emit, one by one": ours(few, partial(at_once, emitter.emit, 1)),
                "emit, 16 in flight": ours(many, partial(at_once, emitter.emit, 16)),
                "emit, 100 in flight": ours(many, partial(at_once, emitter.emit, 100)),
                "emit, 1,000 in flight": ours(many, partial(at_once, emitter.emit, 1_000)),
                "emit_many of 100": ours(many, partial(together, emitter, 100)),
                "emit_many of 1,000": ours(many, partial(together, emitter, 1_000)),
            },
        )


# Handling


class Listening:
    """A listener that notes what it handles.

    Args:
        url: of the server.
        expected: after so many it is done.
    """

    def __init__(self, url: str, expected: int) -> None:
        self.group = next(_groups)
        self.handled: list[int] = []
        self.done, self.came = asyncio.Event(), asyncio.Event()
        self.listener = EventListener.from_url(url, group=self.group)
        self.listener.handler(UserCreated)(self.handle)
        self._expected = expected

    async def handle(
        self, event: Event[UserCreated], db: Annotated[str, Depends(database)]
    ) -> None:
        """Note which."""
        self.handled.append(event.body.timestamp)
        self.came.set()
        if len(self.handled) == self._expected:
            self.done.set()


def check_done(broker: Redis, streams: Sequence[str], group: str, handled: Sequence[int]) -> None:
    """All were handled, once, and the server knows; the group is deleted."""
    check("handled", len(set(handled)), MANY)
    check("handled, with doubles", len(handled), MANY)
    check("pending", sum(broker.call("XPENDING", stream, group)[0] for stream in streams), 0)
    for stream in streams:
        broker.call("XGROUP", "DESTROY", stream, group)


def working(broker: Redis, client: Client, *, each: bool) -> Contender:
    """redis-py, from the first read to the last acknowledgement."""

    async def run() -> Cost:
        await client.xgroup_create(PLAIN, GROUP, "0")
        plain = Working(client, PLAIN, each=each)
        with Watch(MANY) as watch:
            await plain.run(MANY)
        check_done(broker, [PLAIN], GROUP, plain.handled)
        return watch.cost

    return run


def receiving(broker: Redis) -> Contender:
    """The consumer alone: reads 100, and acknowledges them together."""

    async def run() -> Cost:
        address, group, handled = f"127.0.0.1:{broker.port}", next(_groups), list[int]()
        consumer = RedisConsumer(RedisConnection(scheme="redis", hosts=(address,)))
        with Watch(MANY) as watch:
            await consumer.start()
            await consumer.subscribe([Subscription("user_events", group)])
            while len(handled) < MANY:
                deliveries = await consumer.receive(100)
                handled += [READ(each.payload)["body"].timestamp for each in deliveries]
                await asyncio.gather(*(each.ack() for each in deliveries))
        await consumer.stop()
        check_done(broker, OURS, group, handled)
        return watch.cost

    return run


def listening(broker: Redis) -> Contender:
    """An EventListener, its start included, until the server knows that all is done."""

    async def run() -> Cost:
        ours = Listening(broker.url, MANY)
        with Watch(MANY) as watch:
            async with ours.listener:
                await ours.done.wait()
        check_done(broker, OURS, ours.group, ours.handled)
        return watch.cost

    return run


async def handling(broker: Redis) -> None:
    """A backlog, worked off by one process."""
    ready = [created(number) for number in range(MANY)]
    async with Client.from_url(broker.url) as client:
        await pipelined(client, PLAIN, 1_000, ready)
        async with EventEmitter.from_url(broker.url) as emitter:
            await emitter.emit_many(ready)
        await compare(
            f"handling a backlog of {MANY:,}",
            {
                "redis-py, XREADGROUP 100, XACK each": working(broker, client, each=True),
                "redis-py, XREADGROUP 100, XACK of 100": working(broker, client, each=False),
                "consumer, receive and ack 100": receiving(broker),
                "EventListener": listening(broker),
            },
        )
        broker.call("DEL", PLAIN, *OURS)


# Waking


async def waking(broker: Redis) -> None:
    """One event at a time: from the emit to the handler, in one process."""
    plain: list[float] = []
    ours: list[float] = []
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.from_url(broker.url))
        emitter = await stack.enter_async_context(EventEmitter.from_url(broker.url))
        listening = Listening(broker.url, WAKES)
        await stack.enter_async_context(listening.listener)
        await client.xgroup_create(PLAIN, GROUP, "0", mkstream=True)
        reader = await stack.enter_async_context(Client.from_url(broker.url))
        came = asyncio.Event()
        waiting = asyncio.create_task(wait_for(reader, PLAIN, WAKES, came))
        for number in range(WAKES):
            for emit, arrived, times in (
                (partial(append, client, PLAIN), came, plain),
                (emitter.emit, listening.came, ours),
            ):
                await asyncio.sleep(PAUSE * (0.5 + number * 0.618 % 1))  # in step with nothing
                arrived.clear()
                started = time.perf_counter()
                sent = asyncio.ensure_future(emit(created(number)))
                await arrived.wait()
                times.append((time.perf_counter() - started) * 1e3)
                await sent
        check("read", await waiting, WAKES)
        check("handled", len(set(listening.handled)), WAKES)
    print("idle, from the emit to the handler                 p50 ms     p99 ms   ratio of p50")
    for name, times in {"redis-py, XREADGROUP BLOCK": plain, "EventListener": ours}.items():
        middle, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
        print(f"  {name:<46} {middle:8.2f} {p99:10.2f} {middle / statistics.median(plain):9.2f}")


async def main() -> None:
    """Everything."""
    broker = Redis(config={"auto-aof-rewrite-percentage": "0"})  # it would begin whenever it likes
    broker.start()
    try:
        versions = f"redis-py {redis.__version__}, Redis {version_of(broker)}"
        print(f"Python {sys.version.split()[0]}, {versions}; medians of {ROUNDS} rounds")
        for measure in (emitting, handling, waking):
            if not sys.argv[1:] or measure.__name__ in sys.argv[1:]:
                await measure(broker)
    finally:
        broker.stop()


def version_of(broker: Redis) -> str:
    """What the server says it is."""
    lines = dict(
        line.split(":", 1) for line in broker.call("INFO", "server").decode().split() if ":" in line
    )
    return lines["redis_version"]


if __name__ == "__main__":
    asyncio.run(main())
