"""Group: who receives what, and how far all is done. In the writer's thread, in its transaction.

A member owns cursors, as many as its share is, and while its lease lasts nobody takes them. Each
change of a cursor's owner makes a new epoch: what an owner writes that was dead for a while, or
that gave the cursor away and got it back, finds no cursor of its own.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "Balance",
    "Claim",
    "Mark",
    "Member",
    "Pairs",
    "Retry",
    "State",
    "Tenure",
    "balance",
    "commit",
    "join",
    "leave",
    "renew",
    "state_of",
]

Pairs: TypeAlias = Sequence[tuple[int, int]]
"""Numbers of events, and how often each was delivered."""

Tenure: TypeAlias = tuple[int, int]
"""A cursor, and the epoch in which it is a member's: in another one it may be the same member's."""

Begin: TypeAlias = Literal["first", "latest"] | int

_AT_ONCE = 1_000  # marks of one statement: SQLite limits the number of its parameters


class State(NamedTuple):
    """What shares depend on: when it changes, they may."""

    members: int
    newest: int
    dead: int
    free: int
    claims: int


@dataclass(frozen=True, slots=True)
class Member:
    """One who receives for a group.

    Attributes:
        id: never given again.
        group: the group's name.
        topics: what it subscribed to.
    """

    id: int
    group: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A cursor that a member owns from now on."""

    cursor: int
    topic: str
    partition: int
    epoch: int
    position: int
    open: Pairs


@dataclass(frozen=True, slots=True)
class Balance:
    """What changed for a member: cursors it got, and how many of a topic it has too many."""

    claims: Sequence[Claim]
    surplus: dict[str, int]
    state: State


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an owner is with a cursor.

    Attributes:
        cursor, epoch: which.
        position: all up to here is done,
        open: but for these.
        is_release: whether it gives the cursor away.
    """

    cursor: int
    epoch: int
    position: int
    open: Pairs
    is_release: bool = False

    @property
    def tenure(self) -> Tenure:
        """Which cursor, and since which epoch."""
        return self.cursor, self.epoch


@dataclass(frozen=True, slots=True)
class Retry:
    """An event that is to come again later, for one cursor."""

    tenure: Tenure
    seq: int
    attempt: int
    visible_ms: int
    headers: str | None


def join(
    db: sqlite3.Connection, group: str, topics: Sequence[str], lease: float, begin: Begin
) -> Member:
    """Make a member, and the cursors of what nobody of its group has subscribed to before."""
    (partitions,) = db.execute("SELECT partitions FROM settings").fetchone()
    has_cursors = "SELECT 1 FROM cursors WHERE group_name = ? AND topic = ?"
    fresh = [each for each in topics if db.execute(has_cursors, (group, each)).fetchone() is None]
    position = _first_position(db, begin) if fresh else 0
    db.executemany(
        "INSERT INTO cursors (group_name, topic, partition, position) VALUES (?, ?, ?, ?)",
        [(group, topic, number, position) for topic in fresh for number in range(partitions)],
    )
    now = time.monotonic()
    made = db.execute(
        "INSERT INTO members (group_name, topics, lease, until, since) VALUES (?, ?, ?, ?, ?)",
        (group, json.dumps(topics), lease, now + lease, now),
    )
    return Member(made.lastrowid or 0, group, tuple(topics))


def _first_position(db: sqlite3.Connection, begin: Begin) -> int:
    if begin == "first":
        return 0
    if begin == "latest":
        return int(db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()[0])
    found = db.execute(
        "SELECT seq FROM events WHERE at_ms >= ? ORDER BY seq LIMIT 1", (begin,)
    ).fetchone()
    return _first_position(db, "latest") if found is None else int(found[0]) - 1


def state_of(db: sqlite3.Connection, group: str) -> State:
    """What shares depend on; only reads."""
    now = time.monotonic()
    found = db.execute(
        "SELECT count(*), ifnull(max(id), 0), ifnull(sum(until < ?1 OR until > ?1 + lease), 0), "
        "(SELECT count(*) - count(owner) FROM cursors WHERE group_name = ?2), "
        "(SELECT ifnull(sum(epoch), 0) FROM cursors WHERE group_name = ?2) "
        "FROM members WHERE group_name = ?2",
        (now, group),
    ).fetchone()
    return State(*found)


def renew(db: sqlite3.Connection, member: Member) -> State | None:
    """Renew a member's lease; None: the others took it for dead."""
    renewed = db.execute(
        "UPDATE members SET since = CASE WHEN until < ?1 THEN ?1 ELSE since END, "
        "until = ?1 + lease WHERE id = ?2",
        (time.monotonic(), member.id),
    ).rowcount
    return state_of(db, member.group) if renewed else None


