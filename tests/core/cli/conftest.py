"""Running the command: in this process, or as users do."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("click", reason="the command line needs dispytch[cli]")
pytest.importorskip("rich", reason="the command line needs dispytch[cli]")

from click.testing import CliRunner, Result

from dispytch.cli.app import app
from dispytch.memory import MemoryBroker

SERVICES = Path(__file__).parent / "services"


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `dispytch ARGS` in this process; `stdin` is its standard input."""
    separate = (
        {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    )
    runner = CliRunner(**separate)  # click 8.1 mixes the two streams unless told not to

    def call(*args: str, stdin: str | bytes | None = None) -> Result:
        return runner.invoke(app, args, input=stdin, prog_name="dispytch", catch_exceptions=False)

    return call


@pytest.fixture
def broker() -> Iterator[tuple[str, MemoryBroker]]:
    """A memory broker of this test alone, with its URL."""
    name = uuid4().hex
    yield f"memory://{name}", MemoryBroker.named(name)
    MemoryBroker._named.pop(name, None)


@pytest.fixture
def python() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `python ARGS` in a process of its own, bounded to 60 s."""

    def call(*args: str, **env: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *args],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "NO_COLOR": "1", **env},
        )

    return call


class Service:
    """`dispytch` in processes of its own, beside a broker in a directory.

    Attributes:
        spool: the broker's messages.
        notes: what the service's handlers noted.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.spool, self.notes = root, root / "spool", root / "notes"
        for directory in (self.spool, self.notes):
            directory.mkdir()
        info = root / "spool-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spool\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[dispytch.backends]\nspool = spool\n[dispytch.schemes]\nspool = spool\n"
        )
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *args: str, **env: str) -> "subprocess.Popen[str]":
        """`dispytch ARGS`, its standard error in `log`."""
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dispytch", *args],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join((str(SERVICES), str(self.root))),
                    "SPOOL": str(self.spool), "NOTES": str(self.notes), "NO_COLOR": "1", **env,
                },
            )  # fmt: skip
        self.started.append(process)
        return process

    @property
    def log(self) -> Path:
        """What all of them wrote to standard error."""
        return self.root / "stderr"

    def order(self, name: str, do: str = "nothing") -> None:
        """Emit an order that tells its handler what to do."""
        body = json.dumps({"do": do, "name": name})
        text = f'{{"id":"{name}","type":"order","body":{body},"timestamp":1}}'
        self.put("orders", text.encode())

    def put(self, topic: str, payload: bytes, key: str | None = None, **headers: str) -> None:
        """Put any bytes on the broker."""
        data = {"topic": topic, "payload": b64encode(payload).decode(), "key": key}
        draft = self.spool / f"{time.monotonic_ns():020}"
        draft.write_text(json.dumps(data | {"headers": headers}))
        draft.rename(draft.with_suffix(".new"))

    @property
    def topics(self) -> list[str]:
        """The topics of what waits on the broker."""
        return [json.loads(path.read_text())["topic"] for path in sorted(self.spool.glob("*.new"))]

    def told(self, text: str, times: int = 1) -> str:
        """Wait until it has been told on standard error; all that was told."""
        return self.until(lambda: self.log.read_text().count(text) >= times) and (
            self.log.read_text()
        )

    def noted(self, what: str) -> int:
        """Wait for a handler's note; the process that wrote it."""
        path = self.notes / what
        self.until(lambda: path.exists() and path.read_text())
        return int(path.read_text())

    def until(self, happened: Callable[[], Any]) -> str:
        """Wait until it has happened, 30 s at most."""
        deadline = time.monotonic() + 30
        while not happened():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return "yes"

    def end(self, process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit status."""
        process.send_signal(number)
        return process.wait(timeout=30)

    def close(self) -> None:
        """End all that still runs."""
        for process in self.started:
            process.kill()  # its workers notice, and end
            process.communicate(timeout=30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A directory that is a broker, and the command beside it."""
    made = Service(tmp_path)
    yield made
    made.close()
