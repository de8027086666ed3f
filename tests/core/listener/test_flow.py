"""Order, backpressure, and what it costs to get to a handler."""

import asyncio
import sys
import tracemalloc
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any

import pytest

from dispytch import (
    Delivery,
    Depends,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Retry,
    Subscription,
)
from dispytch.consumer import Consumer
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.testing import TestListener


class Step(EventBase):
    __topic__ = "steps"
    __event_type__ = "step"
    __key__ = "{key}"
    key: str = "k"
    n: int = 0


class Loose(EventBase):
    __topic__ = "loose"
    __event_type__ = "loose"
    n: int = 0


def listener(**options: Any) -> EventListener:
    return EventListener(MemoryConsumer(MemoryBroker()), **options)


async def test_one_key_in_order_others_beside_it() -> None:
    """Events of one key pass one by one, in order, whatever other keys do."""
    ours = listener(max_in_flight=8)
    running: set[str] = set()
    together = 0
    seen: defaultdict[str, list[int]] = defaultdict(list)

    @ours.handler(Step, retry=Retry(3))
    async def handle(event: Event[Step]) -> None:
        nonlocal together
        key = event.body.key
        assert key not in running
        running.add(key)
        together = max(together, len(running))
        for _ in range(event.body.n % 4):
            await asyncio.sleep(0)
        running.remove(key)
        if event.body.n % 7 == 0 and event.attempt == 1:
            raise ValueError
        seen[key].append(event.body.n)

    async with TestListener(ours) as t:
        for n in range(400):
            await t.emit(Step(key=f"k{n % 20}", n=n))
        await t.settled()
        assert not t.dead_letters
    assert together == 8
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert sum(map(len, seen.values())) == 400


@pytest.mark.parametrize(("event_class", "ordered"), [(Loose, None), (Step, False)])
async def test_keyless_and_unordered_run_beside_each_other(
    event_class: Any, ordered: bool | None
) -> None:
    """Without a key, or with `ordered=False`, all run at once, at most `max_in_flight`."""
    ours = listener(max_in_flight=5)
    barrier = asyncio.Barrier(5)
    running = most = 0

    @ours.handler(event_class, ordered=ordered)
    async def handle() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await barrier.wait()
        running -= 1

    async with TestListener(ours) as t:
        for n in range(20):
            await t.emit(event_class(n=n))
        await t.settled()
    assert most == 5


async def test_hot_key_that_fails_leaves_others_prompt() -> None:
    """A key that keeps failing holds up nobody: 300 others are done before its first event is."""
    broker = MemoryBroker()
    ours = EventListener(
        MemoryConsumer(broker), max_in_flight=4, retry=Retry(2, base=3600, cap=3600), group="g"
    )
    others: list[int] = []
    done = asyncio.Event()

    @ours.handler(Step)
    async def handle(event: Step) -> None:
        if event.key == "hot":
            raise ValueError
        others.append(event.n)
        if len(others) == 300:
            done.set()

    async with EventEmitter(MemoryProducer(broker)) as emitter, ours:
        for n in range(300):
            await emitter.emit(Step(key="hot", n=n))
            await emitter.emit(Step(key=f"k{n}", n=n))
        async with asyncio.timeout(10):
            await done.wait()
        health = ours.health()
        assert (health.parked, health.waiting) == (1, 300)
        assert health
        assert health.counts.dead_lettered == 0


async def test_max_parked_pauses_intake_and_health_says_why() -> None:
    """With too many waiting intake pauses, unhealthy; it goes on when they are done."""
    broker = MemoryBroker()
    broken = True
    ours = EventListener(
        MemoryConsumer(broker), max_in_flight=2, max_parked=10, retry=Retry(50), group="g"
    )
    seen: list[int] = []

    @ours.handler(Step)
    async def handle(event: Step) -> None:
        if broken:
            raise ValueError
        seen.append(event.n)

    async with TestListener(ours) as t:
        for n in range(100):
            await t.emit(Step(n=n))
        for _ in range(200):
            await asyncio.sleep(0)
        health = t.health
        assert not health
        assert not health.accepting
        assert "intake is paused" in health.problems[0]
        assert "max_parked is 10" in health.problems[0]
        assert 10 <= health.waiting <= 10 + 4
        broken = False
        await t.settled()
        assert t.health
    assert seen == list(range(100))


