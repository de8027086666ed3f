"""What must be true of a run with faults: whatever is not, fails and is named."""

import random
import re
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispytch.errors import EmitRejected, EmitUnknown
from dispytch.producer import Receipt
from dispytch.testing.conformance.load import Emit
from dispytch.testing.conformance.report import Fault, Handled, Report, check_order, duplicates

BEGAN, ENDED = 10.0, 20.0
"""Seconds between which the fault of these reports lasts."""

TIMES = (5.0, 15.0, 25.0)
"""One second each before, during and after the fault."""


def _fault(under_way: int = 0) -> Fault:
    return Fault("cut", BEGAN, ENDED, under_way=under_way, down=BEGAN + 1.0, up=ENDED + 1.0)


def _emit(number: int, at: float, outcome: BaseException | None = None) -> Emit:
    event_id = f"event {number}"
    receipt = Receipt(event_id, "t", "twin")
    return Emit(event_id, at, at + 0.1, receipt if outcome is None else outcome)


def _handled(number: int, at: float, lane: int = 0) -> Handled:
    return Handled(at + 0.2, 1, lane, number, f"event {number}")


def _report(
    *faults: Fault,
    emits: Iterable[Emit] | None = None,
    done: Iterable[Handled] | None = None,
) -> Report:
    """What a report has of these; without, of an event before, during and after the fault."""
    report = Report(faults=list(faults or (_fault(),)))
    for emit in [_emit(*each) for each in enumerate(TIMES)] if emits is None else emits:
        report.emitted(emit)
    for each in [_handled(*each) for each in enumerate(TIMES)] if done is None else done:
        report.finished(each)
    return report


def _check(report: Report, *, repeatable: int = 0, ordered: bool = True) -> None:
    report.check(repeatable=repeatable, ordered=ordered)


# What must be true of a report


def test_clean_report_passes() -> None:
    """A report passes when all that was confirmed was handled once, in order, around the fault."""
    _check(_report())


def test_event_handled_before_its_emit_ended_is_not_lost() -> None:
    """A handler may have finished with an event before its receipt is there."""
    report = _report()
    report.finished(_handled(3, 25.1))
    report.emitted(_emit(3, 25.1))
    _check(report)


def test_lost_events_are_counted() -> None:
    """A confirmed event that nobody handled is lost, and the failure says how many are."""
    report = _report()
    for number in (3, 4):
        report.emitted(_emit(number, 26.0))
    with pytest.raises(AssertionError, match=r"^2 confirmed events are lost: 5 emitted"):
        _check(report)


@pytest.mark.parametrize("error", [EmitRejected("no"), EmitUnknown("who knows")])
def test_unconfirmed_event_may_be_lost(error: Exception) -> None:
    """What was rejected, or has an outcome that nobody knows, need not have been handled."""
    report = _report()
    report.emitted(_emit(3, 15.5, error))
    _check(report)


@pytest.mark.parametrize("error", [ValueError("odd"), TimeoutError("late"), KeyboardInterrupt()])
def test_outcome_of_another_kind_fails(error: BaseException) -> None:
    """An emit ends with a receipt, rejected or unknown; anything else is the backend's mistake."""
    report = _report()
    report.emitted(_emit(3, 15.5, error))
    with pytest.raises(
        AssertionError, match=f"^an emit raised {re.escape(repr(error))}: 4 emitted"
    ):
        _check(report)


@pytest.mark.parametrize(("under_way", "repeatable"), [(0, 0), (1, 0), (0, 2), (3, 2)])
def test_as_many_as_may_come_again_pass_and_one_more_fails(under_way: int, repeatable: int) -> None:
    """For each fault what was under way may come again and what the backend allows, no more."""
    report, most = _report(_fault(under_way)), under_way + repeatable
    for _ in range(most):
        report.finished(_handled(2, 26.0))
    _check(report, repeatable=repeatable)
    report.finished(_handled(2, 27.0))
    told = f"^handled again: {most + 1} times, at most {most} may be:"
    with pytest.raises(AssertionError, match=told):
        _check(report, repeatable=repeatable)


def test_each_fault_lets_events_come_again() -> None:
    """What may come again for one fault, may for another as well."""
    report = _report(_fault(2), _fault(1))
    for _ in range(2 + 1 + 2 * 1):
        report.finished(_handled(0, 26.0))
    _check(report, repeatable=1)
    report.finished(_handled(0, 27.0))
    with pytest.raises(AssertionError, match=r"^handled again: 6 times, at most 5 may be:"):
        _check(report, repeatable=1)


