"""Events handled under a fault, and what must be true of it whatever the backend.

`survive` breaks the broker under a listener in this process. `Workers` are listeners in processes
of their own, to be killed. Nothing here knows a broker.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from chaos.scenario import Load, Report, no_tasks_left
from dispytch import (
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Receipt,
    Retry,
    Subscription,
    plugins,
)
from dispytch.testing.conformance import Proxy
from dispytch.url import connect


def load_of(short: int, full: int) -> int:
    """How many events: few in CI, all in the nox session `chaos`."""
    return full if os.environ.get("DISPYTCH_FULL_LOAD") else short


BEFORE = load_of(300, 5_000)
"""Events handled before the fault begins, and again after it has ended."""

RECOVERY = 60.0
"""Seconds after a fault until everything confirmed must be handled."""

STOP = 15.0
"""Seconds that stopping may take with the broker back at work."""

LANES = 50


class Numbered(EventBase):
    """One of the events of a load: its key, and its place among all."""

    __event_type__ = "numbered"
    __key__ = "{lane}"

    lane: int
    number: int


def numbered(topic: str) -> type[Numbered]:
    """The same, on a topic."""

    class There(Numbered):
        __topic__ = topic

    return There


@dataclass
class Handling:
    """What a listener did. All times are `time.monotonic()`."""

    emitted: Report = field(default_factory=Report)
    handled: dict[str, float] = field(default_factory=dict)
    order: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    times: Counter[str] = field(default_factory=Counter)
    health: list[tuple[float, bool, str]] = field(default_factory=list)
    stopped_in: float = 0.0

    @property
    def lost(self) -> set[str]:
        """What was confirmed and not handled."""
        return self.emitted.ids(Receipt) - self.handled.keys()

    def handled_within(self, began: float, ended: float) -> int:
        """How many events were first handled in this time."""
        return sum(1 for at in self.handled.values() if began < at < ended)

    def summary(self) -> str:
        """For the message of a failed check."""
        problems = Counter(told for _, healthy, told in self.health if not healthy)
        repeated = sum(count - 1 for count in self.times.values())
        return (
            f"{self.emitted.summary()}; {len(self.handled)} handled, {repeated} repeated, stop in "
            f"{self.stopped_in:.1f} s, problems {dict(problems)}"
        )


async def survive(
    emitter: EventEmitter,
    listener: EventListener,
    topic: str,
    fault: Callable[[], object],
    *,
    notices: bool = True,
) -> Handling:
    """Emit and handle before, during and after a fault, and check that nothing is lost.

    Args:
        emitter: not started yet.
        listener: not started yet, without handlers, with a group.
        topic: which exists where the backend needs that.
        fault: does the harm and repairs it; blocks meanwhile, in a thread of its own.
        notices: whether the fault lasts long enough for `health()` to tell of it.
    """
    kind = numbered(topic)
    did = Handling()

    @listener.handler(kind)
    async def note(event: Event[Numbered]) -> None:
        await asyncio.sleep(0.002)
        did.times[event.id] += 1
        if event.id not in did.handled:
            did.order[event.body.lane].append(event.body.number)
        did.handled.setdefault(event.id, time.monotonic())

    tasks = asyncio.all_tasks()
    await listener.start()
    await emitter.start()
    watching = asyncio.create_task(_watch(listener, did))
    load = Load(emitter, lambda n: kind(lane=n % LANES, number=n), did.emitted)
    load.start()
    try:
        await _until(lambda: len(did.handled) >= BEFORE, RECOVERY, did)
        did.emitted.fault_began = began = time.monotonic()
        await asyncio.to_thread(fault)
        did.emitted.fault_ended = ended = time.monotonic()
        await _until(lambda: did.handled_within(ended, float("inf")) >= BEFORE, RECOVERY, did)
        await load.end()
        await _until(lambda: not did.lost, RECOVERY, did)
        fresh = kind(lane=0, number=-1)
        await emitter.emit(fresh)
        await _until(lambda: fresh.id in did.handled, RECOVERY, did)
        await _until(lambda: bool(listener.health()), RECOVERY, did)
        if notices:
            noticed = [at for at, healthy, _ in did.health if not healthy and at > began]
            assert noticed, f"health() told nothing: {did.summary()}"
    finally:
        watching.cancel()
        await load.end()
        started = time.monotonic()
        await emitter.stop()
        await listener.stop()
        did.stopped_in = time.monotonic() - started
    assert did.handled_within(0, began), f"nothing handled before: {did.summary()}"
    assert did.emitted.during, f"no emit fell into the fault: {did.summary()}"
    assert did.stopped_in < STOP, did.summary()
    await no_tasks_left(tasks)
    return did


async def _watch(listener: EventListener, did: Handling) -> None:
    while True:
        health = listener.health()
        did.health.append((time.monotonic(), bool(health), "; ".join(health.problems)))
        await asyncio.sleep(0.1)


async def _until(true: Callable[[], bool], within: float, did: Handling) -> None:
    try:
        async with asyncio.timeout(within):
            while not true():  # noqa: ASYNC110 - of health and times, which tell nobody
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(
            f"not within {within:g} s; {len(did.lost)} lost: {did.summary()}"
        ) from None


# Workers: listeners in processes of their own


class Handled(NamedTuple):
    """A line a worker wrote when a handler had finished."""

    at: int
    pid: int
    lane: int
    number: int


class Workers:
    """Processes with a listener each, of one group, that write down what they handled.

    Args:
        url: where they listen.
        topic: what they handle.
        folder: where their log lies.
        options: for the worker: `max_in_flight`, `drain_timeout`, `work` (seconds a handler takes).
    """

    def __init__(self, url: str, topic: str, folder: Path, **options: float) -> None:
        self._url, self._topic, self._log = url, topic, folder / "handled"
        self._errors = folder / "errors"
        self._options = options
        self._log.touch()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **options: float) -> subprocess.Popen[bytes]:
        """Start one more; returns when it is subscribed."""
        given = [f"{name}={value}" for name, value in (self._options | options).items()]
        with self._errors.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("worker.py")),
                 self._url, self._topic, str(self._log), *given],
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"subscribed\n", self.told()
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL, in the middle of whatever it does."""
        process.kill()
        process.wait()

    def terminate(self, process: subprocess.Popen[bytes], within: float = 60) -> int:
        """SIGTERM; its exit status."""
        process.send_signal(signal.SIGTERM)
        return process.wait(within)

    def handled(self) -> list[Handled]:
        """What was handled so far, in the order of the time it was finished."""
        lines = self._log.read_text().splitlines()
        return sorted(Handled(*(int(word) for word in line.split())) for line in lines)

    async def reach(self, count: int, within: float) -> list[Handled]:
        """Wait until so many different events were handled."""
        deadline = time.monotonic() + within
        while True:
            done = self.handled()
            different = len({(each.lane, each.number) for each in done})
            if different >= count:
                return done
            assert time.monotonic() < deadline, (
                f"{different} of {count} handled within {within:g} s: {self.told()}"
            )
            await asyncio.sleep(0.1)

    async def hear_of(self, worker: subprocess.Popen[bytes], within: float) -> None:
        """Wait until a worker has handled something."""
        await true_soon(lambda: worker.pid in {each.pid for each in self.handled()}, within)

    def told(self) -> str:
        """The end of what they wrote to stderr."""
        return self._errors.read_text()[-2000:] if self._errors.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def duplicates(done: list[Handled]) -> int:
    """How many times an event was handled again."""
    return len(done) - len({(each.lane, each.number) for each in done})


