import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from dispytch.cli.supervisor import KILLED, Supervisor, delay_after

SERVICE = "service:listener"
WORKER = re.compile(r"worker (\d+) started: process (\d+)")


def workers(log: str) -> dict[int, list[int]]:
    """The processes each worker had."""
    found: dict[int, list[int]] = {}
    for number, process in WORKER.findall(log):
        found.setdefault(int(number), []).append(int(process))
    return found


def test_run_sigterm_lets_a_handler_finish(service):
    """SIGTERM takes in nothing more; the handler under way finishes, and the status is 0."""
    process = service.start("run", SERVICE)
    service.order("slow", "wait")
    service.noted("slow.began")
    process.send_signal(signal.SIGTERM)
    (service.notes / "slow.go").touch()
    assert process.wait(timeout=30) == 0
    service.noted("slow.done")
    assert service.topics == []  # acknowledged
    assert "listening to orders as 'service'" in service.log.read_text()  # logging is set up


def test_run_ctrl_c_ends_in_order(service):
    """Ctrl-C is no failure."""
    process = service.start("run", SERVICE)
    service.told("listening to orders")
    assert service.end(process, signal.SIGINT) == 0
    assert "Traceback" not in service.log.read_text()


def test_run_drain_timeout_overrides_the_listeners(service):
    """--drain-timeout is what handlers get: one that outlives it is cancelled and comes again."""
    process = service.start("run", SERVICE, "--drain-timeout", "0.1")
    service.order("slow", "wait")
    service.noted("slow.began")
    assert service.end(process) == 0
    assert "handlers still ran after 0.1 s" in service.log.read_text()
    assert service.topics == ["orders"]


def test_run_handler_on_a_thread_that_does_not_end_is_killed(service, tmp_path):
    """A sync handler that outlives the drain timeout does not keep the process alive: status 3."""
    (tmp_path / "threads.py").write_text(
        "import time\n"
        "from service import NOTES, Order, EventListener, SpoolConsumer, ROOT, note\n"
        "listener = EventListener(SpoolConsumer(ROOT), group='service', drain_timeout=0.1)\n"
        "@listener.handler(Order)\n"
        "def block():\n"
        "    note('blocked')\n"
        "    while not (NOTES / 'go').exists():\n"
        "        time.sleep(0.02)\n"
    )
    process = service.start("run", "threads:listener", "--app-dir", str(tmp_path))
    service.order("any")
    service.noted("blocked")
    assert service.end(process) == KILLED
    assert "1 handler(s) on threads did not finish: killed" in service.log.read_text()


