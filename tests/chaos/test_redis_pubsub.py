"""Redis Pub/Sub under faults: it loses events, and every loss falls into a gap that was told."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from brokers.redis import Redis

pytest.importorskip("redis")

from chaos.handling import true_soon
from dispytch import Event, EventEmitter, EventListener, Receipt
from dispytch.testing.conformance import Proxy
from dispytch.testing.conformance.flow import no_tasks_left
from dispytch.testing.conformance.kit import Numbered, numbered
from dispytch.testing.conformance.load import Emit, Load
from dispytch_redis import RedisPubSubConsumer

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

BATCH = 300
"""Events that must be handled before a fault, and after it."""


class Gaps(logging.Handler):
    """What the log tells of gaps: from when to when, in seconds of `time.monotonic()`."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "subscribed again" in record.msg and isinstance(record.args, tuple):
            (_, lasted), now = record.args, time.monotonic()
            assert isinstance(lasted, float)
            self.told.append((now - lasted, now))

    def hold(self, emit: Emit) -> bool:
        """Whether an event was published in one of them, as far as its emitter can tell."""
        return any(emit.began <= end and emit.ended >= start for start, end in self.told)


class Flow:
    """Events emitted and handled without a pause."""

    def __init__(self, emitter: EventEmitter, listener: EventListener, topic: str) -> None:
        self.emitter, self.listener = emitter, listener
        self.emits: list[Emit] = []
        self.handled: set[str] = set()
        self._kind = kind = numbered(topic)
        self._load = Load(
            emitter, lambda n: kind(lane=n % 50, number=n), self.emits.append, pause=0.05
        )

        @listener.handler(kind)
        async def note(event: Event[Numbered]) -> None:
            self.handled.add(event.id)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """With what is inside going on; afterwards all is well, and new events are handled."""
        async with self.listener, self.emitter:
            self._load.start()
            try:
                await true_soon(self._is_known)
                yield
                await self.more()
                await true_soon(lambda: bool(self.listener.health()))
            finally:
                await self._load.end()
            fresh = [self._kind(lane=n % 50, number=10**9 + n) for n in range(BATCH)]
            await self.emitter.emit_many(fresh)
            await true_soon(lambda: self.handled.issuperset(event.id for event in fresh))
            assert self.listener.health()

    def _is_known(self) -> bool:
        """Whether the consumer knows of events that they were before any gap to come."""
        subscriber = self.consumer._subscriber
        assert subscriber is not None
        return sum(each.ended < subscriber.read_to for each in self.emits) >= BATCH

    @property
    def consumer(self) -> RedisPubSubConsumer:
        consumer = self.listener.consumer
        assert isinstance(consumer, RedisPubSubConsumer)
        return consumer

    async def more(self) -> None:
        """Wait until more events, emitted from now on, are handled."""
        now = time.monotonic()

        def enough() -> bool:
            fresh = [each for each in self.emits if each.began > now]
            return sum(each.event_id in self.handled for each in fresh) >= BATCH

        await true_soon(enough)

    def missing(self) -> list[Emit]:
        """What was accepted and not handled."""
        return [
            each
            for each in self.emits
            if isinstance(each.outcome, Receipt) and each.event_id not in self.handled
        ]


@pytest.fixture
def gaps() -> Iterator[Gaps]:
    handler, logger = Gaps(), logging.getLogger("dispytch.redis")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def proxy(own_redis: Redis) -> Iterator[Proxy]:
    with own_redis.proxy() as proxy:
        yield proxy


def flow_of(own_redis: Redis, topic: str, port: int | None = None) -> Flow:
    """Emits to the server, and listens there by this port."""
    options = "reply_timeout=1&connect_timeout=1&reconnect_interval=0.1"
    scheme = "redis+pubsub"
    emitter = EventEmitter.from_url(f"{own_redis.url_for(scheme=scheme)}?{options}", timeout=5)
    listener = EventListener.from_url(f"{own_redis.url_for(scheme=scheme, port=port)}?{options}")
    return Flow(emitter, listener, topic)


def check(flow: Flow, gaps: Gaps, faults: int) -> None:
    """Check that nothing was lost outside of what was told.

    Where the server has no processor for a second or two, that is a gap as well.
    """
    assert flow.consumer.gaps == len(gaps.told) >= faults
    silent = [each for each in flow.missing() if not gaps.hold(each)]
    assert not silent, f"{len(silent)} of {len(flow.missing())} lost events fall into no gap"
    for start, end in gaps.told:
        assert any(each.ended < start for each in flow.emits), "nothing before"
        assert any(start < each.began and each.ended < end for each in flow.emits), "nothing during"
        assert any(each.began > end for each in flow.emits), "nothing after"


async def test_a_killed_server_loses_nothing_unsaid(
    own_redis: Redis, unique_name: str, gaps: Gaps
) -> None:
    """Killed twice and started again while events flow: what is lost lies in two gaps."""
    tasks = asyncio.all_tasks()
    flow = flow_of(own_redis, unique_name)
    async with flow.at_work():
        for _ in range(2):
            await asyncio.to_thread(own_redis.kill)
            await true_soon(lambda: not flow.listener.health())
            await asyncio.to_thread(own_redis.start)
            await flow.more()
    check(flow, gaps, 2)
    await no_tasks_left(tasks)


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_a_cut_network_loses_nothing_unsaid(
    own_redis: Redis, proxy: Proxy, unique_name: str, gaps: Gaps, fault: str
) -> None:
    """Events are published all the time, and the listener is cut off: it tells from when on."""
    tasks = asyncio.all_tasks()
    flow = flow_of(own_redis, unique_name, proxy.port)
    cut: Callable[[], None] = getattr(proxy, fault)
    async with flow.at_work():
        await asyncio.to_thread(cut)
        await true_soon(lambda: not flow.listener.health())
        await asyncio.sleep(1.0)  # events that nobody gets
        await asyncio.to_thread(proxy.restore)
    assert flow.missing(), "nothing was lost: the fault shows nothing"
    check(flow, gaps, 1)
    await no_tasks_left(tasks)


async def test_resets_lose_nothing_unsaid(
    own_redis: Redis, proxy: Proxy, unique_name: str, gaps: Gaps
) -> None:
    """Five short cuts: each is told."""
    tasks = asyncio.all_tasks()
    flow = flow_of(own_redis, unique_name, proxy.port)
    async with flow.at_work():
        for _ in range(5):
            await asyncio.to_thread(proxy.reset)
            await flow.more()
    check(flow, gaps, 5)
    await no_tasks_left(tasks)
