"""Retention: what may be deleted from a file, in steps that are short."""

import itertools
import json
import logging
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TypeAlias

from dispytch.topics import TopicPattern
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.log import now_ms

__all__ = ["Retention", "Step"]

logger = logging.getLogger("dispytch")

Step: TypeAlias = Callable[[sqlite3.Connection], object]
"""Deletes something, inside a transaction."""

_Row: TypeAlias = tuple[int, int, int, int]
"""Number, topic, partition and size of an event."""

_AT_ONCE = 500  # events deleted in one step
_SCANNED = 5_000  # events looked at together
_LOOKS = 10  # times that is done, before others get a turn
_INCREMENTAL = 2  # as `PRAGMA auto_vacuum` tells it
_FREE_PAGES = 1_000  # unused pages above which the file is made smaller

_NO_DEAD_LETTER = "topic NOT IN (SELECT id FROM topics WHERE is_dead)"


class Retention:
    """Finds what may be deleted.

    Args:
        connection: says how long events stay.
    """

    def __init__(self, connection: SQLiteConnection) -> None:
        self._max_age, self._max_bytes = connection.max_age, connection.max_bytes
        self._delete_handled = connection.delete_handled
        self._looked = 0  # up to here nothing was handled by all when it was last looked at
        self._passed = 0  # up to here are only events of topics without a group,
        self._newest: int | None = None  # while this is the newest cursor
        self._unhandled: Counter[str] = Counter()  # events deleted since the last report, by why

    def next_step(self, db: sqlite3.Connection) -> Step | None:
        """What to do next; None: nothing for now. Only reads."""
        for find in (self._expired, self._too_old, self._too_many, self._handled, self._unused):
            step = find(db)
            if step is not None:
                return step
        return None

    def report(self) -> None:
        """Log how many events were deleted that a group has not handled."""
        for why, count in (+self._unhandled).items():
            logger.warning("sqlite: %s: %d events deleted that a group has not handled", why, count)
        self._unhandled.clear()

    @staticmethod
    def _expired(db: sqlite3.Connection) -> Step | None:
        now = now_ms()
        for table, column in (("events", "seq"), ("delayed", "id")):  # due or not: it is too late
            some = f"SELECT {column} FROM {table} WHERE expires_ms <= ? LIMIT ?"
            if db.execute(some, (now, 1)).fetchone() is not None:
                return _expiry(f"DELETE FROM {table} WHERE {column} IN ({some})", now)
        return None

    def _too_old(self, db: sqlite3.Connection) -> Step | None:
        if self._max_age is None:
            return None
        latest = now_ms() - int(self._max_age * 1000)
        return self._oldest(db, "older than max_age", latest)

    def _too_many(self, db: sqlite3.Connection) -> Step | None:
        if self._max_bytes is None:
            return None
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        excess = (pages - free) * size - self._max_bytes
        if excess <= 0:
            return None
        return self._oldest(db, "the file is larger than max_bytes", size=excess)

    def _oldest(
        self,
        db: sqlite3.Connection,
        why: str,
        latest: int | None = None,
        size: int | None = None,
    ) -> Step | None:
        """Delete the oldest events but dead letters, handled or not; only so many bytes of them."""
        first = db.execute(
            f"SELECT seq FROM events WHERE {_NO_DEAD_LETTER} ORDER BY seq LIMIT 1"
        ).fetchone()
        if first is None:
            return None
        rows: list[_Row] = db.execute(
            "SELECT seq, topic, partition, length(payload) FROM events "
            f"WHERE seq BETWEEN ?1 AND ?2 AND (?3 IS NULL OR at_ms <= ?3) AND {_NO_DEAD_LETTER} "
            "ORDER BY seq LIMIT ?4",
            (first[0], first[0] + _SCANNED, latest, _AT_ONCE),
        ).fetchall()
        if not rows:
            return None
        if size is not None:
            sums = itertools.accumulate(row[3] for row in rows)
            rows = rows[: 1 + sum(each < size for each in sums)]
        done = _done(db)
        unhandled = sum(seq > done.get((topic, part), seq) for seq, topic, part, _ in rows)
        delete = _deletion([row[0] for row in rows])

        def step(db: sqlite3.Connection) -> None:
            if delete(db):  # another process may have been quicker
                self._unhandled[why] += unhandled

        return step

    def _handled(self, db: sqlite3.Connection) -> Step | None:
        """Delete what all groups of its topic have handled."""
        if not self._delete_handled:
            return None
        (newest,) = db.execute("SELECT max(id) FROM cursors").fetchone()
        if newest != self._newest:
            self._newest, self._passed, self._looked = newest, 0, 0
        done = _done(db)
        for _ in range(_LOOKS):
            rows = db.execute(
                "SELECT seq, topic, partition FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
                (self._looked, _SCANNED),
            ).fetchall()
            handled = [seq for seq, topic, part in rows if seq <= done.get((topic, part), -1)]
            if handled:
                return _deletion(handled[:_AT_ONCE])
            if not rows:  # the end: next time from where something may have been handled since
                self._looked = self._passed
                return None
            is_nobody_s = not any((topic, part) in done for _, topic, part in rows)
            if is_nobody_s and self._passed == self._looked:
                self._passed = rows[-1][0]
            self._looked = rows[-1][0]
        return None

    @staticmethod
    def _unused(db: sqlite3.Connection) -> Step | None:
        """Give unused pages back to the system, where nobody has made that impossible."""
        free, mode = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "auto_vacuum")
        )
        if free < _FREE_PAGES or mode != _INCREMENTAL:
            return None
        return _shrink


def _shrink(db: sqlite3.Connection) -> None:
    for _ in range(_FREE_PAGES):  # one by one: Python 3.11 gives back no more, asked for many
        db.execute("PRAGMA incremental_vacuum(1)").fetchall()


def _expiry(delete: str, now: int) -> Step:
    return lambda db: db.execute(delete, (now, _AT_ONCE))


def _deletion(numbers: list[int]) -> Step:
    told = json.dumps(numbers)
    delete = "DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))"
    return lambda db: db.execute(delete, (told,)).rowcount


def _done(db: sqlite3.Connection) -> Mapping[tuple[int, int], int]:
    """By topic and partition, up to where all groups have handled; none where no group is."""
    lowest: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for topic, partition, position, open_, retried in db.execute(
        "SELECT topic, partition, position, open, "
        "(SELECT min(seq) FROM retries WHERE cursor = cursors.id) FROM cursors"
    ):
        waiting: list[int] = [seq for seq, _ in json.loads(open_)]
        if retried is not None:
            waiting.append(retried)
        until: int = min([position + 1, *waiting]) - 1
        lowest[topic][partition] = min(until, lowest[topic].get(partition, until))
    patterns = {topic: TopicPattern(topic) for topic in lowest}
    done: dict[tuple[int, int], int] = {}
    for number, name in db.execute("SELECT id, name FROM topics").fetchall():
        for topic, partitions in lowest.items():
            if patterns[topic].match(name) is not None:
                for partition, until in partitions.items():
                    place = (number, partition)
                    done[place] = min(until, done.get(place, until))
    return done
