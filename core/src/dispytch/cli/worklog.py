"""What the service of `dispytch demo` logs, as facts: who began what, and who ended it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Note", "Said", "Task", "Worker", "Worklog"]

_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) +(?P<pid>\d+) (?P<logger>[\w.]+): (?P<text>.*)")
_NOTE = re.compile(r"(begins|ends|fails) (\w+) order=(\d+) customer=\w+")
_STARTED = re.compile(r"worker (\d+) started: process (\d+)")
_DIED = re.compile(r"worker (\d+) (was killed by \w+|ended with status \d+); starting it again")
_LISTENING = re.compile(r"\w+: listening to ")
_LAST = 20  # lines kept for the case that something goes wrong


class Task(NamedTuple):
    """One step of one order: what is to be done at least once."""

    step: str
    order: int

    def __str__(self) -> str:
        return f"{self.step} of order {self.order}"


class Note(NamedTuple):
    """What a worker noted of a task.

    Attributes:
        at: when it was read, in seconds since the demo began.
        pid: the worker's process.
        what: `"begins"`, `"ends"` or `"fails"`.
        task: the task.
    """

    at: float
    pid: int
    what: str
    task: Task


class Said(NamedTuple):
    """A line of the log that is no note."""

    level: str
    pid: int
    text: str


@dataclass
class Worker:
    """One process of the service.

    Attributes:
        pid: the process.
        number: its place among the workers; one that replaces another has the same.
        replaces: the process that was in its place before, or None.
        listening: whether it has begun to receive.
        fate: how it died, in the words of the log; empty while it lives.
        died: when that was read, in seconds since the demo began.
    """

    pid: int
    number: int
    replaces: int | None = None
    listening: bool = False
    fate: str = ""
    died: float = 0.0


@dataclass
class Worklog:
    """All that was read, in the order in which it was written.

    Attributes:
        notes: what the workers noted.
        workers: by process, in the order they were started.
        last: the last lines, as they are.
    """

    notes: list[Note] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)

    def read(self, line: str, at: float) -> Note | Said | None:
        """Take in a line.

        Args:
            line: as `dispytch run` logs it.
            at: seconds since the demo began.

        Returns:
            What it says; None where it is no line of a log.
        """
        self.last = [*self.last[1 - _LAST :], line]
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        pid, text = int(found["pid"]), found["text"]
        if noted := _NOTE.fullmatch(text):
            what, step, order = noted.groups()
            note = Note(at, pid, what, Task(step, int(order)))
            self.notes.append(note)
            return note
        if started := _STARTED.fullmatch(text):
            self._start(int(started[1]), int(started[2]))
        elif died := _DIED.match(text):
            worker = self._at(int(died[1]))
            if worker is not None:
                worker.fate, worker.died = died[2], at
        elif _LISTENING.match(text) and pid in self.workers:
            self.workers[pid].listening = True
        return Said(found["level"], pid, text)

    def _start(self, number: int, pid: int) -> None:
        before = self._at(number)
        self.workers[pid] = Worker(pid, number, None if before is None else before.pid)

    def _at(self, number: int) -> Worker | None:
        """The last one in this place."""
        return next((w for w in reversed(self.workers.values()) if w.number == number), None)

    @property
    def listening(self) -> int:
        """How many workers receive."""
        return sum(worker.listening and not worker.fate for worker in self.workers.values())

    def tasks(self, what: str, pid: int | None = None) -> Iterator[Task]:
        """The tasks noted so, by one process or by any; one noted twice comes twice."""
        for note in self.notes:
            if note.what == what and pid in {None, note.pid}:
                yield note.task

    def in_hand(self, pid: int) -> list[Task]:
        """What a process has begun and not ended: of a dead one, what it left behind."""
        held: dict[Task, None] = {}
        for note in self.notes:
            if note.pid == pid and note.what == "begins":
                held[note.task] = None
            elif note.pid == pid:
                held.pop(note.task, None)
        return list(held)

    def taken_over(self, pid: int) -> dict[Task, Note]:
        """What others ended of what a dead process left behind: the first time of each."""
        left, ended = self.in_hand(pid), dict[Task, Note]()
        for note in self.notes:
            if note.what == "ends" and note.pid != pid and note.task in left:
                ended.setdefault(note.task, note)
        return ended
