"""Groups: who owns which cursor, and what becomes of what a member writes that is none any more."""

import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispytch_sqlite.database import transaction
from dispytch_sqlite.group import (
    Begin,
    Claim,
    Mark,
    Member,
    Pairs,
    Retry,
    State,
    Tenure,
    balance,
    commit,
    join,
    leave,
    renew,
    state_of,
)
from dispytch_sqlite.schema import TABLES

LEASE = 5.0


@contextlib.contextmanager
def tables(partitions: int) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(TABLES)
        db.execute("INSERT INTO settings VALUES (?)", (partitions,))
        yield db


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with tables(4) as opened:
        yield opened


@dataclass(eq=False)
class Worker:
    """A member, and what it believes to own."""

    member: Member
    claims: dict[int, Claim] = field(default_factory=dict[int, Claim])
    leaving: set[int] = field(default_factory=set[int])
    state: State | None = None

    @classmethod
    def of(
        cls,
        db: sqlite3.Connection,
        topics: Sequence[str] = ("orders",),
        begin: Begin = "first",
        group: str = "billing",
    ) -> "Worker":
        with transaction(db):
            worker = cls(join(db, group, topics, LEASE, begin))
        worker.live_on(db)
        return worker

    def live_on(self, db: sqlite3.Connection) -> None:
        """Time passes, in which it renews: who does not now is dead to it."""
        db.execute("UPDATE members SET since = since - lease WHERE id = ?", (self.member.id,))

    def balance(self, db: sqlite3.Connection) -> Sequence[Claim]:
        """Take a share; what is too much begins to leave."""
        with transaction(db):
            found = balance(db, self.member)
        assert found is not None, "taken for dead"
        self.state = found.state
        for claim in found.claims:
            assert claim.cursor not in self.claims
            self.claims[claim.cursor] = claim
        for topic, count in found.surplus.items():
            staying = [c.cursor for c in self.claims.values() if c.topic == topic]
            already = self.leaving.intersection(staying)
            staying = [cursor for cursor in staying if cursor not in already]
            self.leaving.update(staying[: count - len(already)])
        return found.claims

    def mark(
        self, cursor: int, position: int = 0, open_: Pairs = (), *, is_release: bool = False
    ) -> Mark:
        return Mark(cursor, self.claims[cursor].epoch, position, open_, is_release)

    def commit(self, db: sqlite3.Connection, *marks: Mark) -> set[int]:
        """Write marks; the cursors that were lost."""
        with transaction(db):
            return {cursor for cursor, _ in commit(db, self.member, marks)}

    def tenure(self, cursor: int) -> Tenure:
        return cursor, self.claims[cursor].epoch

    def release(self, db: sqlite3.Connection) -> None:
        """Give away what was to leave."""
        marks = [self.mark(cursor, is_release=True) for cursor in self.leaving]
        assert self.commit(db, *marks) == set()
        for cursor in self.leaving:
            del self.claims[cursor]
        self.leaving.clear()

    def die(self, db: sqlite3.Connection) -> None:
        db.execute(
            "UPDATE members SET until = ? WHERE id = ?", (time.monotonic() - 0.001, self.member.id)
        )


def owners(db: sqlite3.Connection) -> dict[int, tuple[str, int | None]]:
    rows = db.execute("SELECT id, topic, owner FROM cursors").fetchall()
    return {cursor: (topic, owner) for cursor, topic, owner in rows}


def cursor_of(db: sqlite3.Connection, cursor: int) -> tuple[int, list[list[int]]]:
    position, open_ = db.execute(
        "SELECT position, open FROM cursors WHERE id = ?", (cursor,)
    ).fetchone()
    return position, json.loads(open_)


def append(db: sqlite3.Connection, at_ms: int = 0) -> int:
    made = db.execute(
        "INSERT INTO events (topic, partition, at_ms, payload) VALUES (1, 0, ?, x'')", (at_ms,)
    )
    return made.lastrowid or 0


def settle(db: sqlite3.Connection, workers: Sequence[Worker], most: int = 100) -> None:
    """Do what members do: each balances when it sees that something has changed, and only then."""
    for _ in range(most):
        seeing = [each for each in workers if each.state != state_of(db, each.member.group)]
        if not seeing and not any(each.leaving for each in workers):
            return
        for each in seeing:
            each.balance(db)
        for each in workers:
            each.release(db)
    raise AssertionError("members come to no rest")


