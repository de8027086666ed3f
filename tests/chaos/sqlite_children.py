"""Children: processes that emit to and handle from a file, and what they wrote down."""

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chaos.sqlite_child import LINE
from dispytch.testing.conformance.workers import environment

__all__ = ["Children", "Place", "Record", "check_order", "check_sound", "stored", "until"]

Place = tuple[int, int]
"""An event's lane, and its number there."""

_ANSWER = 30.0  # seconds


class Record:
    """What the children wrote down, in the order it happened.

    Attributes:
        begun, taken: by process, what it has begun to emit, and to handle.
        confirmed: what was confirmed, and as which number of the log.
        handled: what was handled, and by which process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read_to = 0
        self.begun: defaultdict[int, set[Place]] = defaultdict(set)
        self.taken: defaultdict[int, list[Place]] = defaultdict(list)
        self.confirmed: dict[Place, int] = {}
        self.handled: list[tuple[Place, int]] = []

    def read(self) -> None:
        """Take in what is new."""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            lines = file.read()
        self._read_to += len(lines)
        assert len(lines) % LINE == 0
        for line in lines.decode().splitlines():
            what, *numbers = line.split()
            pid, lane, number, seq = map(int, numbers)
            place = lane, number
            match what:
                case "begun":
                    self.begun[pid].add(place)
                case "confirmed":
                    self.confirmed[place] = seq
                case "taken":
                    self.taken[pid].append(place)
                case "handled":
                    self.handled.append((place, pid))

    def under_way(self, pid: int) -> set[Place]:
        """What a process has begun to emit and nobody has confirmed."""
        return self.begun[pid] - self.confirmed.keys()

    def places(self) -> list[Place]:
        """What was handled; what was handled twice is there twice."""
        return [place for place, _ in self.handled]

    async def until(self, true: Callable[[], bool], within: float, what: str) -> None:
        """Wait for something to be written down; `what` names it.

        Raises:
            AssertionError: it took longer.
        """

        def is_read() -> bool:
            self.read()
            return true()

        await until(is_read, within, what)


class Children:
    """Starts processes, and ends all that are left.

    Args:
        url: of the file.
        folder: where they write down what they do.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.record = Record(folder / "record")
        self._errors = folder / "errors"

    async def fork(self, what: str, **given: Any) -> int:
        """Start one, see `sqlite_child` for kinds and what they are given; its process id."""
        where = {"url": self.url, "record": str(self.record.path)}
        return await self._ask(what, where | given)

    async def kill(self, pid: int) -> None:
        """SIGKILL; returns when it is gone."""
        status = await self._ask("kill", pid)
        assert status == -9, f"{pid} had ended by itself:\n{self.told()}"

    async def frozen(self, pid: int) -> None:
        """Wait until one has frozen itself."""
        assert await self._ask("frozen", pid), f"{pid} ended:\n{self.told()}"

    def told(self) -> str:
        """What they wrote to stderr."""
        return self._errors.read_text()

    async def _ask(self, what: str, given: Any) -> int:
        stdin, stdout = self._parent.stdin, self._parent.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([what, given]).encode() + b"\n")
        async with asyncio.timeout(_ANSWER):
            answer = await stdout.readline()
        assert answer, self.told()
        return int(answer)

    async def __aenter__(self) -> Self:
        program = Path(__file__).with_name("sqlite_child.py")
        with self._errors.open("wb") as errors:
            self._parent = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(program), env=environment(), stderr=errors,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._parent.communicate(b"")  # it ends with its input


async def until(true: Callable[[], bool], within: float, what: str) -> None:
    """Wait for something; `what` names it.

    Raises:
        AssertionError: it took longer.
    """
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.002)


def check_sound(path: Path, pragma: str = "integrity_check") -> None:
    """SQLite finds nothing wrong with the file."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        found = db.execute(f"PRAGMA {pragma}").fetchall()
    assert found == [("ok",)], found


def stored(path: Path) -> list[tuple[int, Place]]:
    """The events in the file, in the log's order: their numbers there, and what they are."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT seq, payload FROM events ORDER BY seq").fetchall()
    found = []
    for seq, payload in rows:
        envelope = json.loads(payload)
        place = envelope["body"]["lane"], envelope["body"]["number"]
        assert envelope["id"] == "{}.{}".format(*place)
        found.append((seq, place))
    return found


def check_order(places: Iterable[Place], about: str) -> None:
    """In each lane the first ones of a number come in the order of the numbers."""
    latest: Counter[int] = Counter()
    for lane, number in dict.fromkeys(places):
        assert number >= latest[lane], f"{lane}.{number} after {latest[lane]}: {about}"
        latest[lane] = number
