"""Measures contenders that do the same work, interleaved, and checks that they did it.

Ratios are what it is about: those of contenders that ran in the same round, on the same machine, at
the same time. Absolute times are the machine's.
"""

import asyncio
import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

BARE, PEER, OURS = "bare", "FastStream", "Dispytch"
"""Whose a contender is."""

LOOP = "event loop"
"""In place of these: all do our work, each on another event loop."""

_scale = float(os.environ.get("DISPYTCH_BENCH_SCALE", "1"))
ROUNDS = int(os.environ.get("DISPYTCH_BENCH_ROUNDS", "7"))
"""How many count, after one that warms up."""

E = TypeVar("E")


def scaled(events: int) -> int:
    """So many events, or as many fewer as DISPYTCH_BENCH_SCALE says."""
    return max(10, int(events * _scale))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost, per event.

    Attributes:
        wall: microseconds that passed.
        cpu: microseconds of processor time that this process took.
    """

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Contender:
    """One that does the work.

    Attributes:
        name: what it is.
        side: BARE, PEER or OURS; or LOOP.
        run: does it once, checks that all of it was done, and tells what it cost.
        guarantee: what is promised of the events.
    """

    name: str
    side: str
    run: Callable[[], Awaitable[Cost]]
    guarantee: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the rounds of one contender cost; `walls` are in the unit of the work."""

    name: str
    side: str
    guarantee: str
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def ratios(self, base: "Samples") -> list[float]:
        """To another contender, round by round."""
        return [ours / theirs for ours, theirs in zip(self.walls, base.walls, strict=True)]


@dataclass(frozen=True, slots=True)
class Work:
    """What was measured of one piece of work.

    Attributes:
        title: what is done.
        contenders: who did it; ratios are to the first.
        unit: of the times.
    """

    title: str
    contenders: list[Samples]
    unit: str = "µs"

    @property
    def base(self) -> Samples | None:
        """What the others are compared with: the first, if it is a bare client, or a loop."""
        first = self.contenders[0]
        return first if first.side in {BARE, LOOP} else None

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Self:
        """What was written to a file."""
        samples = [Samples(**each) for each in recorded["contenders"]]
        return cls(recorded["title"], samples, recorded["unit"])


class Watch:
    """Measures what is done in it, or from `start` to `stop`.

    Args:
        events: with so many.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self.cost = Cost(0.0, 0.0)

    def __enter__(self) -> Self:
        gc.collect()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin."""
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End."""
        now = time.perf_counter(), time.process_time()
        self.cost = Cost(
            *((b - a) / self._events * 1e6 for a, b in zip(self._begun, now, strict=True))
        )


class Handled:
    """Notes what a handler gets; measures the middle three fifths of it.

    Before and behind these it is not the whole work that is done: of the first events many are read
    before one is handled, of the last ones all were read before.

    Args:
        expected: how many will come.
        more: whether others may come behind them, which do not count.
    """

    def __init__(self, expected: int, *, more: bool = False) -> None:
        self.numbers: list[int] = []
        self.done = asyncio.Event()
        self._expected, self._more = expected, more
        lead = expected // 5
        self._begin, self._end = lead, expected - lead
        self._watch = Watch(self._end - self._begin)
        gc.collect()

    def note(self, number: int) -> None:
        """One came."""
        if self._more and self.done.is_set():
            return
        self.numbers.append(number)
        count = len(self.numbers)
        if count == self._begin:
            self._watch.start()
        elif count == self._end:
            self._watch.stop()
        elif count == self._expected:
            self.done.set()

    @property
    def cost(self) -> Cost:
        """Per event; see `verify` for what it raises."""
        self.verify()
        return self._watch.cost

    def verify(self) -> None:
        """All came, once.

        Raises:
            RuntimeError: events are missing, or came twice.
        """
        check("handled", len(set(self.numbers)), self._expected)
        check("handled, with doubles", len(self.numbers), self._expected)


def check(what: str, found: int, expected: int) -> None:
    """What loses or doubles events is not worth measuring.

    Raises:
        RuntimeError: it did.
    """
    if found != expected:
        raise RuntimeError(f"{what}: {found:,} instead of {expected:,}")


async def compare(
    title: str,
    contenders: Iterable[Contender],
    *,
    unit: str = "µs",
    rounds: int = ROUNDS,
    warm_up: bool = True,
) -> Work:
    """Let all run, round by round, every other round backwards; one round before warms up."""
    all_of_them = list(contenders)
    work = Work(
        title, [Samples(each.name, each.side, each.guarantee) for each in all_of_them], unit
    )
    pairs = list(zip(all_of_them, work.contenders, strict=True))
    for number in range(0 if warm_up else 1, rounds + 1):
        for contender, samples in pairs if number % 2 else reversed(pairs):
            cost = await contender.run()
            if number:
                samples.walls.append(cost.wall)
                samples.cpus.append(cost.cpu)
    show(work)
    return work


def show(work: Work) -> None:
    """Print it."""
    base = work.base
    print(f"{work.title:<52} {work.unit:>12} {'ratio' if base else '':>13}   of it client CPU")
    for samples in work.contenders:
        ratio = f"{statistics.median(samples.ratios(base)):8.2f}" if base else ""
        cpus = spread(samples.cpus) if any(samples.cpus) else ""
        late = f"  p99 {percentile(samples.walls):.2f}" if len(samples.walls) >= 100 else ""
        name = samples.name if samples.side == LOOP else f"{samples.side} {samples.name}".strip()
        print(f"  {name:<48} {spread(samples.walls)} {ratio}  {cpus}{late}", flush=True)


def percentile(values: Sequence[float]) -> float:
    """What 99 of 100 are below."""
    return statistics.quantiles(values, n=100)[98]


def spread(values: Sequence[float]) -> str:
    """The median with the middle half's width."""
    return f"{statistics.median(values):9.2f} ±{half_width(values):6.2f}"


def half_width(values: Sequence[float]) -> float:
    """Half the width of the middle half."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


async def at_once(emit: Callable[[E], Awaitable[object]], tasks: int, events: Sequence[E]) -> None:
    """So many tasks emit, each one event after the other."""

    async def work(left: Iterable[E]) -> None:
        for event in left:
            await emit(event)

    left = iter(events)
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work(left))
