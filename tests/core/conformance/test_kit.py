"""The conformance kit is tested itself: the tests meant for a fault tell of it, and no others.

The kit runs once, in a process of its own, over a healthy backend, over some that can only do less
and say so, and over those with one fault each.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from core.conformance.broken import FAULTS, HEALTHY, Fault
from core.conformance.twin import TWIN
from dispytch import plugins
from dispytch.testing.conformance import BackendConformance

ROOT = Path(__file__).parents[3]

_GIVEN_BACK = (
    "manual_ack_is_as_declared",
    "nothing_is_settled_while_a_handler_runs",
    "ack_after_stop_is_harmless",
    "ack_settles_nothing_else",
)
_BATCH = "batch_reports_each_failure"
_BYTES = "payload_arrives_identical"

MEANT: dict[str, tuple[str, tuple[str, ...]]] = {
    # Every test that emits a hundred events and counts them.
    "loses-every-100th": (
        r"990 of 1000 came",
        (
            "batch_is_complete_and_in_order",
            "many_consumers_miss_nothing",
            "groups_are_as_declared",
            "receipt_means_it_is_there",
            "emits_during_stop_are_there_or_an_error",
            "sends_during_stop_are_there_or_an_error",
            "cancelled_receive_loses_nothing",
        ),
    ),
    "duplicates-every-100th": (
        r"10 of 1000 came twice",
        ("batch_is_complete_and_in_order", "groups_are_as_declared"),
    ),
    "confirms-before-storing": (
        r"0 of 100 came",
        ("receipt_means_it_is_there", "without_a_group_only_later_events_come"),
    ),
    "stop-loses-pending": (
        r"\d+ of 1000 came",
        ("sends_during_stop_are_there_or_an_error",),
    ),
    "changes-headers": ("Mixed-Case", ("headers_are_as_declared",)),
    "payload-as-text": ("512 == 256", (_BYTES,)),
    "payload-as-json": ("2 == 7", (_BYTES,)),
    "cuts-payload": ("65536 == 1000000", (_BYTES,)),
    "takes-oversize": ("DID NOT RAISE", ("oversize_event_is_refused", _BATCH)),
    "batches-backwards": (
        "keys out of order",
        ("batch_is_complete_and_in_order", "ordering_is_as_declared", _BATCH),
    ),
    "batches-shuffle-outcomes": (r"assert \[4, 8, 12", (_BATCH,)),
    "batches-go-on": (r"assert \[4, 5, 8, 12, 16, 20\]", (_BATCH,)),
    "batches-raise": (r"assert \[0, 1, 2, 3", (_BATCH,)),
    "second-stop-hangs": ("not done within", ("start_and_stop_can_be_repeated",)),
    "starts-once": ("the client was closed", ("start_and_stop_can_be_repeated",)),
    "shows-password": ("2 leaks, first: ShowsPassword", ("secrets_appear_nowhere",)),
    "logs-password": ("1 leaks, first: twin: connecting", ("secrets_appear_nowhere",)),
    "cause-tells-password": ("1 leaks, first: .*ConnectError", ("secrets_appear_nowhere",)),
    "plain-password": ("leaks, first: PlainPassword", ("secrets_appear_nowhere",)),
    "takes-any-config": ("ConfigMismatchError", ("config_of_another_backend_is_refused",)),
    "loose-config": ("ConfigError", ("unknown_config_field_is_refused",)),
    "changes-key": ("'schlssel ' == 'schlüssel ✓'", ("keys_are_as_declared",)),
    "reorders-key": (
        "keys out of order",
        ("batch_is_complete_and_in_order", "ordering_is_as_declared"),
    ),
    "exceeds-limit": ("2 == 1", ("receive_returns_at_most_limit",)),
    "returns-nothing": (
        "nothing was there",
        ("receive_returns_at_most_limit", "stop_while_receiving_returns_soon"),
    ),
    "cancelled-receive-loses": (r"0 of \d+ came", ("cancelled_receive_loses_nothing",)),
    "stop-acks-held": ("0 of 5 came", _GIVEN_BACK),
    "swallows-nacks": (
        "0 of 1 came",
        ("nack_brings_it_again", "delayed_redelivery_is_as_declared"),
    ),
    "swallows-acks": (
        "event 0",
        ("acknowledged_events_stay_done", "stopped_consumer_leaves_the_others_going"),
    ),
    "attempt-never-rises": (
        "attempts do not rise",
        ("nack_brings_it_again", "delayed_redelivery_is_as_declared"),
    ),
    "nack-changes-payload": ("other bytes came again", ("nack_brings_it_again",)),
    "comes-early": (r"it came 0\.5. s after nack", ("delayed_redelivery_is_as_declared",)),
    "both-members-get": (
        "100 of 100 came twice to one group",
        (
            "groups_are_as_declared",
            "ordering_is_as_declared",
            "stopped_consumer_leaves_the_others_going",
        ),
    ),
    "alone-gets-earlier": ("before|after", ("without_a_group_only_later_events_come",)),
    "patterns-overmatch": ("b'rest'", ("patterns_are_as_declared",)),
    "patterns-match-dead-letters": ("b'dead'", ("patterns_are_as_declared",)),
    "rest-is-one-segment": (r"0 of 2 came", ("patterns_are_as_declared",)),
    "stop-waits-for-receive": (
        r"stop\(\) did not return within",
        ("stop_while_receiving_returns_soon",),
    ),
    "ack-settles-earlier": ("0 of 10 came", ("ack_settles_nothing_else",)),
    "stop-keeps-held": ("0 of 5 came", _GIVEN_BACK),
    "ack-after-stop-breaks": ("AssertionError", ("ack_after_stop_is_harmless",)),
    "holds-nothing-back": (r"assert \(.*\) >= ", ("delayed_event_is_not_early",)),
    "declares-total-order": ("another got a later one", ("ordering_is_as_declared",)),
    "declares-durable": (r"Capabilities\(durable=True\)", ("durable_is_as_declared",)),
    "declares-ttl": (r"Capabilities\(ttl=True\)", ("ttl_is_as_declared",)),
    "declares-priority": (r"Capabilities\(priority=True\)", ("priority_is_as_declared",)),
    "lacks-ordering": ("out of order", ("ordering_is_as_declared",)),
    "lacks-groups": (
        "did not reach the group",
        ("groups_are_as_declared", "stopped_consumer_leaves_the_others_going"),
    ),
    # What is settled when it is received, neither comes again nor keeps the next of its key away.
    "lacks-manual-ack": (
        "0 of 5 came",
        (
            *_GIVEN_BACK,
            "nack_brings_it_again",
            "delayed_redelivery_is_as_declared",
            "ordering_is_as_declared",
        ),
    ),
    "lacks-delayed-redelivery": ("0.00 s after nack", ("delayed_redelivery_is_as_declared",)),
    "lacks-headers": ("header 'plain'", ("headers_are_as_declared",)),
    "lacks-keys": ("None == 'plain'", ("keys_are_as_declared",)),
    "lacks-patterns": ("0 of 1 came", ("patterns_are_as_declared",)),
    "lacks-replay": ("0 of 5 came", ("replay_is_as_declared",)),
    "lacks-ttl": (r"\[b'expired'", ("ttl_is_as_declared",)),
    "lacks-priority": ("5 < 4", ("priority_is_as_declared",)),
    "hides-ordering": ("not declared", ("ordering_is_as_declared",)),
    "hides-groups": ("not declared", ("groups_are_as_declared",)),
    "hides-manual-ack": ("not declared", ("manual_ack_is_as_declared",)),
    "hides-delayed-redelivery": ("not declared", ("delayed_redelivery_is_as_declared",)),
    "hides-headers": ("not declared", ("headers_are_as_declared",)),
    "hides-keys": ("not declared", ("keys_are_as_declared",)),
    "hides-patterns": ("not declared", ("patterns_are_as_declared",)),
    "hides-replay": ("not declared", ("replay_is_as_declared",)),
    "hides-ttl": ("not declared", ("ttl_is_as_declared",)),
    "hides-priority": ("not declared", ("priority_is_as_declared",)),
}
"""By the name of a fault: what the first test meant for it says, and the tests meant for it."""


@dataclass(frozen=True)
class Result:
    """What became of one test of the kit: passed, failure, error or skipped."""

    test: str
    outcome: str
    text: str


def _pytest(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "DISPYTCH_CONFORMANCE_LOAD": "short"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """By the name of a suite, what became of its tests."""
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    suites = Path(__file__).with_name("broken_suites.py")
    done = _pytest("-q", suites, f"--junitxml={report}")
    assert report.exists(), done.stdout + done.stderr
    found = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        outcome, text = "passed", ""
        for child in case:
            if child.tag in {"failure", "error", "skipped"}:
                outcome, text = child.tag, f"{child.get('message')}\n{child.text}"
        suite = case.attrib["classname"].rpartition(".")[2]
        found[suite].append(Result(case.attrib["name"], outcome, text))
    return found


def _named(fault: Fault) -> str:
    return fault.name


@pytest.mark.parametrize("fault", HEALTHY, ids=_named)
def test_healthy_backend_passes_everything(results: dict[str, list[Result]], fault: Fault) -> None:
    """A healthy backend passes all tests, also one that can do less and says so."""
    done = results[fault.suite]
    assert done
    assert [each for each in done if each.outcome != "passed"] == []


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_fault_is_told_by_the_tests_meant_for_it(
    results: dict[str, list[Result]], fault: Fault
) -> None:
    """Of a backend with one fault exactly the tests fail that are meant for it, saying what is."""
    says, meant = MEANT[fault.name]
    failed = {each.test: each for each in results[fault.suite] if each.outcome != "passed"}
    assert set(failed) == {f"test_{name}" for name in meant}
    first = failed[f"test_{meant[0]}"]
    assert re.search(says, _told(first)), first.text


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_failure_tells_promise_and_where_to_look(
    results: dict[str, list[Result]], fault: Fault
) -> None:
    """A failed test says what was promised, what happened, and where to look."""
    for failure in results[fault.suite]:
        if failure.outcome == "failure":
            for what in ("promised", "happened", "look at"):
                told = rf"(?m)^(E +)?(AssertionError: )?{what}: +\S"
                assert re.search(told, failure.text), failure.text


def test_failure_shows_the_values_that_differ(results: dict[str, list[Result]]) -> None:
    """Pytest's own account of the assertion, with the real values, is there too."""
    (failure,) = [each for each in results[_suite("lacks-keys")] if each.outcome == "failure"]
    assert re.search(r"(?m)^E +AssertionError: assert None == 'plain'$", failure.text)
    assert re.search(r"(?m)^E +\+ +where None = MemoryDelivery\(.*\)\.key$", failure.text)


