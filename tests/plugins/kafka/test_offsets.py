"""The tracker of what is done without a gap, whatever the order."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dispytch_kafka.offsets import Offsets


@dataclass(eq=False)
class Record:
    offset: int
    settled: bool = False


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[tuple[bool, int]]]:
    """Offsets with gaps, and a shuffle of receiving the next one and settling a received one."""
    gaps = draw(st.lists(st.integers(1, 5), min_size=1, max_size=40))
    offsets = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    steps = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=120))
    return offsets, steps


@given(histories())
def test_what_is_done_is_all_before_the_oldest_unfinished(
    history: tuple[list[int], list[tuple[bool, int]]],
) -> None:
    """At every step as a naive model says, never beyond a record that is not done, never lower."""
    offsets, steps = history
    tracker: Offsets[Record] = Offsets()
    received: list[Record] = []
    coming = iter(offsets)
    before = -1
    for receives, choice in steps:
        if receives or not received:
            offset = next(coming, None)
            if offset is not None:
                received.append(Record(offset))
                tracker.received(offset, received[-1])
        else:
            chosen = received[choice % len(received)]
            assert tracker.settle(chosen.offset) is not chosen.settled
            chosen.settled = True
        if received:
            unfinished = [record for record in received if not record.settled]
            expected = unfinished[0].offset if unfinished else received[-1].offset + 1
            assert tracker.done_to == expected
            assert expected >= before
            before = expected
            assert list(tracker.unfinished()) == unfinished
            assert tracker.next == received[-1].offset + 1
            assert tracker.ahead == tracker.next - expected


def test_nothing_is_known_before_the_first_record() -> None:
    """Where a partition begins is the broker's to say."""
    tracker: Offsets[Record] = Offsets()
    assert tracker.done_to is None
    assert tracker.next is None
    assert not list(tracker.unfinished())


def test_what_is_done_behind_a_slow_record_costs_nothing() -> None:
    """A slow first record with very many behind it takes no time, and they take no memory."""
    tracker: Offsets[Record] = Offsets()
    for offset in range(200_000):
        tracker.received(offset, Record(offset))
    for offset in reversed(range(1, 200_000)):
        tracker.settle(offset)
    assert tracker.done_to == 0
    assert len(list(tracker.unfinished())) == 1
    tracker.settle(0)
    assert tracker.done_to == 200_000
