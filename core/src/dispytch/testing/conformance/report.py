"""Report: what was emitted and handled around faults, and what must be true of it."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dispytch.errors import EmitRejected, EmitUnknown
from dispytch.producer import Receipt
from dispytch.testing.conformance.load import Emit

__all__ = ["Fault", "Handled", "Report", "check_order", "duplicates"]

logger = logging.getLogger("dispytch")


class Handled(NamedTuple):
    """A handler had finished with an event: at which second of `time.monotonic()`, and where."""

    at: float
    pid: int
    lane: int
    number: int
    event_id: str


@dataclass
class Fault:
    """Something done to the broker, the network or a consumer.

    Attributes:
        name: what.
        began: second of `time.monotonic()`.
        ended: the same; it ends when what was done is undone.
        under_way: how many events the listener had at most while it lasted.
        watched: whether somebody looks at `health()`.
        down: when `health()` first told of it; None: never.
        up: when `health()` was good again after that.
    """

    name: str
    began: float
    ended: float = float("inf")
    under_way: int = 0
    watched: bool = True
    down: float | None = None
    up: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether it has not ended."""
        return self.ended == float("inf")

    def see(self, *, healthy: bool) -> None:
        """Take in what `health()` says now."""
        now = time.monotonic()
        if not healthy:
            self.down = self.down or now
            self.up = None
        elif self.down is not None:
            self.up = self.up or now

    def phases(self, times: Iterable[tuple[float, float]]) -> tuple[int, int, int]:
        """How many of (began, ended) fell before it, touched it, and came after it."""
        before = during = after = 0
        for began, ended in times:
            before += ended < self.began
            after += began > self.ended
            during += began <= self.ended and ended >= self.began
        return before, during, after

    def told(self) -> str:
        """When it was seen, for messages."""
        if not self.watched:
            return ""
        if self.down is None:
            return "; health() told nothing"
        down = f"; health() told {self.down - self.began:.1f} s after it began"
        if self.up is None:
            return f"{down} and was not good again"
        return f"{down} and was good again {max(self.up - self.ended, 0.0):.1f} s after its end"


@dataclass
class Report:
    """What happened."""

    emits: list[Emit] = field(default_factory=list)
    done: list[Handled] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    confirmed: set[str] = field(default_factory=set)
    handled: set[str] = field(default_factory=set)
    unhandled: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)

    def emitted(self, emit: Emit) -> None:
        """An emit has ended."""
        self.emits.append(emit)
        if isinstance(emit.outcome, Receipt):
            self.confirmed.add(emit.event_id)
            if emit.event_id not in self.handled:
                self.unhandled.add(emit.event_id)

    def finished(self, handled: Handled) -> None:
        """A handler has ended."""
        self.done.append(handled)
        self.handled.add(handled.event_id)
        self.unhandled.discard(handled.event_id)

    def confirmed_since(self, moment: float) -> int:
        """How many events were confirmed whose emit began after a moment."""
        latest = itertools.takewhile(lambda emit: emit.ended > moment, reversed(self.emits))
        return sum(
            1 for emit in latest if emit.began > moment and isinstance(emit.outcome, Receipt)
        )

    def summary(self) -> str:
        """Numbers in one line, for messages."""
        outcomes = Counter(type(emit.outcome).__name__ for emit in self.emits)
        told = [
            f"{len(self.emits)} emitted ({_listed(outcomes)})",
            f"{len(self.handled)} handled, {duplicates(self.done)} times again",
            f"{len(self.unhandled)} confirmed and not handled",
        ]
        for fault in self.faults:
            emits, runs = self._around(fault)
            lasted = min(fault.ended, time.monotonic()) - fault.began
            told.append(
                f"{fault.name} for {lasted:.1f} s with up to {fault.under_way} under way (before, "
                f"during, after: {_phases(emits)} emits, {_phases(runs)} handled{fault.told()})"
            )
        return "; ".join([*told, *sorted(self.problems)])

    def check(self, *, repeatable: int, ordered: bool) -> None:
        """Check what must be true after all faults.

        Args:
            repeatable: how many events beside those under way may come again for each fault.
            ordered: whether confirmed events of one key must have been handled in order.
        """
        summary = self.summary()
        logger.info(summary)
        outcomes = [emit.outcome for emit in self.emits]
        strange = [o for o in outcomes if not isinstance(o, Receipt | EmitRejected | EmitUnknown)]
        assert not strange, f"an emit raised {strange[0]!r}: {summary}"
        for fault in self.faults:
            for what, counts in zip(("emit", "event handled"), self._around(fault), strict=True):
                for when, counted in zip(("before", "during", "after"), counts, strict=True):
                    assert counted, f"no {what} {when} the fault {fault.name!r}: {summary}"
        assert not self.unhandled, f"{len(self.unhandled)} confirmed events are lost: {summary}"
        again, most = duplicates(self.done), sum(f.under_way + repeatable for f in self.faults)
        assert again <= most, f"handled again: {again} times, at most {most} may be: {summary}"
        if ordered:
            check_order([each for each in self.done if each.event_id in self.confirmed])

    def _around(self, fault: Fault) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        emits = fault.phases((emit.began, emit.ended) for emit in self.emits)
        return emits, fault.phases((each.at, each.at) for each in self.done)


def duplicates(done: Collection[Handled]) -> int:
    """How many times an event was handled again."""
    return len(done) - len({each.event_id for each in done})


def check_order(done: Iterable[Handled]) -> None:
    """Check that events of one key were first handled in the order in which they were emitted."""
    latest: dict[int, int] = {}
    seen: set[str] = set()
    wrong: list[str] = []
    for each in done:
        if each.event_id not in seen:
            seen.add(each.event_id)
            before = latest.get(each.lane, -1)
            if each.number < before:
                wrong.append(f"{each.number} after {before} of key {each.lane}")
            latest[each.lane] = max(each.number, before)
    assert not wrong, f"{len(wrong)} of {len(seen)} events out of order: {', '.join(wrong[:5])}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


def _phases(counts: tuple[int, int, int]) -> str:
    return "/".join(str(count) for count in counts)
