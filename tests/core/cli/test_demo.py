"""The demo as far as it goes with the core alone; all of it: tests/plugins/sqlite/test_demo.py."""

import io
import json
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from dispytch import Backend, plugins
from dispytch.cli import demo
from dispytch.cli.screen import Screen
from dispytch.cli.verdict import STEPS, Facts, Letter, verdict
from dispytch.cli.worklog import Task, Worklog
from dispytch.memory import MemoryProducer


def line(pid: int, text: str, level: str = "INFO") -> str:
    return f"2026-01-01 12:00:00,000 {level:8} {pid} shop: {text}"


def note(pid: int, what: str, step: str, order: int) -> str:
    return line(pid, f"{what} {step} order={order} customer=ada")


def done(pid: int, step: str, order: int) -> list[str]:
    return [note(pid, "begins", step, order), note(pid, "ends", step, order)]


GOOD = [
    *(line(1, f"worker {number} started: process {pid}") for number, pid in ((1, 11), (2, 12))),
    *(line(pid, "sqlite: listening to orders, payments as 'shop'") for pid in (11, 12)),
    *(each for order in (1, 2) for each in done(11, "take_payment", order)),
    *(note(12, what, "send_parcel", 1) for what in ("begins", "fails", "begins")),
    line(1, "worker 2 was killed by SIGKILL; starting it again", "ERROR"),
    line(1, "worker 2 started: process 13"),
    line(13, "sqlite: listening to orders, payments as 'shop'"),
    *done(11, "send_parcel", 1),
    *done(13, "send_parcel", 2),
    *(each for order in (1, 2) for each in done(11, "tell_customer", order)),
]
"""What is logged when two orders of one customer are handled, and worker 12 is killed."""


def facts(lines: list[str], **changed: Any) -> Facts:
    work = Worklog()
    for at, each in enumerate(lines):
        work.read(each, at)
    made = Facts(
        work, {1: "ada", 2: "ada"}, "p", [Letter("orders.dlq", {"id": "p"})], killed=12, status=0
    )
    return replace(made, **changed)


def without(*left_out: str) -> list[str]:
    return [each for each in GOOD if not any(text in each for text in left_out)]


def test_demo_without_sqlite_says_what_to_install(python):
    """Without the backend it is one line that says how to get it, and status 2."""
    result = python("-m", "dispytch", "demo", DISPYTCH_PLUGINS="")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "pip install dispytch-sqlite" in result.stderr


def test_verdict_of_what_should_happen_is_that_every_promise_was_kept():
    """Nothing is found wrong where nothing is."""
    checks = verdict(facts(GOOD))
    assert [check.text for check in checks if not check.kept] == []
    assert "2 orders placed, each went through all 3 steps" in checks[0].text
    assert "worker 12 was killed in the middle of 1" in checks[1].text
    assert "1 were begun twice and 0 finished twice" in checks[2].text
    assert facts(GOOD).settled


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            facts(without("ends tell_customer order=2")),
            "of 2 orders, nobody finished tell_customer of order 2",
        ),
        (facts([], placed={}), "of 0 orders, nobody finished anything"),
        (
            facts([each for each in GOOD if " 11 shop: ends send_parcel order=1" not in each]),
            "worker 12 was killed, and nobody took over send_parcel of order 1",
        ),
        (facts(GOOD, killed=None), "no worker was killed in the middle of anything"),
        (facts(without("SIGKILL")), "no worker was killed in the middle of anything"),
        (facts(without("13 shop: sqlite")), "worker 12 was killed, and none took its place"),
        (
            facts([*GOOD, *done(13, "tell_customer", 2)]),
            "handled twice without a reason: tell_customer of order 2",
        ),
        (
            facts([*GOOD[:4], *done(11, "take_payment", 2), *GOOD[4:]]),
            "begun before the one before it was done: take_payment of order 2",
        ),
        (
            facts([*GOOD[:4], note(13, "begins", "take_payment", 2), *GOOD[4:]]),
            "begun before the one before it was done: take_payment of order 2",
        ),
        (facts(without("fails")), "no attempt failed, and one should have"),
        (facts(GOOD, letters=[]), "0 dead letters, where"),
        (facts(GOOD, poison="other"), "1 dead letters, where"),
        (facts(GOOD, letters=[Letter("orders.dlq", {"id": "p"})] * 2), "2 dead letters, where"),
        (facts(GOOD, status=1), "the service did not end in order: its status is 1"),
        (facts(GOOD, status=None), "the service did not end in order: its status is None"),
    ],
)
def test_verdict_of_what_should_not_happen_names_it(wrong, told):
    """A loss, a second time without a reason, a wrong order: each is told, with what it was."""
    assert any(told in check.text for check in verdict(wrong) if not check.kept)