def check_order(done: list[Handled]) -> None:
    """Check that events of one key were first handled in the order in which they were emitted."""
    latest: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    wrong = 0
    for each in done:
        if (each.lane, each.number) not in seen:
            seen.add((each.lane, each.number))
            wrong += each.number < latest.get(each.lane, -1)
            latest[each.lane] = max(each.number, latest.get(each.lane, -1))
    assert not wrong, f"{wrong} of {len(seen)} events out of order"


async def emit_all(
    emitter: EventEmitter, topic: str, count: int, lanes: int, first: int = 0
) -> None:
    """Emit so many events, in order per key, and see each confirmed."""
    kind = numbered(topic)
    for start in range(first, first + count, 500):
        end = min(start + 500, first + count)
        await emitter.emit_many(kind(lane=n % lanes, number=n) for n in range(start, end))


async def kill_workers(
    url: str, topic: str, folder: Path, *, slack: int, kills: int, count: int, lanes: int
) -> None:
    """Kill workers in the middle of handlers, and check that the survivors make up for it.

    Args:
        url: where to emit and listen.
        topic: exists where the backend needs that.
        folder: for logs.
        slack: handled events per kill that may come again, besides those in flight.
        kills: how many workers are killed, each replaced by a new one.
        count: how many events.
        lanes: how many keys.
    """
    in_flight = 50
    with Workers(url, topic, folder, max_in_flight=in_flight, work=0.01) as workers:
        alive = [workers.start(), workers.start()]
        async with EventEmitter.from_url(url) as emitter:
            share = count // (kills + 1)
            for kill in range(kills):
                emitting = asyncio.create_task(
                    emit_all(emitter, topic, share, lanes, first=kill * share)
                )
                victim = alive.pop(0)
                await workers.reach(kill * share + share // 3, within=120)
                await workers.hear_of(victim, within=60)
                await asyncio.to_thread(workers.kill, victim)
                alive.append(await asyncio.to_thread(workers.start))
                await emitting
            emitted = kills * share
            await emit_all(emitter, topic, count - emitted, lanes, first=emitted)
        done = await workers.reach(count, within=180)
        for worker in alive:
            assert await asyncio.to_thread(workers.terminate, worker) == 0, workers.told()
    done = workers.handled()
    check_order(done)
    assert len({each.pid for each in done}) > kills, "the new workers handled nothing"
    repeated = duplicates(done)
    assert repeated <= kills * (in_flight + slack), f"{repeated} events were handled again"


async def terminate_workers(url: str, topic: str, folder: Path, *, count: int) -> None:
    """Stop a worker during load: what it finished never comes again, and nothing is lost."""
    with Workers(url, topic, folder, max_in_flight=20, work=0.02) as workers:
        first = workers.start()
        async with EventEmitter.from_url(url) as emitter:
            await emit_all(emitter, topic, count, 50)
        await workers.reach(count // 4, within=60)
        assert await asyncio.to_thread(workers.terminate, first) == 0, workers.told()
        left = len(workers.handled())
        assert left < count, "it was stopped too late to show anything"
        second = await asyncio.to_thread(workers.start)
        done = await workers.reach(count, within=120)
        assert await asyncio.to_thread(workers.terminate, second) == 0, workers.told()
    done = workers.handled()
    check_order(done)
    assert duplicates(done) == 0, f"{duplicates(done)} finished events came again"


async def outlive_the_drain(url: str, topic: str, folder: Path) -> None:
    """A handler that outlives `drain_timeout`: its event alone comes again."""
    with Workers(url, topic, folder, work=0.01, drain_timeout=1) as workers:
        first = workers.start(stuck=7)
        async with EventEmitter.from_url(url) as emitter:
            await emit_all(emitter, topic, 50, 50)
        await workers.reach(49, within=60)
        assert await asyncio.to_thread(workers.terminate, first) == 0, workers.told()
        assert 7 not in {each.number for each in workers.handled()}
        second = await asyncio.to_thread(workers.start)
        await workers.reach(50, within=60)
        assert await asyncio.to_thread(workers.terminate, second) == 0, workers.told()
    done = workers.handled()
    assert [each.number for each in done if each.pid == second.pid] == [7]
    assert duplicates(done) == 0


async def keep_what_cannot_be_buried(url: str, proxied_url: str, topic: str, proxy: Proxy) -> None:
    """The dead-letter topic out of reach: the event is kept, and buried when it is there again.

    Args:
        url: the broker.
        proxied_url: the same, through the proxy: the way of the dead letters.
        topic: exists where the backend needs that.
        proxy: cuts that way.
    """

    class Poison(EventBase):
        __topic__ = topic
        __event_type__ = "poison"

    def listener() -> EventListener:
        producer = EventEmitter.from_url(proxied_url).producer
        made = EventListener.from_url(url, group=f"{topic}-group", dead_letter=producer)

        @made.handler(Poison, retry=Retry(attempts=1))
        async def fail(event: Event[Poison]) -> None:
            raise ValueError("never")

        return made

    first = listener()
    async with first, EventEmitter.from_url(url) as emitter:
        proxy.refuse()
        await emitter.emit(Poison())
        await true_soon(lambda: any("dead letters" in told for told in first.health().problems))
        assert first.counts.dead_lettered == 0
        assert await first.consumer.backlog() == 1
        await asyncio.to_thread(proxy.restore)
        await true_soon(lambda: first.counts.dead_lettered == 1)
        await true_soon(lambda: not first.health().problems)
    second = listener()
    async with second:
        assert await second.consumer.backlog() == 0
    backend = plugins.backend_for_url(url)
    assert backend.connection is not None
    letters = backend.make_consumer(connect(url, backend.connection))
    await letters.start()
    await letters.subscribe([Subscription(f"{topic}.dlq", f"{topic}-readers")])
    async with asyncio.timeout(30):
        (letter,) = await letters.receive(10)
    assert dict(letter.headers)["x-dispytch-dlq-message"] == b"never"
    await letter.ack()
    await letters.stop()


async def true_soon(true: Callable[[], bool], within: float = 60.0) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
