"""Retention: what may be deleted from a file, in steps that are short."""

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import TypeAlias

from dispytch.topics import TopicPattern
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.log import now_ms

__all__ = ["Retention", "Step"]

logger = logging.getLogger("dispytch")

Step: TypeAlias = Callable[[sqlite3.Connection], object]
"""Deletes something, inside a transaction."""

_Row: TypeAlias = tuple[int, int, int]
"""Number, topic and partition of an event."""

_AT_ONCE = 500  # events deleted in one step
_SCANNED = 5_000  # events looked at in one step
_FREE_PAGES = 1_000  # unused pages above which the file is made smaller

_ALIVE = "topic NOT IN (SELECT id FROM topics WHERE is_dead)"


class Retention:
    """Finds what may be deleted.

    Args:
        connection: says how long events stay.
    """

    def __init__(self, connection: SQLiteConnection) -> None:
        self._max_age, self._max_bytes = connection.max_age, connection.max_bytes
        self._delete_handled = connection.delete_handled
        self._passed = 0  # up to here are no handled events, but those of topics without a group

    def next_step(self, db: sqlite3.Connection) -> Step | None:
        """What to do next; None: nothing for now. Only reads."""
        for find in (self._expired, self._too_old, self._too_many, self._handled, self._unused):
            step = find(db)
            if step is not None:
                return step
        return None

    @staticmethod
    def _expired(db: sqlite3.Connection) -> Step | None:
        now = now_ms()
        some = "SELECT seq FROM events WHERE expires_ms <= ? LIMIT ?"
        if db.execute(some, (now, 1)).fetchone() is None:
            return None
        delete = f"DELETE FROM events WHERE seq IN ({some})"
        return lambda db: db.execute(delete, (now, _AT_ONCE))

    def _too_old(self, db: sqlite3.Connection) -> Step | None:
        if self._max_age is None:
            return None
        latest = now_ms() - int(self._max_age * 1000)
        return self._oldest(db, "at_ms <= ?", latest, "older than max_age")

    def _too_many(self, db: sqlite3.Connection) -> Step | None:
        if self._max_bytes is None:
            return None
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size <= self._max_bytes:
            return None
        return self._oldest(db, "?", 1, "the file is larger than max_bytes")

    def _oldest(self, db: sqlite3.Connection, condition: str, value: int, why: str) -> Step | None:
        """Delete the oldest events but dead letters, whether they are handled or not."""
        first = db.execute(f"SELECT seq FROM events WHERE {_ALIVE} ORDER BY seq LIMIT 1").fetchone()
        if first is None:
            return None
        rows: list[_Row] = db.execute(
            "SELECT seq, topic, partition FROM events "
            f"WHERE seq BETWEEN ? AND ? AND {condition} AND {_ALIVE} ORDER BY seq LIMIT ?",
            (first[0], first[0] + _SCANNED, value, _AT_ONCE // 5),
        ).fetchall()
        if not rows:
            return None
        done = _done(db)
        unhandled = sum(seq > done.get((topic, part), seq) for seq, topic, part in rows)
        if unhandled:
            logger.warning(
                "sqlite: %s: %d events deleted that a group has not handled", why, unhandled
            )
        return _deletion([row[0] for row in rows])

    def _handled(self, db: sqlite3.Connection) -> Step | None:
        """Delete what all groups of its topic have handled."""
        if not self._delete_handled:
            return None
        done = _done(db)
        rows: list[_Row] = db.execute(
            "SELECT seq, topic, partition FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._passed, _SCANNED),
        ).fetchall()
        handled = [seq for seq, topic, part in rows if seq <= done.get((topic, part), -1)]
        open_ = [seq for seq, topic, part in rows if seq > done.get((topic, part), seq)]
        if rows and not open_ and not handled:
            self._passed = rows[-1][0]  # topics that nobody subscribed to
            return self._handled(db) if len(rows) == _SCANNED else None
        return _deletion(handled[:_AT_ONCE]) if handled else None

    @staticmethod
    def _unused(db: sqlite3.Connection) -> Step | None:
        """Give unused pages back to the system."""
        if db.execute("PRAGMA freelist_count").fetchone()[0] < _FREE_PAGES:
            return None
        return lambda db: db.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})").fetchall()


def _deletion(numbers: list[int]) -> Step:
    told = json.dumps(numbers)
    delete = "DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))"
    return lambda db: db.execute(delete, (told,))


def _done(db: sqlite3.Connection) -> Mapping[tuple[int, int], int]:
    """By topic and partition, up to where all groups have handled; none where no group is."""
    lowest: dict[tuple[str, int], int] = {}
    for topic, partition, position, open_, retried in db.execute(
        "SELECT topic, partition, position, open, "
        "(SELECT min(seq) FROM retries WHERE cursor = cursors.id) FROM cursors"
    ):
        waiting: list[int] = [seq for seq, _ in json.loads(open_)]
        if retried is not None:
            waiting.append(retried)
        until: int = min([position + 1, *waiting]) - 1
        place = (topic, partition)
        lowest[place] = min(until, lowest.get(place, until))
    patterns = {topic: TopicPattern(topic) for topic, _ in lowest}
    done: dict[tuple[int, int], int] = {}
    for number, name in db.execute("SELECT id, name FROM topics").fetchall():
        for (topic, partition), until in lowest.items():
            if patterns[topic].match(name) is not None:
                place = (number, partition)
                done[place] = min(until, done.get(place, until))
    return done
