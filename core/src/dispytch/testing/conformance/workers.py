"""Workers: listeners in processes of their own, to be killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Self

from dispytch.testing.conformance.report import Handled

__all__ = ["Workers", "environment"]


def environment() -> dict[str, str]:
    """For another Python that finds the modules that this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Workers:
    """Processes with a listener each, of one group, that write down what they handle.

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
        self._told: defaultdict[str, list[Handled]] = defaultdict(list)
        self._read_to = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **options: float) -> subprocess.Popen[bytes]:
        """Start one more; returns when it is subscribed."""
        given = [f"{name}={value}" for name, value in (self._options | options).items()]
        # By its path, as the package around it needs pytest; -P keeps its neighbours from being
        # taken for modules of the same names.
        program = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        with self._errors.open("ab") as errors:
            process = subprocess.Popen(
                [*program, self._url, self._topic, str(self._log), *given],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
            )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"subscribed\n", f"no worker: {self.told()}"
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
        return sorted(self._lines("ended"))

    def interrupted(self, process: subprocess.Popen[bytes]) -> set[str]:
        """The ids of the events that a worker has begun and not finished."""
        mine: dict[str, int] = {}
        for change, what in ((1, "begun"), (-1, "ended")):
            for each in self._lines(what):
                if each.pid == process.pid:
                    mine[each.event_id] = mine.get(each.event_id, 0) + change
        return {event_id for event_id, running in mine.items() if running > 0}

    async def reach(self, count: int, within: float) -> list[Handled]:
        """Wait until so many different events were handled."""
        await self.until(
            lambda: len({each.event_id for each in self.handled()}) >= count,
            within,
            f"{count} events handled",
        )
        return self.handled()

    async def until(self, true: Callable[[], bool], within: float, what: str) -> None:
        """Wait for something in their log; `what` names it.

        Raises:
            AssertionError: it took longer.
        """
        deadline = time.monotonic() + within
        while not true():
            assert time.monotonic() < deadline, (
                f"waited {within:g} s in vain for {what}, with {len(self.handled())} handled\n"
                f"{self.told()}"
            )
            await asyncio.sleep(0.05)

    def told(self) -> str:
        """The end of what they wrote to stderr."""
        return self._errors.read_text()[-2000:] if self._errors.exists() else ""

    def _lines(self, what: str) -> list[Handled]:
        """What they wrote so far; only what is new is read."""
        with self._log.open() as log:
            log.seek(self._read_to)
            for line in log:
                if not line.endswith("\n"):
                    break  # it is being written
                kind, at, pid, lane, number, event_id = line.split()
                self._told[kind].append(
                    Handled(float(at), int(pid), int(lane), int(number), event_id)
                )
                self._read_to += len(line)
        return self._told[what]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