# Shares


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 40])
def test_members_have_fair_shares(count: int) -> None:
    """Any number of members, come one after the other, have all partitions, in equal shares."""
    workers: list[Worker] = []
    with tables(32) as db:
        for _ in range(count):
            workers.append(Worker.of(db))
            settle(db, workers)
    sizes = [len(worker.claims) for worker in workers]
    assert sum(sizes) == 32
    assert max(sizes) - min(sizes) <= 1


Steps: TypeAlias = list[tuple[str, tuple[str, ...] | int]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from([("a",), ("b",), ("a", "b")])),
        st.tuples(st.sampled_from(["leave", "die", "balance", "release"]), st.integers(0, 40)),
    ),
    max_size=40,
)


@settings(deadline=None)
@example(  # a free cursor of one topic is another one's by now, while their number is the same
    partitions=4,
    steps=[("join", ("b",)), ("join", ("a",)), ("balance", 1), ("join", ("b",)), ("join", ("a",))],
)
@given(partitions=st.integers(1, 12), steps=STEPS)
def test_members_come_to_fair_shares_whatever_happens(partitions: int, steps: Steps) -> None:
    """Whoever comes, goes and dies: in the end each partition has one live owner, in fair shares.

    At no moment two of the living have the same one.
    """
    with tables(partitions) as db:
        alive = work(db, steps)
        settle(db, alive)
        owned = owners(db)
    believed = {cursor: each.member.id for each in alive for cursor in each.claims}
    assert not alive or believed == {
        cursor: owner for cursor, (_, owner) in owned.items() if owner is not None
    }
    for topic in ("a", "b"):
        peers = [worker for worker in alive if topic in worker.member.topics]
        if peers:
            sizes = Counter(owner for _, (of, owner) in owned.items() if of == topic)
            shares = [sizes.pop(worker.member.id, 0) for worker in peers]
            assert not sizes, "some partitions are with nobody, or with somebody dead"
            assert max(shares) - min(shares) <= 1


def work(db: sqlite3.Connection, steps: Steps) -> list[Worker]:
    """Take steps; who is alive after them."""
    alive: list[Worker] = [Worker.of(db, ("a", "b"))]
    for step, detail in steps:
        if isinstance(detail, tuple):
            alive.append(Worker.of(db, detail))
            continue
        if not alive:
            continue
        worker = alive[detail % len(alive)]
        match step:
            case "leave":
                alive.remove(worker)
                with transaction(db):
                    leave(db, worker.member, [worker.mark(cursor) for cursor in worker.claims])
            case "die":
                alive.remove(worker)
                worker.die(db)
            case "balance":
                worker.balance(db)
            case _:
                worker.release(db)
        held = [cursor for each in alive for cursor in each.claims]
        assert len(held) == len(set(held))
    return alive


def test_groups_do_not_touch_each_other(db: sqlite3.Connection) -> None:
    """Each group has its own cursors on the same topic; one that leaves changes no other."""
    billing, audit = Worker.of(db), Worker.of(db, group="audit")
    assert len(billing.balance(db)) == len(audit.balance(db)) == 4
    (cursor, *_) = audit.claims
    audit.commit(db, audit.mark(cursor, 7))
    with transaction(db):
        leave(db, audit.member, [])
    assert all(cursor_of(db, each) == (0, []) for each in billing.claims)
    assert billing.balance(db) == []
    assert [owner for _, owner in owners(db).values()].count(billing.member.id) == 4


def test_new_topic_of_a_group_begins_anew(db: sqlite3.Connection) -> None:
    """A group that subscribes to one topic more keeps its place in the others."""
    first = Worker.of(db)
    first.balance(db)
    for cursor in first.claims:
        first.commit(db, first.mark(cursor, 9))
    second = Worker.of(db, ("orders", "users"))
    first.die(db)
    claims = second.balance(db)
    assert {(claim.topic, claim.position) for claim in claims} == {("orders", 9), ("users", 0)}


# Where a group begins


