"""Feeds, against a model: whatever happens to the log and to shares, nothing is passed over."""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispytch import Delivery
from dispytch.topics import TopicPattern
from dispytch_sqlite import reading
from dispytch_sqlite.delivery import Share, SQLiteDelivery
from dispytch_sqlite.reading import Feed, canonical
from dispytch_sqlite.schema import TABLES

PARTITIONS = 3
OTHERS = ["b", "a.x.y", "a.dlq"]
"""Topics that nobody has subscribed to."""
FAR = 2**60  # milliseconds: it never expires


class Settling:
    """Takes what a feed tells, and writes nothing."""

    def __init__(self) -> None:
        self.dropped: list[tuple[Share, int]] = []

    def touch(self, share: Share) -> None:
        pass

    def drop(self, share: Share, seq: int) -> None:
        self.dropped.append((share, seq))
        share.ending.add(seq)


def fail() -> None:
    raise sqlite3.OperationalError("disk I/O error")


class Broken:
    """Rows, of which the last ones can't be read."""

    def __init__(self, found: sqlite3.Cursor, rows: int) -> None:
        self.found, self.rows = found, rows

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(self.found, self.rows)
        self.close()
        fail()

    def close(self) -> None:
        self.found.close()


class Database:
    """A connection on which something may happen between two statements."""

    def __init__(self) -> None:
        self.real = sqlite3.connect(":memory:", isolation_level=None)
        self.real.executescript(TABLES)
        self.real.execute("INSERT INTO settings VALUES (?)", (PARTITIONS,))
        self.topics: dict[str, int] = {}
        self.statements = 0
        self.before: Callable[[], object] | None = None
        self.at = 0
        self.rows: int | None = None  # after so many rows reading fails

    def execute(self, sql: str, values: Any = ()) -> Any:
        self.statements += 1
        if self.before is not None and self.statements == self.at:
            happen, self.before = self.before, None
            happen()
        found = self.real.execute(sql, values)
        if self.rows is not None and "payload" in sql:
            return Broken(found, self.rows)
        return found

    def interrupt(self, at: int, happen: Callable[[], object] | None) -> None:
        self.statements, self.at, self.before = 0, at, happen

    def append(self, topic: str, partition: int, size: int = 1, expires_ms: int = FAR) -> int:
        if topic not in self.topics:
            made = self.real.execute("INSERT INTO topics (name, is_dead) VALUES (?, 0)", (topic,))
            self.topics[topic] = made.lastrowid or 0
        made = self.real.execute(
            "INSERT INTO events (topic, partition, at_ms, expires_ms, payload) "
            "VALUES (?, ?, 0, ?, ?)",
            (self.topics[topic], partition, expires_ms, b"x" * size),
        )
        return made.lastrowid or 0


class World:
    """A log, and two members of a group that share its partitions."""

    def __init__(self) -> None:
        self.db = Database()
        self.settling: Any = Settling()
        db: Any = self.db
        self.feeds = [Feed(db, TopicPattern("a.{x}"), f"wanted_{number}") for number in range(2)]
        self.wanted: dict[int, int] = {}  # by number the partition of what must come
        self.done: set[int] = set()
        self.latest: dict[Share, int] = {}
        self.written: dict[int, tuple[int, Any]] = {}
        for number in range(PARTITIONS):
            self.claim(0, number, 0, ())

    def claim(self, member: int, number: int, position: int, left: Any) -> None:
        share = Share(self.settling, "a.{p1}", number, position, cursor=number + 1, left=left)
        self.feeds[member].shares[number] = share
        self.written[number] = (position, left)
        self.latest[share] = 0

    def shares(self) -> Iterator[tuple[int, Share]]:
        for member, feed in enumerate(self.feeds):
            for share in feed.shares.values():
                if share.is_ours:
                    yield member, share

    # What happens

    def append(self, topic: str, partition: int, size: int, *, is_over: bool) -> None:
        seq = self.db.append(topic, partition, size, 1 if is_over else FAR)
        if topic not in OTHERS and not is_over:
            self.wanted[seq] = partition

    def delete(self, count: int) -> None:
        """Retention deletes the oldest."""
        rows = self.db.real.execute("SELECT seq FROM events ORDER BY seq LIMIT ?", (count,))
        for (seq,) in rows.fetchall():
            self.forget(seq)

    def delete_each(self, nth: int) -> None:
        """All groups have handled some of them, or they expired."""
        for (seq,) in self.db.real.execute("SELECT seq FROM events WHERE seq % ? = 0", (nth,)):
            self.forget(seq)

    def forget(self, seq: int) -> None:
        self.db.real.execute("DELETE FROM events WHERE seq = ?", (seq,))
        self.wanted.pop(seq, None)

    def take(self, member: int, limit: int) -> tuple[list[SQLiteDelivery], bool]:
        taken: list[Delivery] = []
        left = {share: [seq for seq, _ in share.left] for _, share in self.shares()}
        try:
            is_more = self.feeds[member].take(taken, limit)
        except sqlite3.OperationalError:
            is_more = True  # what was taken is delivered nevertheless
        assert len(taken) <= limit
        deliveries = [each for each in taken if isinstance(each, SQLiteDelivery)]
        assert len(deliveries) == len(taken)
        for delivery in deliveries:
            share, seq = delivery.share, delivery.seq
            assert share.held[seq] is delivery
            assert seq > self.latest[share], "out of order, or twice"
            self.latest[share] = seq
            if seq not in left[share]:
                assert not share.left, "before something that was left open"
            assert delivery.topic not in OTHERS
        return deliveries, is_more

    def settle(self, member: int, nth: int) -> None:
        for of, share in self.shares():
            if of == member:
                for seq in sorted(share.held)[::nth]:
                    self.done.add(seq)
                    share.let_go(share.held[seq])
                self.written[share.partition] = (share.mark.position, share.open)

    def give(self, number: int) -> None:
        """A partition goes to the other member, in peace."""
        for member, share in list(self.shares()):
            if share.partition == number:
                share.lose()
                self.claim(1 - member, number, share.position, share.open)

    def die(self, member: int) -> None:
        """The other one takes over what was written down."""
        for of, share in list(self.shares()):
            if of == member:
                share.lose()
                self.claim(1 - member, share.partition, *self.written[share.partition])

    def check(self) -> None:
        """All that a share has passed is done, held, or left to be delivered."""
        for _, share in self.shares():
            known = {*share.held, *(seq for seq, _ in share.left), *self.done}
            passed = {
                seq for seq, partition in self.wanted.items()
                if partition == share.partition and seq <= share.position
            }  # fmt: skip
            assert passed <= known, "passed over"

    def drain(self) -> None:
        """Take until there is nothing more."""
        for member in range(2):
            for _ in range(500):
                _, is_more = self.take(member, 4)
                self.settle(member, 1)
                self.check()
                if not is_more:
                    break
            else:
                raise AssertionError("no end")
        assert set(self.wanted) <= self.done, "not delivered"