def test_demo_with_a_promise_broken_has_status_1(run, monkeypatch):
    """What went wrong is told, with the last that the service logged, and the status is 1."""

    async def lose(shop: demo.Shop) -> None:
        for each in without("tell_customer order=2"):
            shop.facts.work.read(each, 0)
        shop.facts.placed |= {1: "ada", 2: "ada"}

    monkeypatch.setattr(demo.Shop, "run", lose)
    plugins.register(Backend(name="sqlite", event_config=None, producer=MemoryProducer))
    try:
        result = run("demo")
    finally:
        plugins.unregister("sqlite")
    assert result.exit_code == 1
    assert "NO  of 2 orders, nobody finished tell_customer of order 2" in result.stdout
    assert f"  {GOOD[-3]}" in result.stdout
    assert "nothing was lost" not in result.stdout


def test_demo_on_a_terminal_is_alive():
    """On a terminal bars and workers are drawn again and again; elsewhere there are plain lines."""
    drawn = {}
    for terminal in (True, False):
        written = io.StringIO()
        console = Console(file=written, force_terminal=terminal, width=100)
        screen = Screen(console, facts(GOOD, status=None), 2)
        with screen.alive():
            screen.refresh()
        drawn[terminal] = written.getvalue()
    assert "\x1b[2K" in drawn[True]  # a line is cleared, to be written again
    assert "━" * 40 in drawn[True]
    assert "was killed by SIGKILL with 1 in hand, 1 taken over" in drawn[True]
    assert "done: take_payment 2, send_parcel 2, tell_customer 2" in drawn[False]
    assert "all 1 are done by others, " in drawn[False]
    assert "\x1b" not in drawn[False]


def test_worklog_reads_what_a_service_logs(service):
    """The shop, run by `dispytch run`, logs what the demo takes for facts."""
    target = "dispytch.cli.orders:listener"
    process = service.start("run", target, "--workers", "2", SHOP_URL="spool://here")
    service.told("listening to orders", 2)
    body = {"order": 3, "customer": "ada", "cents": 1}
    for each in (body, {"order": 4}):
        event = {"id": "", "type": "order_placed", "body": each, "timestamp": 1}
        service.put("orders", json.dumps(event).encode(), "ada")
    service.told("ends tell_customer order=3")
    service.told("of orders dead-lettered: the body is no valid OrderPlaced: customer")
    victim = worklog(service).notes[0].pid
    os.kill(victim, signal.SIGKILL)
    service.told("listening to orders", 3)
    assert service.end(process) == 0
    work = worklog(service)
    assert list(work.tasks("ends")) == [Task(step, 3) for step in STEPS]
    assert list(work.tasks("fails")) == [Task("send_parcel", 3)] * 2
    assert not any(work.in_hand(pid) for pid in work.workers)
    assert work.workers[victim].fate == "was killed by SIGKILL"
    assert [each.replaces for each in work.workers.values()] == [None, None, victim]
    assert all(each.listening for each in work.workers.values())
    assert {each.pid for each in work.notes} <= set(work.workers)


def worklog(service: Any) -> Worklog:
    work = Worklog()
    for each in service.log.read_text().splitlines():
        work.read(each, 0)
    return work
