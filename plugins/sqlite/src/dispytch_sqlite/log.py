"""Log: appends events, in the writer's thread and inside its transaction."""

import itertools
import json
import random
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dispytch.topics import DEAD_LETTER

__all__ = ["Entry", "Log", "now_ms", "read_headers", "written_headers"]

_SIZES = (64, 16, 4, 1)
"""Rows of one INSERT: each statement gives up the interpreter's lock once, and waits to get it."""

_MOST_DUE = 1_000  # events that were held back and are appended in one transaction

_COLUMNS = "topic, partition, at_ms, expires_ms, key, headers, payload"
_INSERTS = {
    size: f"INSERT INTO events ({_COLUMNS}) VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?)'] * size)}"
    for size in _SIZES
}


@dataclass(slots=True)
class Entry:
    """An event to be appended.

    Attributes:
        topic: where to.
        key: decides the partition; None: each in turn.
        headers: as they are stored, see `written_headers`.
        payload: the envelope.
        expires_ms: when it expires, milliseconds since 1970 UTC; None: never.
        due_ms: when it may join the log, the same; None: now.
    """

    topic: str
    key: bytes | None
    headers: str | None
    payload: bytes
    expires_ms: int | None = None
    due_ms: int | None = None


class Log:
    """Appends events.

    Args:
        partitions: how many the file has.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._topics: dict[str, int] = {}
        self._turn = itertools.count(random.randrange(partitions))  # noqa: S311 - no secret

    def forget(self) -> None:
        """Topics that were new may be gone: a transaction was rolled back."""
        self._topics.clear()

    def append(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> list[dict[str, int]]:
        """Append events in order; for each where it is, or until when it is held back."""
        places: list[dict[str, int]] = []
        rows: list[tuple[Any, ...]] = []
        now = now_ms()
        for entry in entries:
            topic, partition = self._topic(db, entry.topic), self._partition(entry.key)
            if entry.due_ms is not None and entry.due_ms > now:
                self._hold_back(db, entry, topic, partition)
                places.append({"due_ms": entry.due_ms})
                continue
            rows.append(
                (
                    topic, partition, now, entry.expires_ms, entry.key, entry.headers,
                    entry.payload,
                )
            )  # fmt: skip
            places.append({"seq": 0, "partition": partition})
        following = self._insert(db, rows)
        for place in places:
            if "seq" in place:
                place["seq"] = next(following)
        return places

    def append_due(self, db: sqlite3.Connection) -> bool:
        """Append what was held back and is due by now, some of it; whether there is more."""
        due = f"SELECT id FROM delayed WHERE due_ms <= ?1 ORDER BY due_ms, id LIMIT {_MOST_DUE}"
        now = now_ms()
        appended = db.execute(
            f"INSERT INTO events ({_COLUMNS}) "
            "SELECT topic, partition, ?1, expires_ms, key, headers, payload "
            f"FROM delayed WHERE id IN ({due}) ORDER BY due_ms, id",
            (now,),
        ).rowcount
        db.execute(f"DELETE FROM delayed WHERE id IN ({due})", (now,))
        return appended == _MOST_DUE

    def _topic(self, db: sqlite3.Connection, name: str) -> int:
        known = self._topics.get(name)
        if known is not None:
            return known
        is_dead = name.endswith(f".{DEAD_LETTER}")
        db.execute("INSERT OR IGNORE INTO topics (name, is_dead) VALUES (?, ?)", (name, is_dead))
        (number,) = db.execute("SELECT id FROM topics WHERE name = ?", (name,)).fetchone()
        self._topics[name] = number
        return int(number)

    def _partition(self, key: bytes | None) -> int:
        number = next(self._turn) if key is None else zlib.crc32(key)
        return number % self.partitions

    @staticmethod
    def _hold_back(db: sqlite3.Connection, entry: Entry, topic: int, partition: int) -> None:
        db.execute(
            "INSERT INTO delayed (due_ms, topic, partition, expires_ms, key, headers, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                entry.due_ms, topic, partition, entry.expires_ms, entry.key, entry.headers,
                entry.payload,
            ),
        )  # fmt: skip

    @staticmethod
    def _insert(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> Iterator[int]:
        """Insert rows; their numbers, which follow each other, as nobody else writes meanwhile."""
        done, last = 0, 0
        while done < len(rows):
            size = next(size for size in _SIZES if size <= len(rows) - done)
            values = itertools.chain.from_iterable(rows[done : done + size])
            last = db.execute(_INSERTS[size], tuple(values)).lastrowid or 0
            done += size
        return iter(range(last - len(rows) + 1, last + 1))


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def written_headers(pairs: Iterable[tuple[str, bytes]]) -> str | None:
    """Headers as they are stored: JSON, in which bytes that are no UTF-8 are kept as surrogates."""
    told = [(name, value.decode("utf-8", "surrogateescape")) for name, value in pairs]
    return json.dumps(told) if told else None


def read_headers(written: str | None) -> tuple[tuple[str, bytes], ...]:
    """The same, read again."""
    if not written:
        return ()
    pairs = json.loads(written)
    return tuple((name, value.encode("utf-8", "surrogateescape")) for name, value in pairs)