Step: TypeAlias = tuple[Any, ...]

SMALL = st.integers(1, 6)
APPEND = st.tuples(
    st.just("append"), st.sampled_from(["a.x", "a.y", "a.z", *OTHERS]),
    st.integers(0, PARTITIONS - 1), st.sampled_from([1, 1, 30, 200]), st.booleans(),
)  # fmt: skip
MEANWHILE = st.one_of(APPEND, st.tuples(st.just("delete"), st.integers(1, 40)), st.just(("fail",)))
STEPS = st.lists(
    st.one_of(
        APPEND,
        APPEND,
        st.tuples(st.just("take"), st.integers(0, 1), SMALL),
        st.tuples(st.just("take"), st.integers(0, 1), SMALL, st.integers(1, 6), MEANWHILE),
        st.tuples(st.just("settle"), st.integers(0, 1), st.integers(1, 3)),
        st.tuples(st.just("give"), st.integers(0, PARTITIONS - 1)),
        st.tuples(st.just("delete"), st.integers(1, 30)),
        st.tuples(st.just("delete_each"), st.integers(1, 4)),
        st.tuples(st.just("die"), st.integers(0, 1)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@example([("append", "a.x", 0, 1, False)] * 5 + [("delete", 2), ("take", 0, 2)])
@example([("append", "a.x", 0, 1, False)] * 4 + [("take", 0, 1, 3, ("fail",))])
@given(STEPS)
def test_nothing_is_passed_over_whatever_happens(steps: list[Step]) -> None:
    """Random appends, takes, deletions and changes of owners: all comes, in order, and once.

    New topics, deletions and failures of the disk also come between two statements of a take.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SCANNED", 5)
        patch.setattr(reading, "_BYTES", 100)
        world = World()
        with contextlib.closing(world.db.real):
            for step in steps:
                act(world, step)
                world.check()
            world.drain()


def act(world: World, step: Step) -> None:
    match step:
        case ("append", topic, partition, size, is_over):
            world.append(topic, partition, size, is_over=is_over)
        case ("take", member, limit):
            world.take(member, limit)
        case ("take", member, limit, at, meanwhile):
            world.db.interrupt(at, lambda: act(world, meanwhile))
            world.take(member, limit)
            world.db.interrupt(0, None)
        case ("fail",):
            fail()
        case (name, *details):
            getattr(world, name)(*details)


# The same rules, one by one


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with contextlib.closing(made.db.real):
        yield made


def next_of(world: World, limit: int) -> list[int]:
    """The numbers of what comes next."""
    taken, is_more = world.take(0, limit)
    while is_more and not taken:
        taken, is_more = world.take(0, limit)
    return [delivery.seq for delivery in taken]


def test_left_ones_come_before_new_ones_though_some_are_deleted(world: World) -> None:
    """What an owner left open comes first, all of it, however much of it is not there any more."""
    for _ in range(8):
        world.append("a.x", 0, 1, is_over=False)
    for number, left in enumerate(([(seq, 1) for seq in range(1, 7)], [], [])):
        world.claim(0, number, 6, left)
    world.delete(3)
    assert next_of(world, 3) == [4, 5, 6]
    assert next_of(world, 3) == [7, 8]


def test_left_ones_are_delivered_though_reading_failed(world: World) -> None:
    """A disk that fails while they are read loses nothing of what was left open."""
    for _ in range(3):
        world.append("a.x", 0, 1, is_over=False)
    world.claim(0, 0, 3, [(1, 1), (2, 4), (3, 1)])
    for at in range(1, 6):
        world.db.interrupt(at, fail)
        taken, _ = world.take(0, 1)
        assert all(delivery.attempt > 1 for delivery in taken)
    world.drain()


def test_events_read_before_reading_failed_come_once(world: World) -> None:
    """A disk that fails between two rows keeps what came before from nobody, and repeats none."""
    for _ in range(5):
        world.append("a.x", 0, 1, is_over=False)
    world.db.rows = 3
    taken, _ = world.take(0, 5)
    assert [delivery.seq for delivery in taken] == [1, 2, 3]
    world.check()
    world.db.rows = None
    assert next_of(world, 5) == [4, 5]


def test_all_is_deleted_between_two_looks(world: World) -> None:
    """A log that is emptied while it is read is an empty log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SCANNED", 5)
        for _ in range(20):
            world.append("b", 0, 1, is_over=False)
        world.db.interrupt(3, lambda: world.delete(20))
        assert world.take(0, 3)[0] == []
        world.append("a.x", 0, 1, is_over=False)
        world.drain()


def test_topic_made_while_reading_is_not_passed_over(world: World) -> None:
    """An event whose topic is new comes, at whatever moment of a take it was appended."""
    for at in range(1, 7):
        world.db.interrupt(at, partial(world.append, f"a.new{at}", 0, 1, is_over=False))
        world.take(0, 10)
        world.check()
    world.drain()
    assert len(world.done) > 2


def test_partitions_that_are_behind_are_read_a_little_at_a_time(world: World) -> None:
    """However far behind a partition is, one take looks at a bounded number of events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SCANNED", 5)
        for _ in range(50):
            world.append("b", 1, 1, is_over=False)
        for share in world.feeds[0].shares.values():
            share.position = 50
        behind = world.feeds[0].shares[0]
        behind.position = 0
        for place in range(5, 51, 5):
            assert world.take(0, 3) == ([], place < 50)
            assert behind.position == place


def retry(world: World, seq: int, visible_ms: int = 0, attempt: int = 1) -> None:
    world.db.execute("INSERT INTO retries VALUES (1, ?, ?, ?, NULL)", (seq, attempt, visible_ms))


def test_retries_come_when_they_are_due(world: World) -> None:
    """What is due comes, that which waits longest first; what is not, or is under way, does not."""
    for _ in range(5):
        world.append("a.x", 0, 1, is_over=False)
    for seq, visible_ms in ((1, 30), (2, 10), (3, FAR), (4, 20)):
        retry(world, seq, visible_ms, attempt=seq)
    feed, first, second = world.feeds[0], list[Delivery](), list[Delivery]()
    feed.take_retries(first, 2)
    feed.take_retries(second, 2)
    assert [(each.attempt, retry_of(each)) for each in first] == [(3, 2), (5, 4)]
    assert [retry_of(each) for each in second] == [1]
    assert feed.next_retry() == FAR


def retry_of(delivery: Delivery) -> int:
    assert isinstance(delivery, SQLiteDelivery)
    assert delivery.is_retry
    return delivery.seq


def test_settled_retry_does_not_come_again_before_that_is_written(world: World) -> None:
    """Between the end of a retry and the commit that removes it, it is not taken for due."""
    world.append("a.x", 0, 1, is_over=False)
    retry(world, 1)
    share, taken = world.feeds[0].shares[0], list[Delivery]()
    share.ending.add(1)
    world.feeds[0].take_retries(taken, 2)
    assert taken == []
    assert world.feeds[0].next_retry() is None
    share.ending.discard(1)
    world.feeds[0].take_retries(taken, 2)
    assert len(taken) == 1


def test_retry_of_what_is_deleted_or_expired_is_dropped_once(world: World) -> None:
    """Nothing comes for an event that is not there any more, and it is told to be forgotten."""
    world.append("a.x", 0, 1, is_over=True)
    retry(world, 1)
    retry(world, 77)
    share, taken = world.feeds[0].shares[0], list[Delivery]()
    for _ in range(3):
        world.feeds[0].take_retries(taken, 5)
        assert taken == []
        assert sorted(world.settling.dropped, key=lambda each: each[1]) == [(share, 1), (share, 77)]
        assert world.feeds[0].next_retry() is None


def test_canonical_pattern_does_not_depend_on_names() -> None:
    """Patterns that match the same topics are one; a literal brace is no placeholder."""
    assert canonical("x.{a}.{b}") == canonical("x.{u}.{v}") == "x.{p1}.{p2}"
    assert canonical("x.{{a}}.{b}") == "x.{{a}}.{p1}"
    assert canonical("x.*") == "x.*"