def test_order_matters_where_it_is_promised() -> None:
    """Events of one key that were handled out of order fail a backend that orders by key."""
    report = _report(done=[_handled(1, 5.0), _handled(0, 15.0), _handled(2, 25.0)])
    with pytest.raises(AssertionError, match=r"^1 of 3 events out of order: 0 after 1 of key 0\b"):
        _check(report)
    _check(report, ordered=False)


def test_order_is_kept_by_key() -> None:
    """Events of different keys are handled in any order."""
    _check(_report(done=[_handled(1, 5.0, lane=1), _handled(0, 15.0), _handled(2, 25.0, lane=1)]))


def test_unconfirmed_event_may_be_out_of_order() -> None:
    """An event whose outcome nobody knows may arrive late: only confirmed ones count for order."""
    emits = [_emit(0, 5.0, EmitUnknown("cut")), *(_emit(n + 1, at) for n, at in enumerate(TIMES))]
    done = [*(_handled(n + 1, at) for n, at in enumerate(TIMES)), _handled(0, 26.0)]
    _check(_report(emits=emits, done=done))


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("what", ["emit", "event handled"])
def test_fault_without_events_around_it_fails(what: str, missing: int) -> None:
    """A fault that met no flow of events proves nothing: the phase without any is named."""
    when = ("before", "during", "after")[missing]
    there = [(number, at) for number, at in enumerate(TIMES) if number != missing]
    report = _report(
        _fault(),
        emits=[_emit(*each) for each in (there if what == "emit" else enumerate(TIMES))],
        done=[_handled(*each) for each in (enumerate(TIMES) if what == "emit" else there)],
    )
    with pytest.raises(AssertionError, match=f"^no {what} {when} the fault 'cut':"):
        _check(report)


def test_each_fault_needs_events_of_its_own() -> None:
    """Events around one fault don't stand for another."""
    late = Fault("frozen", 30.0, 40.0)
    with pytest.raises(AssertionError, match=r"^no emit during the fault 'frozen':"):
        _check(_report(_fault(), late))


def test_fault_that_has_not_ended_has_nothing_after_it() -> None:
    """Of a fault that was not repaired nothing is shown."""
    lasting = Fault("cut", BEGAN)
    assert lasting.lasts
    with pytest.raises(AssertionError, match=r"^no emit after the fault 'cut':"):
        _check(_report(lasting))


# What it tells


def test_summary_tells_what_happened() -> None:
    """The numbers of a run are in one line, which every failure has."""
    report = _report(_fault(under_way=7))
    report.emitted(_emit(3, 15.5, EmitUnknown("cut")))
    report.finished(_handled(2, 26.0))
    report.problems.add("somebody stumbled")
    assert report.summary() == (
        "4 emitted (3 Receipt, 1 EmitUnknown); 3 handled, 1 times again; "
        "0 confirmed and not handled; cut for 10.0 s with up to 7 under way (before, during, "
        "after: 1/2/1 emits, 1/1/2 handled; health() told 1.0 s after it began and was good "
        "again 1.0 s after its end); somebody stumbled"
    )


def test_since_a_moment_only_what_was_emitted_later_counts() -> None:
    """An emit that had begun before, or was not confirmed, is not one confirmed since."""
    report = _report()
    report.emitted(_emit(3, 26.0, EmitRejected("no")))
    assert [report.confirmed_since(at) for at in (0.0, 5.05, 15.0, 24.9, 26.0)] == [3, 2, 1, 1, 0]


# Faults


@pytest.mark.parametrize(
    ("began", "ended", "expected"),
    [
        pytest.param(1.0, 2.0, (1, 0, 0), id="before"),
        pytest.param(9.0, 10.0, (0, 1, 0), id="ends when it begins"),
        pytest.param(9.0, 12.0, (0, 1, 0), id="ends in it"),
        pytest.param(12.0, 13.0, (0, 1, 0), id="in it"),
        pytest.param(12.0, 22.0, (0, 1, 0), id="begins in it"),
        pytest.param(20.0, 21.0, (0, 1, 0), id="begins when it ends"),
        pytest.param(21.0, 22.0, (0, 0, 1), id="after"),
    ],
)
def test_phases_are_told_apart(began: float, ended: float, expected: tuple[int, int, int]) -> None:
    """What began or ended in a fault was during it; the rest came before it or after it."""
    assert _fault().phases([(began, ended)]) == expected