def balance(db: sqlite3.Connection, member: Member) -> Balance | None:
    """Take what is free, as far as it is this member's share; None: it is dead to the others."""
    if renew(db, member) is None:
        return None
    _bury_the_dead(db, member)
    claims: list[Claim] = []
    surplus: dict[str, int] = {}
    for topic in member.topics:
        peers = [
            row[0]
            for row in db.execute(
                "SELECT members.id FROM members, json_each(members.topics) "
                "WHERE group_name = ? AND value = ? ORDER BY members.id",
                (member.group, topic),
            )
        ]
        cursors, owned = db.execute(
            "SELECT count(*), count(*) FILTER (WHERE owner = ?) FROM cursors "
            "WHERE group_name = ? AND topic = ?",
            (member.id, member.group, topic),
        ).fetchone()
        share = cursors // len(peers) + (peers.index(member.id) < cursors % len(peers))
        if owned > share:
            surplus[topic] = owned - share
        elif owned < share:
            claims += _claim(db, member, topic, share - owned)
    return Balance(claims, surplus, state_of(db, member.group))


def _bury_the_dead(db: sqlite3.Connection, member: Member) -> None:
    """Free what the dead have, unless it may be the lock that kept them, as it kept us.

    Whoever has been alive without a break for a third of a lease gave the others time to renew.
    """
    # The clock begins anew when the machine does: a lease that lasts longer than it can is over.
    dead = db.execute(
        "DELETE FROM members WHERE group_name = ?2 AND (until < ?1 OR until > ?1 + lease) "
        "AND (SELECT since + lease / 3 <= ?1 FROM members WHERE id = ?3) RETURNING id",
        (time.monotonic(), member.group, member.id),
    ).fetchall()
    db.executemany("UPDATE cursors SET owner = NULL, epoch = epoch + 1 WHERE owner = ?", dead)


def _claim(db: sqlite3.Connection, member: Member, topic: str, most: int) -> list[Claim]:
    rows = db.execute(
        "UPDATE cursors SET owner = ?1, epoch = epoch + 1 WHERE id IN (SELECT id FROM cursors "
        "WHERE group_name = ?2 AND topic = ?3 AND owner IS NULL ORDER BY partition LIMIT ?4) "
        "RETURNING id, topic, partition, epoch, position, open",
        (member.id, member.group, topic, most),
    ).fetchall()
    return [
        Claim(cursor, topic, partition, epoch, position, json.loads(open_))
        for cursor, topic, partition, epoch, position, open_ in rows
    ]


def commit(
    db: sqlite3.Connection,
    member: Member,
    marks: Sequence[Mark],
    retries: Iterable[Retry] = (),
    retried: Iterable[tuple[Tenure, int]] = (),
) -> set[Tenure]:
    """Write down how far all is.

    Args:
        db: inside a transaction.
        member: whose the cursors are.
        marks: for each cursor how far it is.
        retries: what is to come again.
        retried: of what came again and is done, the tenure and the number.

    Returns:
        The tenures that are over; nothing was written for them.
    """
    written = _write(db, member, marks)
    lost = set() if written == len(marks) else _lost(db, member, marks)
    db.executemany(
        "INSERT OR REPLACE INTO retries VALUES (?, ?, ?, ?, ?)",
        [
            (each.tenure[0], each.seq, each.attempt, each.visible_ms, each.headers)
            for each in retries
            if each.tenure not in lost
        ],
    )
    db.executemany(
        "DELETE FROM retries WHERE cursor = ? AND seq = ?",
        [(tenure[0], seq) for tenure, seq in retried if tenure not in lost],
    )
    return lost


def _write(db: sqlite3.Connection, member: Member, marks: Sequence[Mark]) -> int:
    """Write marks where the cursor is this member's; how many were.

    Many in one statement: each one gives up the interpreter's lock, and waits to get it back.
    """
    written = 0
    for first in range(0, len(marks), _AT_ONCE):
        part = marks[first : first + _AT_ONCE]
        rows = ((m.cursor, m.epoch, m.position, _told(m.open), m.is_release) for m in part)
        written += db.execute(
            "UPDATE cursors SET position = column3, open = column4, "
            "owner = CASE WHEN column5 THEN NULL ELSE owner END "
            f"FROM (VALUES {', '.join(['(?, ?, ?, ?, ?)'] * len(part))}) "
            "WHERE id = column1 AND epoch = column2 AND owner = ?",
            (*chain.from_iterable(rows), member.id),
        ).rowcount
    return written


def _told(pairs: Pairs) -> str:
    return json.dumps(pairs) if pairs else "[]"


def _lost(db: sqlite3.Connection, member: Member, marks: Iterable[Mark]) -> set[Tenure]:
    """Those that were not this member's; what it gave away with these marks was its own."""
    ours = (
        "SELECT 1 FROM cursors WHERE id = ? AND epoch = ? AND (owner = ? OR (? AND owner IS NULL))"
    )
    return {
        mark.tenure
        for mark in marks
        if db.execute(ours, (mark.cursor, mark.epoch, member.id, mark.is_release)).fetchone()
        is None
    }


def leave(db: sqlite3.Connection, member: Member, marks: Sequence[Mark]) -> None:
    """Give all cursors away, and be a member no more."""
    commit(db, member, marks)
    db.execute("UPDATE cursors SET owner = NULL WHERE owner = ?", (member.id,))
    db.execute("DELETE FROM members WHERE id = ?", (member.id,))
