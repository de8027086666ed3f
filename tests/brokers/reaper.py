"""Finds and ends every process of a broker, also after the tests themselves were killed.

A broker is more than one process, and Erlang puts its helpers into sessions of their own and turns
`epmd` into a daemon, so neither a process group nor the tree of parents finds them all. What all of
them keep is the environment they were started with: a mark in it tells whose they are.

Run as a script it waits for its standard input to close, which happens when the test process is
gone, however it went, and then ends all that still bear the mark. It is its own small process
because `PR_SET_PDEATHSIG` would fire when the *thread* that started the broker ends, and async
tests start brokers from short-lived threads. Standard library only: it starts with `-S`.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "DISPYTCH_TEST_BROKER"
"""The environment variable that all processes of a broker carry."""


def family(mark: str) -> set[int]:
    """The living processes whose mark starts with `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # it just ended, or belongs to somebody else
                continue
            if any(setting.startswith(wanted) for setting in environment.split(b"\0")):
                found.add(int(entry.name))
    return found - {os.getpid()}


def signal_family(mark: str, number: signal.Signals) -> None:
    """Signal every process with the mark, also those that are born meanwhile."""
    done: set[int] = set()
    while fresh := family(mark) - done:
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):  # gone on its own
                os.kill(pid, number)
        done |= fresh


def kill_family(mark: str, *, patience: float = 10.0) -> None:
    """Kill every process with the mark and wait until none is left."""
    deadline = time.monotonic() + patience
    while family(mark):
        signal_family(mark, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {family(mark)} outlive SIGKILL")
        time.sleep(0.005)


def main(mark: str, directory: str) -> None:
    """Wait for the tests to end, then leave neither processes nor files behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_family(mark)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