def test_group_begins_as_it_is_told(db: sqlite3.Connection) -> None:
    """A new group begins with the first event, the next one, or the first of a time."""
    for number in range(1, 11):
        append(db, at_ms=1000 * number)
    expected: dict[Begin, int] = {
        "first": 0, "latest": 10, 0: 0, 1000: 0, 1001: 1, 3500: 3, 10_000: 9, 10_001: 10,
    }  # fmt: skip
    for begin, position in expected.items():
        worker = Worker.of(db, begin=begin, group=f"begins at {begin}")
        assert {claim.position for claim in worker.balance(db)} == {position}


def test_group_that_was_there_goes_on_where_it_was(db: sqlite3.Connection) -> None:
    """`begin` is for groups that are new: others go on where they were, their open ones first."""
    append(db)
    first = Worker.of(db, begin="latest")
    first.balance(db)
    for cursor in first.claims:
        first.commit(db, first.mark(cursor, 5, [(3, 1), (4, 2)]))
    with transaction(db):
        leave(db, first.member, [])
    for begin in ("first", "latest"):
        worker = Worker.of(db, begin=begin)
        worker.balance(db)
        assert {(claim.position, json.dumps(claim.open)) for claim in worker.claims.values()} == {
            (5, "[[3, 1], [4, 2]]")
        }
        with transaction(db):
            leave(db, worker.member, [])


# Fencing


def test_stale_owner_writes_nothing(db: sqlite3.Connection) -> None:
    """What a member writes that was taken for dead changes nothing, and it is told."""
    stale = Worker.of(db)
    stale.balance(db)
    stale.die(db)
    heir = Worker.of(db)
    heir.balance(db)
    assert len(heir.claims) == 4
    cursors = list(stale.claims)
    retry = Retry(stale.tenure(cursors[0]), 2, 1, 0, None)
    db.execute("INSERT INTO retries VALUES (?, 3, 1, 0, NULL)", (cursors[0],))
    with transaction(db):
        lost = commit(
            db, stale.member, [stale.mark(c, 8, [(7, 1)]) for c in cursors], [retry],
            [(stale.tenure(cursors[0]), 3)],
        )  # fmt: skip
    assert lost == {stale.tenure(cursor) for cursor in cursors}
    assert all(cursor_of(db, cursor) == (0, []) for cursor in cursors)
    assert db.execute("SELECT seq FROM retries").fetchall() == [(3,)]
    assert heir.commit(db, *(heir.mark(cursor, 1) for cursor in cursors)) == set()


@pytest.mark.parametrize("is_release", [False, True])
def test_stale_owner_writes_nothing_before_another_has_it(
    db: sqlite3.Connection, *, is_release: bool
) -> None:
    """Between the death of an owner and the claim of the next one nobody may write."""
    stale, other = Worker.of(db), Worker.of(db, ("users",))
    stale.balance(db)
    stale.die(db)
    other.balance(db)
    cursors = list(stale.claims)
    marks = [stale.mark(cursor, 8, is_release=is_release) for cursor in cursors]
    assert stale.commit(db, *marks) == set(cursors)
    assert all(cursor_of(db, cursor) == (0, []) for cursor in cursors)


def test_owner_that_got_it_back_writes_nothing_old(db: sqlite3.Connection) -> None:
    """What a member has left from before it gave a cursor away is told from what is new."""
    worker, other = Worker.of(db), Worker.of(db)
    worker.balance(db)
    cursor = min(worker.claims)
    old = worker.mark(cursor, 3, [(2, 1)])
    worker.leaving = {cursor, max(worker.claims)}
    worker.release(db)
    assert cursor in {claim.cursor for claim in other.balance(db)}
    other.commit(db, other.mark(cursor, 9))
    with transaction(db):
        leave(db, other.member, [])
    assert {claim.epoch for claim in worker.balance(db) if claim.cursor == cursor} == {3}
    assert worker.commit(db, old) == {cursor}
    assert cursor_of(db, cursor) == (9, [])


def test_one_lost_cursor_spoils_no_other(db: sqlite3.Connection) -> None:
    """Of several marks those are written whose cursors are the member's; a release is one."""
    worker = Worker.of(db)
    worker.balance(db)
    kept, given, lost, *_ = worker.claims
    db.execute("UPDATE cursors SET epoch = epoch + 1 WHERE id = ?", (lost,))
    marks = [
        worker.mark(kept, 5), worker.mark(given, 6, is_release=True), worker.mark(lost, 7),
    ]  # fmt: skip
    assert worker.commit(db, *marks) == {lost}
    assert [cursor_of(db, each)[0] for each in (kept, given, lost)] == [5, 6, 0]
    assert owners(db)[given][1] is None