def test_run_listener_that_ends_by_an_error_has_status_1(service):
    """What ended the listener is told, and the status is 1."""
    process = service.start("run", SERVICE)
    service.order("end", "break")
    assert process.wait(timeout=30) == 1
    assert "the listener ended: AttributeError(" in service.log.read_text()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("service", "expected MODULE:LISTENER"),
        (":listener", "expected MODULE:LISTENER"),
        ("nowhere.app:listener", "no module 'nowhere' in "),
        ("service.app:listener", "no module 'service.app' in "),
        ("service:lisener", "service has no 'lisener'; listeners there: listener"),
        ("service:router", "is no EventListener but a Router; listeners there: listener"),
        ("service:Order", "is no EventListener but the class Order"),
        ("service:note", "is no EventListener but the function note(what: str)"),
        ("service:make_nothing", "is no EventListener but a NoneType"),
        ("service:make_later", "is no EventListener but the coroutine function make_later()"),
    ],
)
def test_run_wrong_target_says_what_is_there(run, service_modules, target, reason):
    """What can't be run is told with what was found instead, and status 2."""
    result = run("run", target)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def service_modules(tmp_path, monkeypatch):
    """The modules of the service can be imported in this process, and are forgotten afterwards."""
    monkeypatch.setenv("SPOOL", str(tmp_path))
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent / "services"), *sys.path])
    yield
    for name in ("service", "spool"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import not_there\n", "No module named 'not_there'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("def listener():\n    return 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_run_module_that_fails_shows_its_traceback(run, tmp_path, monkeypatch, code, shown):
    """A module that can't be imported is the author's to mend: the traceback shows where."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "failing.py").write_text(code)
    try:
        result = run("run", "failing:listener", "--app-dir", str(tmp_path))
    finally:
        sys.modules.pop("failing", None)
    assert result.exit_code == 1
    assert shown in result.stderr
    assert "failing.py" in result.stderr
    assert "see above" in result.stderr


def test_run_function_that_returns_a_listener(service):
    """A function that takes nothing and returns a listener is as good as a listener."""
    process = service.start("run", "service:make")
    service.order("one")
    service.noted("one.done")
    assert service.end(process) == 0


def test_run_loop_uvloop_runs_handlers_on_it(service, tmp_path):
    """--loop uvloop: the listener runs on uvloop, in workers too, and ends in order."""
    (tmp_path / "loops.py").write_text(
        "import asyncio\n"
        "from service import listener, note\n"
        "async def told(ctx, call_next):\n"
        "    note(type(asyncio.get_running_loop()).__module__)\n"
        "    await call_next()\n"
        "listener.add_middleware(told)\n"
    )
    for arguments in ((), ("--workers", "2")):
        process = service.start("run", "loops:listener", "--loop", "uvloop", *arguments)
        service.order("order")
        service.noted("uvloop")
        assert service.end(process) == 0
        (service.notes / "uvloop").unlink()


def test_run_loop_that_is_not_installed_says_how_to_install_it(run, monkeypatch):
    """Nothing is imported or started: status 2, and what to install."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    result = run("run", "no_such_module:listener", "--loop", "uvloop", "--workers", "2")
    assert result.exit_code == 2
    assert "uvloop is not installed: pip install uvloop" in result.stderr


def test_run_workers_share_the_work_and_drain(service):
    """--workers are processes; SIGTERM to the parent drains all, and the status is 0."""
    process = service.start("run", SERVICE, "--workers", "2")
    service.told("listening to orders", 2)
    service.order("a", "block")  # keeps its whole process busy
    first = service.noted("a.began")
    service.order("b", "block")
    second = service.noted("b.began")
    assert len({first, second, process.pid}) == 3
    process.send_signal(signal.SIGTERM)
    service.told("stopping: 2 worker(s)")
    for name in ("a", "b"):
        (service.notes / f"{name}.go").touch()
    assert process.wait(timeout=30) == 0
    assert service.noted("a.done") == first
    assert service.noted("b.done") == second
    assert service.topics == []


def test_run_ctrl_c_reaches_workers_once(service):
    """Ctrl-C at a terminal goes to the whole process group; workers drain all the same."""
    process = service.start("run", SERVICE, "--workers", "1", "--reload")
    service.order("a", "wait")
    service.noted("a.began")
    process.send_signal(signal.SIGINT)
    service.told("stopping")
    assert os.getpgid(process.pid) != os.getpgid(int((service.notes / "a.began").read_text()))
    (service.notes / "a.go").touch()
    assert process.wait(timeout=30) == 0
    service.noted("a.done")


def test_run_worker_that_dies_is_reported_and_started_again(service):
    """A killed worker is reported with its signal, and a new one takes its place."""
    process = service.start("run", SERVICE, "--workers", "2")
    service.told("listening to orders", 2)
    service.order("poison", "die")
    dead = service.noted("poison.began")
    log = service.told("listening to orders", 3)
    (number,) = (n for n, processes in workers(log).items() if dead in processes)
    assert f"worker {number} was killed by SIGKILL; starting it again" in log
    assert len(workers(log)[number]) == 2
    service.order("after")
    assert service.noted("after.done") != dead
    assert service.end(process) == 0


def test_run_worker_that_dies_again_and_again_waits_longer(service, tmp_path):
    """A worker that dies at once is started again after a wait that grows."""
    (tmp_path / "dying.py").write_text("import os; os._exit(7)\n")
    process = service.start("run", "dying:listener", "--workers", "2", "--app-dir", str(tmp_path))
    log = service.told("worker 1 ended with status 7; starting it again in 0.5 s")
    assert log.index("starting it again\n") < log.index("again in 0.5 s")
    assert [delay_after(deaths) for deaths in (1, 2, 3, 4, 9, 999)] == [0, 0.5, 1, 2, 30, 30]
    assert service.end(process) == 1  # they did not end in order


def test_run_workers_called_wrongly_are_not_started_again(service):
    """What no restart mends ends all workers, with status 2."""
    process = service.start("run", "nowhere:listener", "--workers", "2")
    assert process.wait(timeout=30) == 2
    assert "no module 'nowhere'" in service.log.read_text()


def test_run_worker_that_ends_by_itself_is_not_started_again(service):
    """A listener that stops itself has ended in order."""
    process = service.start("run", SERVICE, "--workers", "2")
    service.told("listening to orders", 2)
    service.order("a", "end")
    service.told("ended by itself")
    service.order("b", "end")
    assert process.wait(timeout=30) == 0


def test_run_second_signal_kills_with_status_3(service):
    """A second signal does not wait for handlers: they are killed, and the status says so."""
    process = service.start("run", SERVICE, "--workers", "2")
    service.order("stuck", "wait")
    service.noted("stuck.began")
    service.told("listening to orders", 2)
    process.send_signal(signal.SIGTERM)
    service.told("stopping")
    assert service.end(process) == KILLED
    assert "did not end in time: killed" in service.log.read_text()


def test_run_workers_without_their_supervisor_drain(service):
    """Workers whose supervisor was killed end in order by themselves."""
    process = service.start("run", SERVICE, "--workers", "2")
    service.told("listening to orders", 2)
    service.order("slow", "wait")
    worker = service.noted("slow.began")
    process.kill()
    process.wait(timeout=30)
    (service.notes / "slow.go").touch()
    assert service.noted("slow.done") == worker
    both = [pid for pids in workers(service.log.read_text()).values() for pid in pids]
    service.until(lambda: not any(map(alive, both)))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_run_reload_starts_again_when_a_file_changes(service, tmp_path):
    """--reload: a changed file ends the worker in order and starts it anew, also after an error."""
    app = tmp_path / "app"
    app.mkdir()
    code = app / "mine.py"

    def write(text: str) -> None:
        code.with_suffix(".draft").write_text(text)
        code.with_suffix(".draft").rename(code)

    write("from service import listener, note\nnote('first')\n")
    process = service.start("run", "mine:listener", "--reload", "--app-dir", str(app))
    service.noted("first")
    service.told("listening to orders")
    write("from service import listener, note\nnote('second') or 1 / 0\n")
    service.noted("second")
    service.told("waiting for a change")
    write("from service import listener, note\nnote('third')\n\n")
    third = service.noted("third")
    log = service.told("listening to orders", 2)
    assert log.count("mine.py changed") == 2
    assert workers(log)[1][-1] == third
    assert service.end(process) == 0


async def test_supervisor_kills_a_worker_that_does_not_end_in_time(tmp_path):
    """A worker that goes on after its drain timeout and the grace is killed: status 3."""
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, socket, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "socket.socket(fileno=0).send(b'0.1')\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    supervisor = Supervisor([sys.executable, "-c", code], 1, grace=0.1)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        while not ready.exists():  # noqa: ASYNC110 - a file tells
            await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == KILLED


async def test_worker_that_dies_as_it_is_told_to_end_disturbs_no_other(monkeypatch, caplog):
    """A signal to a process that has just ended is no failure: the others drain as they should."""
    terminate = asyncio.subprocess.Process.terminate
    told: list[int] = []

    def terminated_too_late(process: asyncio.subprocess.Process) -> None:
        told.append(process.pid)
        if len(told) == 1:
            os.kill(process.pid, signal.SIGKILL)
            raise ProcessLookupError
        terminate(process)

    monkeypatch.setattr(asyncio.subprocess.Process, "terminate", terminated_too_late)
    caplog.set_level("INFO", "dispytch")
    supervisor = Supervisor([sys.executable, "-c", "import time; time.sleep(60)"], 2, grace=5)
    running = asyncio.create_task(supervisor.run())
    while caplog.text.count("started: process") < 2:  # noqa: ASYNC110 - the log tells no event
        await asyncio.sleep(0.01)
    supervisor._signalled()
    assert await running == 1
    assert len(told) == 2
    for pid in told:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
