"""What dispytch-sqlite is measured beside: the same events through plain `sqlite3`.

Connections are of this program's own making, on the same tables, with a queue of rows beside them.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic_core import to_json

from dispytch import EventBase
from dispytch_sqlite.schema import TABLES

BACKLOG, KEYS = 5_000, 50

Contender = Callable[[], Awaitable[float]]
"""Runs once; events per second."""


class Noted(EventBase):
    """About 300 bytes on the wire, one of many keys."""

    __topic__ = "notes"
    __event_type__ = "noted"
    __key__ = "{author}"

    author: str
    number: int
    text: str = "x" * 160


def noted(number: int) -> Noted:
    """An event."""
    return Noted(author=str(number % KEYS), number=number)


def plain(path: Path, synchronous: str = "NORMAL", wait: float = 0.0) -> sqlite3.Connection:
    """A connection, and the tables if they are not there."""
    db = sqlite3.connect(path, isolation_level=None, timeout=wait, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        db.executescript(TABLES)
        db.executescript(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, worker INTEGER, payload BLOB NOT NULL);"
            "CREATE INDEX free ON jobs (id) WHERE worker IS NULL"
        )
    return db


def row(event: Noted) -> tuple[int, bytes, bytes]:
    """Partition, key and envelope."""
    now = time.time_ns() // 10**6
    envelope = {"id": event.id, "type": "noted", "body": event, "timestamp": now}
    return event.number % 32, event.author.encode(), to_json(envelope)


def appending(path: Path, synchronous: str, batch: int, events: int) -> Contender:
    """Appends the same events from one thread, so many with each commit."""
    db = plain(path, synchronous)
    insert = (
        "INSERT INTO events (topic, partition, at_ms, expires_ms, key, headers, payload) "
        "VALUES (1, ?, 1, NULL, ?, NULL, ?)"
    )
    ready = [noted(number) for number in range(events)]

    async def run() -> float:
        started = time.perf_counter()
        for first in range(0, events, batch):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(insert, map(row, ready[first : first + batch]))
            db.execute("COMMIT")
        return events / (time.perf_counter() - started)

    return run


def fill(db: sqlite3.Connection) -> None:
    """A backlog for `claim`."""
    db.execute("BEGIN IMMEDIATE")
    rows = [(b"x" * 300,)] * BACKLOG
    db.executemany("INSERT INTO jobs (payload) VALUES (?)", rows)
    db.execute("COMMIT")


def claim(db: sqlite3.Connection, batch: int) -> int:
    """Claim rows of the queue, which is a commit, and delete them, which is another; how many."""
    take = (
        "UPDATE jobs SET worker = 1 WHERE id IN "
        "(SELECT id FROM jobs WHERE worker IS NULL ORDER BY id LIMIT ?) RETURNING id, payload"
    )
    db.execute("BEGIN IMMEDIATE")
    rows = db.execute(take, (batch,)).fetchall()
    db.execute("COMMIT")
    if rows:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM jobs WHERE id = ?", [row[:1] for row in rows])
        db.execute("COMMIT")
    return len(rows)


def claiming(path: Path, batch: int) -> Contender:
    """Works a backlog of rows off."""
    db = plain(path)

    async def run() -> float:
        fill(db)
        started = time.perf_counter()
        while claim(db, batch):
            pass
        return BACKLOG / (time.perf_counter() - started)

    return run


def claiming_in_threads(path: Path) -> Contender:
    """The same, a row at a time, as a program does whose event loop must not wait for a lock."""
    db = plain(path)

    async def run() -> float:
        fill(db)
        started = time.perf_counter()
        while await asyncio.to_thread(claim, db, 1):
            pass
        return BACKLOG / (time.perf_counter() - started)

    return run
