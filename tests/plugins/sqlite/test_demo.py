"""`dispytch demo`, as users run it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the command line needs dispytch[cli]")
pytest.importorskip("rich", reason="the command line needs dispytch[cli]")


def start(directory: Path) -> "subprocess.Popen[str]":
    """`dispytch demo`, with this directory for temporary files."""
    return subprocess.Popen(
        [sys.executable, "-m", "dispytch", "demo"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(directory), "NO_COLOR": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a demo shows that runs to its end, as it should, and leaves nothing."""
    directory = tmp_path_factory.mktemp("demo")
    process = start(directory)
    shown, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), shown
    assert_nothing_left(shown, directory)
    return shown


def workers(shown: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"worker \d started: process (\d+)", shown)]


def assert_nothing_left(shown: str, directory: Path) -> None:
    assert list(directory.iterdir()) == []
    for pid in workers(shown):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_demo_kills_a_worker_at_work_and_loses_nothing(shown: str) -> None:
    """A worker dies with work in hand, others finish it, and one takes its place."""
    (victim,) = re.findall(
        r"kill -9 (\d+), in the middle of \d+ events: \w+ of order \d+ and ", shown
    )
    dead = re.search(
        rf"^{victim} +\d+ +\d+ +was killed by SIGKILL with (\d+) in hand, (\d+) taken over$",
        shown,
        re.MULTILINE,
    )
    assert dead is not None
    assert dead[1] == dead[2] != "0"
    assert re.search(rf"took the place of {victim}, ended in order$", shown, re.MULTILINE)
    assert len(workers(shown)) == 4
    assert len(re.findall(r"^  ok  ", shown, re.MULTILINE)) == 7
    assert "A process was killed at work, and nothing was lost." in shown
    assert "\x1b" not in shown


def test_demo_shows_the_dead_letter_and_an_event_as_it_travelled(shown: str) -> None:
    """What nobody could read is shown with its reason, and one event with its whole envelope."""
    assert "dead letter  in orders.dlq" in shown
    assert "  reason: the body is no valid OrderPlaced: customer: Field required" in shown
    (found,) = re.findall(r"^\{$.*?^\}$", shown, re.DOTALL | re.MULTILINE)
    envelope = json.loads(found)
    assert list(envelope) == ["id", "type", "body", "timestamp"]
    assert list(envelope["body"]) == ["order", "customer", "cents"]
    assert envelope["body"]["order"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_ended_by_a_signal_leaves_nothing(tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM end it early, its service too; no process or file is left."""
    process, shown = start(tmp_path), ""
    assert process.stdout is not None
    for line in process.stdout:
        shown += line
        if "kill -9" in line:
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert len(workers(shown)) == 3
    assert_nothing_left(shown + rest, tmp_path)
