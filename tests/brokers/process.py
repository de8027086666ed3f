"""What every broker process of the tests has in common.

All methods block; an async test calls them through `asyncio.to_thread`, so that its event loop, and
with it the code under test, keeps running while the broker comes and goes.
"""

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from brokers import reaper
from brokers.errors import BrokerError, BrokerMissing
from dispytch.testing.conformance.proxy import LOCALHOST, free_port

__all__ = ["LOCALHOST", "BrokerError", "BrokerMissing", "BrokerProcess", "free_port", "wait_until"]


class BrokerProcess(ABC):
    """A real broker with ports, data and processes of its own.

    The ports and the data stay the same for the object's whole life, so that a client finds after
    `restart()` what it left.
    """

    kind: ClassVar[str]
    start_timeout: ClassVar[float] = 90.0
    stop_timeout: ClassVar[float] = 45.0

    def __init__(self) -> None:
        nursery = _nursery()
        self.home = nursery.new_home(self.kind)
        self.log = self.home / "broker.log"
        self.port = free_port()
        self._mark = f"{nursery.mark}{self.home.name}."
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where a client without any security settings connects."""

    @abstractmethod
    def _prepare(self) -> None:
        """Write what the broker needs before it starts; called before every start."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The command that runs the broker in the foreground."""

    @abstractmethod
    def _ask(self, timeout: float) -> bool:
        """Whether a client gets a real answer; an `OSError` (a `TimeoutError` is one) means no."""

    def _environment(self) -> Mapping[str, str]:
        """What the broker's processes have in their environment beside ours."""
        return {}

    @property
    def running(self) -> bool:
        """Whether the broker's main process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> set[int]:
        """The process ids of the broker and of all that it started."""
        return reaper.family(self._mark)

    def start(self) -> None:
        """Start, unless it runs already, and return when clients can work."""
        if not self.running:
            self._launch()
        try:
            wait_until(self._answers, self.start_timeout, f"{self.kind} to be usable")
        except BrokerError as error:
            self.kill()
            raise BrokerError(f"{error}; its log ends with:\n{self.log_tail()}") from None

    def usable(self, timeout: float = 5.0) -> bool:
        """Whether a client that connects now gets a real answer within the time."""
        try:
            return self._ask(timeout)
        except OSError:
            return False

    def stop(self) -> None:
        """Shut down in order, as an administrator would."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(self.stop_timeout)
        except subprocess.TimeoutExpired:
            raise BrokerError(f"{self.kind} does not stop:\n{self.log_tail()}") from None
        finally:
            self.kill()  # daemons that outlive an orderly shutdown, such as epmd

    def kill(self) -> None:
        """End all processes of the broker at once, as a power cut would."""
        reaper.kill_family(self._mark)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """Stop all processes where they are: connections stay open and nobody answers."""
        reaper.signal_family(self._mark, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        reaper.signal_family(self._mark, signal.SIGCONT)

    def restart(self) -> None:
        """Stop if it runs, and start again on the same ports with the same data."""
        self.stop()
        self.start()

    def heal(self) -> None:
        """Bring the broker back to work from whatever a test did to it."""
        self.thaw()
        self.start()

    def close(self) -> None:
        """End the broker for good and remove its files."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_tail(self, lines: int = 40) -> str:
        """The end of what the broker printed."""
        if not self.log.exists():
            return "(nothing)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def environment(self) -> dict[str, str]:
        """The full environment for the broker's processes and for its own command-line tools."""
        return os.environ | self._environment() | {reaper.MARK: self._mark}

    def _launch(self) -> None:
        reaper.kill_family(self._mark)  # leftovers of a main process that died by itself
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=self.environment(),
                start_new_session=True,  # a Ctrl-C for the tests is not one for the broker
            )

    def _answers(self) -> bool:
        if not self.running:
            raise BrokerError(f"{self.kind} ended while starting")
        return self.usable()


class _Nursery:
    """The temporary directory of this test process, and the guard that outlives it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dispytch-brokers-"))
        self.mark = f"{uuid.uuid4().hex}."
        self._numbers = itertools.count(1)
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-E", reaper.__file__, self.mark, self.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self._close)

    def new_home(self, kind: str) -> Path:
        home = self.root / f"{kind}-{next(self._numbers)}"
        home.mkdir()
        return home

    def _close(self) -> None:
        """Let the guard do its work; the end of this process alone would do it too, but later."""
        self._guard.communicate()


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until the condition holds: a broker in another process tells nothing by itself."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.05)
