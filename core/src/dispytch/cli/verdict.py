"""The verdict of `dispytch demo`: what was promised, and whether the facts bear it out."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from dispytch.cli.worklog import Task, Worker, Worklog
from dispytch.consumer import Delivery

__all__ = ["STEPS", "Check", "Facts", "Letter", "listed", "verdict"]

STEPS = ("take_payment", "send_parcel", "tell_customer")
"""The handlers of the shop, in the order an order goes through them."""


class Letter(NamedTuple):
    """A dead letter: where it is, and what its headers tell."""

    topic: str
    told: Mapping[str, str]


class Check(NamedTuple):
    """One promise.

    Attributes:
        text: what was found.
        kept: whether that is as it should be.
    """

    text: str
    kept: bool


@dataclass
class Facts:
    """What was measured.

    Attributes:
        work: what the service logged.
        placed: the customer of each order that was emitted and confirmed.
        poison: the id of the event that nobody can read, once it was confirmed.
        letters: what is in the dead-letter topic.
        first: the first order as it travelled, or None.
        killed: the process that was killed, or None.
        status: the exit status of the service, or None where it has not ended by itself.
    """

    work: Worklog = field(default_factory=Worklog)
    placed: dict[int, str] = field(default_factory=dict)
    poison: str = ""
    letters: list[Letter] = field(default_factory=list)
    first: Delivery | None = None
    killed: int | None = None
    status: int | None = None

    @property
    def done(self) -> Counter[str]:
        """How many orders have gone through each step."""
        return Counter(task.step for task in set(self.work.tasks("ends")))

    @property
    def missing(self) -> list[Task]:
        """Steps of placed orders that nobody has ended."""
        ended = set(self.work.tasks("ends"))
        every = (Task(step, order) for step in STEPS for order in self.placed)
        return [task for task in every if task not in ended]

    @property
    def victim(self) -> Worker | None:
        """The worker that was killed, once it is known to be dead: all it wrote was read then."""
        worker = self.work.workers.get(self.killed or 0)
        return worker if worker is not None and "SIGKILL" in worker.fate else None

    @property
    def replacement(self) -> int | None:
        """The process that was started in the place of the one killed, once it receives."""
        for worker in self.work.workers.values():
            if self.killed is not None and worker.replaces == self.killed and worker.listening:
                return worker.pid
        return None

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be waited for."""
        replaced = self.killed is None or self.replacement is not None
        return replaced and bool(self.letters) and not self.missing


def verdict(facts: Facts) -> list[Check]:
    """What was promised, each with what was found."""
    return [
        _nothing_lost(facts),
        _taken_over(facts),
        _twice(facts),
        _in_order(facts),
        _retried(facts),
        _dead_lettered(facts),
        _ended_in_order(facts),
    ]


def _nothing_lost(facts: Facts) -> Check:
    orders, missing = len(facts.placed), facts.missing
    if missing or not orders:
        return Check(f"of {orders} orders, nobody finished {listed(missing)}", kept=False)
    return Check(f"{orders} orders placed, each went through all {len(STEPS)} steps", kept=True)


def _taken_over(facts: Facts) -> Check:
    victim, work = facts.victim, facts.work
    left = [] if victim is None else work.in_hand(victim.pid)
    if victim is None or not left:
        return Check("no worker was killed in the middle of anything", kept=False)
    taken, killed = work.taken_over(victim.pid), f"worker {victim.pid} was killed"
    if lost := [task for task in left if task not in taken]:
        return Check(f"{killed}, and nobody took over {listed(lost)}", kept=False)
    if facts.replacement is None:
        return Check(f"{killed}, and none took its place", kept=False)
    return Check(
        f"{killed} in the middle of {len(left)}, which others finished; "
        f"{facts.replacement} took its place",
        kept=True,
    )


def _twice(facts: Facts) -> Check:
    """Only what the killed worker had begun may come again, and what follows from that."""
    work = facts.work
    ended = Counter(work.tasks("ends"))
    by: dict[Task, set[int]] = defaultdict(set)
    for note in work.notes:
        by[note.task].add(note.pid)
    again = [task for task, pids in by.items() if len(pids) > 1 or ended[task] > 1]
    begun = {task.order for task in work.tasks("begins", facts.killed)} if facts.killed else set()
    if strange := [task for task in again if task.order not in begun]:
        return Check(f"handled twice without a reason: {listed(strange)}", kept=False)
    twice = sum(count > 1 for count in ended.values())
    return Check(
        f"{len(again)} were begun twice and {twice} finished twice, "
        "all of orders that the killed worker had begun",
        kept=True,
    )


def _in_order(facts: Facts) -> Check:
    if wrong := list(_overtaken(facts)):
        return Check(f"begun before the one before it was done: {listed(wrong)}", kept=False)
    customers = len(set(facts.placed.values()))
    return Check(f"the orders of each of {customers} customers were handled in order", kept=True)


def _overtaken(facts: Facts) -> Iterator[Task]:
    """What was first begun before the same customer's order before it was first ended."""
    begun, ended = dict[Task, int](), dict[Task, int]()
    for when, note in enumerate(facts.work.notes):
        if note.what != "fails":
            (begun if note.what == "begins" else ended).setdefault(note.task, when)
    never = len(facts.work.notes)
    orders: dict[str, list[int]] = defaultdict(list)
    for order, customer in facts.placed.items():
        orders[customer].append(order)
    for step in STEPS:
        for each in orders.values():
            for before, after in pairwise(each):
                if begun.get(Task(step, after), never) < ended.get(Task(step, before), never):
                    yield Task(step, after)


def _retried(facts: Facts) -> Check:
    failed = Counter(facts.work.tasks("fails"))
    if not failed:
        return Check("no attempt failed, and one should have", kept=False)
    told = ", ".join(f"{task} failed {_times(count)}" for task, count in failed.items())
    return Check(f"{told}, and was tried again", kept=True)


def _dead_lettered(facts: Facts) -> Check:
    letters = facts.letters
    if len(letters) == 1 and facts.poison and letters[0].told.get("id") == facts.poison:
        return Check(f"the one event nobody could read is in {letters[0].topic}", kept=True)
    return Check(
        f"{len(letters)} dead letters, where the one event nobody can read should be", kept=False
    )


def _ended_in_order(facts: Facts) -> Check:
    if facts.status == 0:
        return Check("asked to stop, the service finished what it had begun", kept=True)
    return Check(f"the service did not end in order: its status is {facts.status}", kept=False)


def listed(tasks: Sequence[Task], most: int = 4) -> str:
    """The first few, and how many more."""
    told = ", ".join(str(task) for task in tasks[:most]) or "anything"
    return told if len(tasks) <= most else f"{told} and {len(tasks) - most} more"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"