def _seen(monkeypatch: pytest.MonkeyPatch, *healthy: bool, watched: bool = True) -> Fault:
    """A fault at whose health somebody looked every other second, from its begin on."""
    fault = Fault("cut", BEGAN, BEGAN + 5.0, watched=watched)
    for number, each in enumerate(healthy):
        monkeypatch.setattr("time.monotonic", lambda now=BEGAN + 2.0 * number: now)
        fault.see(healthy=each)
    monkeypatch.undo()
    return fault


@pytest.mark.parametrize(
    ("healthy", "down", "up", "told"),
    [
        ((True, True), None, None, "; health() told nothing"),
        ((True, False, False), 12.0, None, "told 2.0 s after it began and was not good again"),
        ((False, True), 10.0, 12.0, "told 0.0 s after it began and was good again 0.0 s after"),
        ((True, False, True, True, True), 12.0, 14.0, "was good again 0.0 s after its end"),
        ((False, True, False), 10.0, None, "told 0.0 s after it began and was not good again"),
        ((False, True, False, False, True), 10.0, 18.0, "was good again 3.0 s after its end"),
    ],
)
def test_health_is_seen(
    monkeypatch: pytest.MonkeyPatch,
    healthy: Sequence[bool],
    down: float | None,
    up: float | None,
    told: str,
) -> None:
    """A fault keeps when health first told of it, and since when it is good again for good."""
    fault = _seen(monkeypatch, *healthy)
    assert (fault.down, fault.up) == (down, up)
    assert told in fault.told()


def test_health_that_nobody_looks_at_is_not_told() -> None:
    """Where nobody looks at health, nothing is said of it."""
    assert Fault("consumer killed", BEGAN, ENDED, watched=False).told() == ""


# Order and repetitions

LANES = st.lists(st.integers(0, 3), max_size=30)
"""The key of each event, by its number."""


def _run(lanes: Sequence[int]) -> list[Handled]:
    return [_handled(number, float(number), lane) for number, lane in enumerate(lanes)]


def _is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


@given(LANES, st.randoms(use_true_random=False))
def test_order_by_key_passes_however_keys_mingle(lanes: list[int], chance: random.Random) -> None:
    """Only the order within a key counts, not how events of several keys mingle."""
    queues = [[each for each in _run(lanes) if each.lane == lane] for lane in set(lanes)]
    mingled = []
    while queues := [queue for queue in queues if queue]:
        mingled.append(chance.choice(queues).pop(0))
    check_order(mingled)


@given(LANES, st.data())
def test_what_comes_again_is_not_out_of_order(lanes: list[int], data: st.DataObject) -> None:
    """An event counts where it was handled first, wherever it comes again."""
    events = _run(lanes)
    done = [*events]
    for event in data.draw(st.lists(st.sampled_from(events), max_size=5)) if events else ():
        done.insert(data.draw(st.integers(done.index(event) + 1, len(done))), event)
    check_order(done)


@given(st.permutations(range(12)), st.integers(1, 4))
def test_order_is_refused_exactly_when_a_key_goes_back(numbers: list[int], keys: int) -> None:
    """The check fails if an event came after a later one of its key, and only then."""
    done = [_handled(number, float(at), number % keys) for at, number in enumerate(numbers)]
    goes_back = any(
        earlier.lane == later.lane and earlier.number > later.number
        for place, later in enumerate(done)
        for earlier in done[:place]
    )
    assert _is_refused(lambda: check_order(done)) == goes_back


def test_each_event_after_a_later_one_is_told() -> None:
    """An event is out of order if any of its key came too early, not only the one just before."""
    done = [_handled(number, float(at)) for at, number in enumerate((2, 0, 1))]
    told = r"^2 of 3 events out of order: 0 after 2 of key 0, 1 after 2 of key 0\b"
    with pytest.raises(AssertionError, match=told):
        check_order(done)


def test_only_the_first_wrong_ones_are_listed() -> None:
    """However much is out of order, the failure is short."""
    done = [_handled(number, float(9 - number)) for number in reversed(range(10))]
    with pytest.raises(
        AssertionError, match=r"^9 of 10 events out of order: 8 after 9 of key 0, 7"
    ):
        check_order(done)


@given(st.lists(st.integers(0, 5)))
def test_each_time_more_than_the_first_is_a_duplicate(numbers: list[int]) -> None:
    """Of an event that was handled several times, all but one are duplicates."""
    done = [_handled(number, float(at)) for at, number in enumerate(numbers)]
    assert duplicates(done) == sum(numbers.count(number) - 1 for number in set(numbers))
