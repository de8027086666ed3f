"""What dispytch-sqlite is measured beside: the same events through plain `sqlite3`.

Connections are of this program's own making, on the same tables, with a queue of rows beside them.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.events import READ, Plain, envelope, key_of, plain
from bench.measuring import Cost, Watch, check, scaled
from dispytch_sqlite.schema import TABLES

BACKLOG = scaled(6_000)

Run = Callable[[], Awaitable[Cost]]


def connected(path: Path, synchronous: str = "NORMAL", wait: float = 0.0) -> sqlite3.Connection:
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


def size(path: Path) -> int:
    """How many events are in a file."""
    with sqlite3.connect(path) as db:
        found: int = db.execute("SELECT count(*) FROM events").fetchone()[0]
    db.close()
    return found


def row(event: Plain) -> tuple[int, bytes, bytes]:
    """Partition, key and envelope."""
    return event.body.timestamp % 32, key_of(event), envelope(event)


def appending(path: Path, synchronous: str, batch: int, events: int) -> Run:
    """Appends the same events from one thread, so many with each commit."""
    db = connected(path, synchronous)
    insert = (
        "INSERT INTO events (topic, partition, at_ms, expires_ms, key, headers, payload) "
        "VALUES (1, ?, 1, NULL, ?, NULL, ?)"
    )
    ready = [plain(number) for number in range(events)]

    async def run() -> Cost:
        before = size(path)
        with Watch(events) as watch:
            for first in range(0, events, batch):
                db.execute("BEGIN IMMEDIATE")
                db.executemany(insert, map(row, ready[first : first + batch]))
                db.execute("COMMIT")
        check("in the file", size(path) - before, events)
        return watch.cost

    return run


def fill(db: sqlite3.Connection) -> None:
    """A backlog for `claim`."""
    db.execute("BEGIN IMMEDIATE")
    rows = [(envelope(plain(number)),) for number in range(BACKLOG)]
    db.executemany("INSERT INTO jobs (payload) VALUES (?)", rows)
    db.execute("COMMIT")


def claim(db: sqlite3.Connection, batch: int) -> list[int]:
    """Claim rows of the queue, which is a commit, handle and delete them, which is another."""
    take = (
        "UPDATE jobs SET worker = 1 WHERE id IN "
        "(SELECT id FROM jobs WHERE worker IS NULL ORDER BY id LIMIT ?) RETURNING id, payload"
    )
    db.execute("BEGIN IMMEDIATE")
    rows = db.execute(take, (batch,)).fetchall()
    db.execute("COMMIT")
    numbers = [READ(payload)["body"].timestamp for _, payload in rows]
    if rows:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM jobs WHERE id = ?", [row[:1] for row in rows])
        db.execute("COMMIT")
    return numbers


def claiming(path: Path, batch: int) -> Run:
    """Works a backlog of rows off."""
    db = connected(path)

    async def run() -> Cost:
        fill(db)
        handled: list[int] = []
        with Watch(BACKLOG) as watch:
            while numbers := claim(db, batch):
                handled += numbers
        check("handled", len(set(handled)), BACKLOG)
        return watch.cost

    return run


def claiming_in_threads(path: Path) -> Run:
    """The same, a row at a time, as a program does whose event loop must not wait for a lock."""
    db = connected(path)

    async def run() -> Cost:
        fill(db)
        handled: list[int] = []
        with Watch(BACKLOG) as watch:
            while numbers := await asyncio.to_thread(claim, db, 1):
                handled += numbers
        check("handled", len(set(handled)), BACKLOG)
        return watch.cost

    return run