def test_nothing_is_skipped_and_errors_are_expected(results: dict[str, list[Result]]) -> None:
    """No test is skipped, and only a hook that is missing is an error instead of a failure."""
    others = [
        (suite, each.test, each.outcome)
        for suite, done in results.items()
        for each in done
        if each.outcome not in {"passed", "failure"}
    ]
    assert others == [(_suite("declares-durable"), "test_durable_is_as_declared", "error")]


def test_each_fault_is_meant_for_some_test() -> None:
    """The table names every fault, and no other."""
    assert set(MEANT) == {fault.name for fault in FAULTS}
    assert all(meant for _, meant in MEANT.values())


def _told(result: Result) -> str:
    """What happened, or for an error all there is."""
    _, found, rest = result.text.rpartition("happened:")
    return rest.partition("look at:")[0] if found else result.text


def _suite(name: str) -> str:
    return next(fault.suite for fault in FAULTS if fault.name == name)


# The frame


@pytest.fixture
def twin() -> Iterator[str]:
    """The healthy backend, registered in this process."""
    plugins.register(TWIN)
    yield TWIN.name
    plugins.unregister(TWIN.name)


def _mine(*marks: pytest.MarkDecorator) -> Any:
    async def mine(self: Any, kit: Any) -> None:
        """It promises nothing."""

    for mark in marks:
        mark(mine)
    return mine