class Endless(Consumer):
    """Makes deliveries as they are asked for, and counts those that are held."""

    backend = "endless"

    def __init__(self, total: int) -> None:
        self.left = self.total = total
        self.held = self.most = self.acked = 0
        self.done = asyncio.Event()

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None: ...

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        number = min(limit, self.left)
        if not number:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.left -= number
        self.held += number
        self.most = max(self.most, self.held)
        return [Made(self) for _ in range(number)]


class Made(Delivery):
    __slots__ = ("_consumer",)

    def __init__(self, consumer: Endless) -> None:
        key = str(consumer.left % 50)
        super().__init__("steps", b'{"id":"i","type":"step","body":{},"timestamp":1}', key)
        self._consumer = consumer

    async def ack(self) -> None:
        consumer = self._consumer
        consumer.held -= 1
        consumer.acked += 1
        if consumer.acked == consumer.total:
            consumer.done.set()


async def test_memory_stays_flat_however_many_wait() -> None:
    """Of 200,000 waiting events a few hundred are held at a time; no memory stays."""
    consumer = Endless(200_000)
    ours = EventListener(consumer)
    handled = 0
    measured = asyncio.Event()

    @ours.handler(Step)
    async def handle(event: Event[Step]) -> None:
        nonlocal handled
        handled += 1
        if handled == 2_000:
            tracemalloc.start()
        if handled == 10_000:
            measured.set()

    try:
        async with ours, asyncio.timeout(120):
            await measured.wait()
            begun, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            await consumer.done.wait()
            assert begun < 2_000_000
    finally:
        tracemalloc.stop()
    assert handled == 200_000
    assert consumer.most <= 2 * 100 + 1000


async def test_deliveries_held_stay_within_what_the_consumer_was_told() -> None:
    """With handlers that don't end, no more than `max_held` deliveries are taken."""
    consumer = Endless(100_000)
    ours = EventListener(consumer, max_in_flight=10, max_parked=50, drain_timeout=0)

    @ours.handler(Step)
    async def handle(event: Event[Step]) -> None:
        await asyncio.Event().wait()

    async with ours:
        for _ in range(500):
            await asyncio.sleep(0)
        assert 20 <= consumer.held <= consumer.max_held == 70


async def stack_to_handler(with_dependency: bool) -> list[str]:
    """The functions on the way from `receive` to the handler, over all tasks.

    Those on the stack when a run is handed over, and those on the stack of the handler.
    """
    broker = MemoryBroker()
    ours = EventListener(MemoryConsumer(broker))
    stacks: list[list[str]] = []
    done = asyncio.Event()

    def stack() -> list[str]:
        frame: FrameType | None = sys._getframe(1)
        names: list[str] = []
        while frame is not None:
            if frame.f_globals["__name__"].startswith("dispytch."):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return names[::-1]

    def number() -> int:
        return 5

    if with_dependency:

        @ours.handler(Loose)
        async def needs(event: Event[Loose], x: Annotated[int, Depends(number)]) -> None:
            stacks.append(stack())
            done.set()

    else:

        @ours.handler(Loose)
        async def handle(event: Event[Loose]) -> None:
            stacks.append(stack())
            done.set()

    async with ours, EventEmitter(MemoryProducer(broker)) as emitter:
        assert ours._session is not None
        dispatcher = ours._session.dispatcher

        class Watching(deque[Any]):
            def append(self, run: Any) -> None:
                stacks.append(stack())
                super().append(run)

        dispatcher._ready = Watching()
        await emitter.emit(Loose())
        async with asyncio.timeout(5):
            await done.wait()
    return [name for each in stacks for name in each]


async def test_delivery_reaches_its_handler_in_few_frames(
    record_property: Callable[[str, object], None],
) -> None:
    """From a delivery to the handler are at most 6 Python frames, counted over both tasks."""
    alone = await stack_to_handler(False)
    with_dependency = await stack_to_handler(True)
    record_property("frames", len(alone))
    record_property("frames with a dependency", len(with_dependency))
    print(f"\nframes to a handler: {alone}; with a dependency: {with_dependency}")  # noqa: T201
    assert alone
    assert len(alone) <= 6, alone
    assert len(with_dependency) <= 7, with_dependency
