"""Emits under a fault, and what must be true of them whatever the backend.

A test brings an emitter, a fault and a way to read back; `run` brings the load, the clock and the
checks. Nothing here knows a broker.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count

from dispytch import EmitRejected, EmitUnknown, EventBase, EventEmitter, Receipt
from dispytch.testing.conformance.flow import no_tasks_left
from dispytch.testing.conformance.load import Emit, Load, News

EMITTERS = 200
"""How many emits run at once."""

PAUSE = 0.25
"""Seconds each rests after an outcome: the load is many emits at once, not many per second."""

LATE = 2.0
"""Seconds an emit may outlive its deadline."""

STOP = 10.0
"""Seconds `stop` may take."""


@dataclass
class Report:
    """What happened. The fault's times are on the same clock as the emits'."""

    emits: list[Emit] = field(default_factory=list)
    fault_began: float = 0.0
    fault_ended: float = 0.0
    stopped_in: float = 0.0
    stored: Counter[str] = field(default_factory=Counter)

    def ids(self, kind: type) -> set[str]:
        """The events whose outcome was of this kind."""
        return {emit.event_id for emit in self.emits if isinstance(emit.outcome, kind)}

    @property
    def before(self) -> list[Emit]:
        """Emits that ended before the fault began."""
        return [emit for emit in self.emits if emit.ended < self.fault_began]

    @property
    def during(self) -> list[Emit]:
        """Emits that were under way while the fault lasted; a short one may hold no whole emit."""
        return [
            emit
            for emit in self.emits
            if emit.began < self.fault_ended and emit.ended > self.fault_began
        ]

    @property
    def within(self) -> list[Emit]:
        """Those of them that began and ended meanwhile."""
        return [
            emit
            for emit in self.during
            if self.fault_began < emit.began and emit.ended < self.fault_ended
        ]

    @property
    def after(self) -> list[Emit]:
        """Emits that began after the fault had ended."""
        return [emit for emit in self.emits if emit.began > self.fault_ended]

    def summary(self) -> str:
        """For the message of a failed check."""
        kinds = {
            phase: dict(Counter(type(emit.outcome).__name__ for emit in emits))
            for phase, emits in (
                ("before", self.before),
                ("during", self.during),
                ("after", self.after),
                ("in all", self.emits),
            )
        }
        lasted = self.fault_ended - self.fault_began
        return f"fault of {lasted:.1f} s, stop in {self.stopped_in:.1f} s, outcomes {kinds}"


async def run(
    emitter: EventEmitter,
    make_event: Callable[[int], EventBase],
    fault: Callable[[], object],
    read_back: Callable[[int], Collection[str]],
    *,
    timeout: float,
    recovery: float = 20.0,
) -> Report:
    """Emit before, during and after a fault, stop, read back, and check it all.

    Args:
        emitter: not started yet; made with this `timeout`.
        make_event: makes the event of a number, counted from 0.
        fault: does the harm and repairs it; blocks meanwhile, in a thread of its own.
        read_back: the ids of the events that the broker has, read by a bare client; is told how
            many there are at least. A duplicate comes twice. It may block.
        timeout: seconds an emit has.
        recovery: seconds after the fault until an emit must succeed again.
    """
    tasks = asyncio.all_tasks()
    report, news = Report(), News()

    def note(emit: Emit) -> None:
        report.emits.append(emit)
        news.tell()

    await emitter.start()
    numbers = count()
    load = Load(emitter, lambda _: make_event(next(numbers)), note, emitters=EMITTERS, pause=PAUSE)
    try:
        load.start()
        await _accepted(report, news, EMITTERS, within=recovery)
        report.fault_began = time.monotonic()
        await asyncio.to_thread(fault)
        report.fault_ended = time.monotonic()
        await _accepted(report, news, EMITTERS, within=recovery, since=report.fault_ended)
    finally:
        await load.end()
        began = time.monotonic()
        await emitter.stop()
        report.stopped_in = time.monotonic() - began
    accepted = report.ids(Receipt)
    report.stored = Counter(await asyncio.to_thread(read_back, len(accepted)))
    check(report, timeout)
    await no_tasks_left(tasks)
    return report


def check(report: Report, timeout: float) -> None:
    """Check what must be true after every fault."""
    summary = report.summary()
    for phase in ("before", "during", "after"):
        assert getattr(report, phase), f"no emit fell {phase} the fault: {summary}"
    strange = [
        emit.outcome
        for emit in report.emits
        if not isinstance(emit.outcome, Receipt | EmitRejected | EmitUnknown)
    ]
    assert not strange, f"{strange[:3]}: {summary}"
    lost = report.ids(Receipt) - set(report.stored)
    assert not lost, f"{len(lost)} confirmed events are not on the broker: {summary}"
    false = report.ids(EmitRejected) & set(report.stored)
    assert not false, f"{len(false)} rejected events are on the broker: {summary}"
    longest = max(emit.ended - emit.began for emit in report.emits)
    assert longest < timeout + LATE, f"an emit took {longest:.1f} s: {summary}"
    assert report.stopped_in < STOP, summary


async def _accepted(
    report: Report, news: News, wanted: int, *, within: float, since: float = 0.0
) -> None:
    """Wait until so many events were accepted whose emit began after a moment."""

    def enough() -> bool:
        accepted = (
            emit
            for emit in report.emits
            if emit.began > since and isinstance(emit.outcome, Receipt)
        )
        return sum(1 for _ in accepted) >= wanted

    await news.until(enough, within, report.summary)
