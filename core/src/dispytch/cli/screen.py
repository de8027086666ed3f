"""What `dispytch demo` shows: counters that live on a terminal, plain lines elsewhere."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from dispytch.cli.output import print_table
from dispytch.cli.verdict import STEPS, Check, Facts, Letter, listed
from dispytch.cli.worklog import Said, Task, Worker
from dispytch.consumer import Delivery
from dispytch.envelope import Envelope, JSONDeserializer

__all__ = ["Screen"]

NEXT = """\
Write your own: docs/getting-started.md
The same code on a cluster: only the URL changes, to kafka://... (pip install "dispytch[kafka]")"""

_BAR = 40  # characters
_COLUMNS = ("worker", "begun", "finished", "fate")


class Screen:
    """Shows the facts as they become known, and what was made of them.

    Args:
        console: where to.
        facts: what to show.
        orders: how many there will be.
    """

    def __init__(self, console: Console, facts: Facts, orders: int) -> None:
        self._console, self._facts, self._orders = console, facts, orders
        self._began = monotonic()
        self._live: Live | None = None
        self._quarters, self._is_taken_over = 0, False

    @property
    def clock(self) -> float:
        """Seconds since it began."""
        return monotonic() - self._began

    def say(self, text: str, style: str = "") -> None:
        """Print text as it is, unwrapped."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def news(self, text: str, style: str = "") -> None:
        """Print what has just happened, with the time; on a terminal, one line of it."""
        line = Text(f"{self.clock:5.1f} s  {text}", style)
        if self._console.is_terminal:
            self._console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(line, soft_wrap=True)

    def logged(self, said: Said) -> None:
        """Show a line of the service's log that somebody should see."""
        styles = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
        if said.level in styles or " started: process " in said.text:
            self.news(said.text.removeprefix("dispytch.cli.orders:"), styles.get(said.level, ""))

    def killed(self, pid: int, in_hand: list[Task]) -> None:
        """Tell that a worker is being killed, in the middle of all this."""
        what = f"{len(in_hand)} events: {listed(in_hand, 1)}"
        self.news(f"kill -9 {pid}, in the middle of {what}", "bold red")

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While this lasts, `refresh` shows the counters."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=20, transient=True) as self._live:
            yield
        self._live = None

    def refresh(self) -> None:
        """Show the counters as they are now; off a terminal, a line for every quarter done."""
        self._tell_taken_over()
        if self._live is not None:
            self._live.update(Group("", self._steps(), "", self._workers()))
            return
        ended = self._facts.done
        quarters = 4 * ended.total() // (len(STEPS) * self._orders)
        if quarters > self._quarters:
            self._quarters = quarters
            self.news("done: " + ", ".join(f"{step} {ended[step]}" for step in STEPS))

    def _tell_taken_over(self) -> None:
        """Tell once when all that the killed worker had in hand is done."""
        victim, work = self._facts.victim, self._facts.work
        if victim is None or self._is_taken_over:
            return
        taken = work.taken_over(victim.pid)
        if len(taken) == len(work.in_hand(victim.pid)):
            self._is_taken_over = True
            counts = Counter(note.pid for note in taken.values())
            by = ", ".join(f"{pid} ({count})" for pid, count in counts.items())
            last = max((note.at for note in taken.values()), default=victim.died)
            after = f"{last - victim.died:.1f} s after the kill"
            self.news(f"all {len(taken)} are done by others, {after}: {by}", "green")

    # While it runs

    def _steps(self) -> Table:
        work, ended = self._facts.work, self._facts.done
        running = Counter(
            task.step for w in work.workers.values() if not w.fate for task in work.in_hand(w.pid)
        )
        table = Table.grid(padding=(0, 2))
        for step in STEPS:
            done = _BAR * ended[step] // self._orders
            bar = Text("━" * done, "green") + Text("━" * (_BAR - done), "bright_black")
            counted = f"{ended[step]} of {self._orders}"
            table.add_row(Text(step, "cyan"), bar, counted, f"{running[step]} at work")
        return table

    def _workers(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name in {"begun", "finished"} else "left")
        for worker in self._facts.work.workers.values():
            style = "red" if worker.fate else "green" if worker.replaces else ""
            table.add_row(*self._row(worker), style=style)
        return table

    def _row(self, worker: Worker) -> tuple[str, ...]:
        work, pid = self._facts.work, worker.pid
        begun, ended = (sum(1 for _ in work.tasks(what, pid)) for what in ("begins", "ends"))
        return str(pid), str(begun), str(ended), self._fate(worker)

    def _fate(self, worker: Worker) -> str:
        work = self._facts.work
        if worker.fate:
            left, taken = len(work.in_hand(worker.pid)), len(work.taken_over(worker.pid))
            return f"{worker.fate} with {left} in hand, {taken} taken over"
        place = "" if worker.replaces is None else f"took the place of {worker.replaces}, "
        if self._facts.status == 0:
            return f"{place}ended in order"
        return f"{place}{'alive' if worker.listening else 'starting'}"

    # At the end

    def outcome(self, checks: list[Check]) -> bool:
        """Print what has become of it; whether every promise was kept."""
        facts = self._facts
        self._console.print()
        print_table(_COLUMNS, [self._row(each) for each in facts.work.workers.values()])
        for letter in facts.letters:
            self._letter(letter)
        if facts.first is not None:
            self._event(facts.first)
        kept = all(check.kept for check in checks)
        self._console.print()
        for check in checks:
            mark = ("  ok  ", "green") if check.kept else ("  NO  ", "bold red")
            self._console.print(Text.assemble(mark, check.text), soft_wrap=True)
        self._console.print()
        if kept:
            self.say(
                f"A process was killed at work, and nothing was lost. It took {self.clock:.0f} s.",
                "bold green",
            )
            self.say(NEXT)
        else:
            self.say(
                "This should not have happened. The last lines of the service's log:", "bold red"
            )
            for line in facts.work.last:
                self.say(f"  {line}")
        return kept

    def _letter(self, letter: Letter) -> None:
        """Print where a dead letter is, and what it tells."""
        self._heading("dead letter", f"in {letter.topic}")
        for name in ("reason", "topic", "group", "time"):
            self.say(f"  {name}: {letter.told.get(name, '')}")

    def _event(self, delivery: Delivery) -> None:
        """Print one event as it travelled: its topic and key, and its envelope."""
        envelope: Envelope = JSONDeserializer().deserialize(delivery.payload)
        where = f"as it travelled, on topic {delivery.topic} with key {delivery.key}"
        self._heading(envelope.type, where, "bold magenta")
        text = json.dumps(json.loads(delivery.payload), indent=2, ensure_ascii=False)
        if self._console.is_terminal:
            self._console.print(Syntax(text, "json", background_color="default", word_wrap=True))
        else:
            self.say(text)

    def _heading(self, what: str, where: str, style: str = "bold red") -> None:
        self._console.print()
        self._console.print(Text.assemble((what, style), "  ", where), soft_wrap=True)