def test_retry_is_written_and_forgotten_with_its_mark(db: sqlite3.Connection) -> None:
    """What is to come again later leaves the open ones in the same commit, and ends in one."""
    worker = Worker.of(db)
    worker.balance(db)
    cursor = min(worker.claims)
    for attempt in (1, 2):
        with transaction(db):
            again = Retry(worker.tenure(cursor), 4, attempt, 10 * attempt, "[]")
            commit(db, worker.member, [worker.mark(cursor, 4)], [again])
    assert db.execute("SELECT * FROM retries").fetchall() == [(cursor, 4, 2, 20, "[]")]
    with transaction(db):
        commit(db, worker.member, [worker.mark(cursor, 4)], retried=[(worker.tenure(cursor), 4)])
    assert db.execute("SELECT * FROM retries").fetchall() == []


# Leases


def test_lease_keeps_others_away_until_it_ends(db: sqlite3.Connection) -> None:
    """A member that renews is alive; one that does not is dead when its time is over."""
    first = Worker.of(db)
    first.balance(db)
    second = Worker.of(db)
    second.balance(db)
    assert second.claims == {}
    assert renew(db, first.member) == (2, second.member.id, 0, 0, 4)
    first.die(db)
    assert state_of(db, "billing") == (2, second.member.id, 1, 0, 4)
    second.balance(db)
    assert len(second.claims) == 4
    assert renew(db, first.member) is None
    assert balance(db, first.member) is None


def test_member_late_but_not_missed_is_alive(db: sqlite3.Connection) -> None:
    """Who renews before anybody has noticed the end of its lease has lost nothing."""
    worker = Worker.of(db)
    worker.balance(db)
    worker.die(db)
    assert renew(db, worker.member) == (1, worker.member.id, 0, 0, 4)
    assert worker.commit(db, *(worker.mark(cursor, 1) for cursor in worker.claims)) == set()


def test_members_kept_from_renewing_together_bury_nobody(db: sqlite3.Connection) -> None:
    """Whoever holds the lock for longer than a lease costs no live member what it has."""
    first, second = Worker.of(db), Worker.of(db)
    first.balance(db)
    second.balance(db)
    shared = owners(db)
    first.die(db)
    second.die(db)  # neither could write
    second.balance(db)  # this one got the lock first
    assert renew(db, first.member) is not None
    second.live_on(db)
    second.balance(db)
    assert owners(db) == shared
    first.die(db)  # this time it alone
    second.balance(db)
    assert len(second.claims) == 4


def test_newcomer_does_not_bury_who_may_be_late(db: sqlite3.Connection) -> None:
    """It may have come when the lock was free again at last, before the others could renew."""
    first = Worker.of(db)
    first.balance(db)
    first.die(db)
    with transaction(db):
        second = Worker(join(db, "billing", ["orders"], LEASE, "first"))
    second.balance(db)
    assert second.claims == {}
    assert renew(db, first.member) is not None


def test_lease_from_before_a_reboot_is_over(db: sqlite3.Connection) -> None:
    """The clock of leases begins anew with the machine: one that ends too late is dead."""
    before = Worker.of(db)
    before.balance(db)
    after = Worker.of(db)
    until = time.monotonic() + LEASE + 1000
    db.execute("UPDATE members SET until = ? WHERE id = ?", (until, before.member.id))
    assert state_of(db, "billing")[2] == 1
    after.balance(db)
    assert len(after.claims) == 4


def test_number_of_a_member_is_never_given_again(db: sqlite3.Connection) -> None:
    """A new member is not taken for one that was the newest and is gone."""
    first = Worker.of(db)
    with transaction(db):
        leave(db, first.member, [])
    assert Worker.of(db).member.id > first.member.id


def test_leaving_writes_down_how_far_all_is(db: sqlite3.Connection) -> None:
    """Who leaves gives all away with what is open, and the next one has it at once."""
    first = Worker.of(db)
    first.balance(db)
    second = Worker.of(db)
    with transaction(db):
        leave(db, first.member, [first.mark(cursor, 6, [(5, 1)]) for cursor in first.claims])
    claims = second.balance(db)
    assert len(claims) == 4
    assert {(claim.position, json.dumps(claim.open)) for claim in claims} == {(6, "[[5, 1]]")}
