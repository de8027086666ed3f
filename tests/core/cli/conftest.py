"""Running the command: in this process, or as users do."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("click", reason="the command line needs dispytch[cli]")
pytest.importorskip("rich", reason="the command line needs dispytch[cli]")

from click.testing import CliRunner, Result

from dispytch.cli.app import app
from dispytch.memory import MemoryBroker


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