class _Mixin:
    test_keys_are_as_declared = _mine()


@pytest.mark.parametrize(
    ("bases", "override"),
    [
        pytest.param((), _mine(), id="method"),
        pytest.param((), None, id="None"),
        pytest.param((), lambda self: None, id="lambda"),
        pytest.param((), _mine(pytest.mark.xfail), id="xfail without a reason"),
        pytest.param((), _mine(pytest.mark.skip(reason="any")), id="skip"),
        pytest.param((_Mixin,), ..., id="mixin"),
    ],
)
def test_silent_override_is_refused(twin: str, bases: tuple[type, ...], override: Any) -> None:
    """A class that overrides a test silently can't be defined; the error names test and remedy."""
    attributes = {} if override is ... else {"test_keys_are_as_declared": override}
    with pytest.raises(TypeError, match=r"TestMine.*test_keys_are_as_declared.*xfail\(reason="):
        type("TestMine", (*bases, BackendConformance), {"backend": twin, **attributes})


def test_override_with_a_reason_is_taken(twin: str) -> None:
    """A test that is expected to fail, with the reason, may stand in the place of the kit's."""

    class TestMine(BackendConformance):
        backend = twin
        test_keys_are_as_declared = _mine(pytest.mark.xfail(reason="no keys yet"))

    (mark,) = TestMine.test_keys_are_as_declared.pytestmark
    assert mark.kwargs == {"reason": "no keys yet"}


