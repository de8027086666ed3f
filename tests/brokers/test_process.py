"""No process and no file of a broker outlives its tests, whatever happens to them."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from brokers import reaper
from brokers.process import BrokerError, BrokerProcess, wait_until


class Sleeper(BrokerProcess):
    """As little of a broker as can be, with a daemon that leaves the process group."""

    kind = "sleeper"
    start_timeout = 0.5
    sound = True

    @property
    def url(self) -> str:
        return "nowhere"

    def _prepare(self) -> None:
        pass

    def _command(self) -> Sequence[str | Path]:
        return ["sh", "-c", "setsid sleep 600 & echo ready; exec sleep 600"]

    def _ask(self, timeout: float) -> bool:
        return self.sound and len(self.processes()) == 2 and "ready" in self.log_tail()


def _states(broker: BrokerProcess) -> set[str]:
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in broker.processes()]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


@pytest.mark.parametrize("end", [Sleeper.stop, Sleeper.kill, Sleeper.close])
def test_no_process_is_left_when_it_has_ended(end: object) -> None:
    with Sleeper() as broker:
        assert broker.running
        assert callable(end)
        end(broker)
        assert not broker.running
        assert broker.processes() == set()


def test_freezing_takes_the_daemons_too() -> None:
    with Sleeper() as broker:
        broker.freeze()
        wait_until(lambda: _states(broker) == {"T"}, 5, "all to be stopped")
        assert broker.running
        broker.thaw()
        wait_until(lambda: _states(broker) == {"S"}, 5, "all to go on")


def test_a_frozen_broker_can_be_stopped() -> None:
    with Sleeper() as broker:
        broker.freeze()
        broker.stop()
        assert broker.processes() == set()


def test_a_broker_that_never_gets_usable_is_ended_and_its_log_shown() -> None:
    broker = Sleeper()
    broker.sound = False
    with pytest.raises(BrokerError, match=r"(?s)sleeper to be usable.*ready"):
        broker.start()
    assert broker.processes() == set()


def test_a_closed_broker_leaves_no_files() -> None:
    with Sleeper() as broker:
        home = broker.home
        assert home.is_dir()
    assert not home.exists()


def test_nothing_is_left_when_the_tests_are_killed() -> None:
    program = """
from brokers.test_process import Sleeper
broker = Sleeper()
broker.start()
print(broker.home, broker._mark, flush=True)
input()
"""
    tests = subprocess.Popen(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with tests:
        assert tests.stdout is not None
        home, mark = tests.stdout.readline().split()
        assert len(reaper.family(mark)) == 2
        tests.send_signal(signal.SIGKILL)
    wait_until(lambda: not reaper.family(mark), 5, "the processes to end")
    wait_until(lambda: not Path(home).parent.exists(), 5, "the files to go")