def test_expecting_a_whole_class_to_fail_is_refused(twin: str) -> None:
    """A class can't be marked as failing: only its tests can, one by one."""
    with pytest.raises(TypeError, match="one by one"):
        type(
            "TestMine",
            (BackendConformance,),
            {"backend": twin, "pytestmark": [pytest.mark.xfail(reason="all")]},
        )


def test_what_does_not_apply_is_not_collected(twin: str) -> None:
    """A test that needs what is not there is no test of the class, which says what is missing."""

    class TestMine(BackendConformance):
        backend = twin
        lives_in = "process"

    missing = TestMine.not_applicable
    assert missing["test_oversize_event_is_refused"] == ("oversize",)
    assert missing["test_stop_with_a_frozen_broker_returns_soon"] == ("broker",)
    assert "other processes" in missing["test_memory_stays_flat_with_a_backlog"]
    assert all(getattr(TestMine, name) is None for name in missing)
    assert callable(TestMine.test_keys_are_as_declared)
    assert "test_keys_are_as_declared" not in missing


def test_inheriting_a_suite_keeps_what_applies(twin: str) -> None:
    """A suite that derives from another one decides for itself which tests apply."""

    class TestMine(BackendConformance):
        backend = twin
        lives_in = "process"

    class TestMore(TestMine):
        oversize = 1000

    assert "test_oversize_event_is_refused" in TestMine.not_applicable
    assert "test_oversize_event_is_refused" not in TestMore.not_applicable
    assert callable(TestMore.test_oversize_event_is_refused)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory with tests and settings of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    return tmp_path


def _write(path: Path, source: str) -> None:
    path.write_text(dedent(source))


def test_backend_that_is_not_installed_fails_clearly(elsewhere: Path) -> None:
    """Each test of a backend that is not there fails, with what is there and what to do."""
    _write(
        elsewhere / "test_mine.py",
        """
        import pytest
        from dispytch.testing.conformance import BackendConformance

        class TestMine(BackendConformance):
            backend = "memmory"

            @pytest.fixture
            def url(self):
                return "memmory://any"
        """,
    )
    done = _pytest("-q", "-k", "keys or receipt", ".", cwd=elsewhere)
    assert done.returncode == 1, done.stdout
    assert "no backend 'memmory'" in done.stdout
    assert "did you mean 'memory'?" in done.stdout


@pytest.mark.parametrize(
    ("module", "mark"),
    [
        ("", '@pytest.mark.xfail(reason="all")'),
        ('pytestmark = pytest.mark.xfail(reason="all")', ""),
    ],
    ids=["decorator", "module"],
)
def test_expecting_all_to_fail_from_outside_is_refused(
    elsewhere: Path, module: str, mark: str
) -> None:
    """An xfail on a class from outside, or on its module, is refused when it is collected."""
    source = f"""
        import pytest
        from dispytch.testing.conformance import BackendConformance

        {module}

        {mark}
        class TestMine(BackendConformance):
            backend = "memory"
            lives_in = "process"

            @pytest.fixture
            def url(self):
                return "memory://any"
        """
    _write(elsewhere / "test_mine.py", source)
    done = _pytest("-q", "-k", "keys", ".", cwd=elsewhere)
    assert done.returncode != 0, done.stdout
    assert "one by one" in done.stdout


@pytest.mark.parametrize("module", ["dispytch", "dispytch.testing"])
def test_importing_does_not_import_pytest(module: str) -> None:
    """Users who don't run the kit need no pytest."""
    code = f"import sys, {module}; print([name for name in sys.modules if 'pytest' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kit_is_no_pytest_plugin(elsewhere: Path) -> None:
    """Where the kit is installed and not asked for, nothing of it is in a test run."""
    points = importlib.metadata.entry_points(group="pytest11")
    assert [point for point in points if point.value.startswith("dispytch")] == []
    _write(
        elsewhere / "test_other.py",
        """
        import sys

        def test_other(request):
            loaded = [name for name, _ in request.config.pluginmanager.list_name_plugin()]
            assert [name for name in (*loaded, *sys.modules) if "dispytch" in name] == []
        """,
    )
    done = _pytest("-q", ".", cwd=elsewhere)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
