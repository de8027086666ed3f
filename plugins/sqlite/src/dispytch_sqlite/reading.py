"""Feed: reads what one subscription wants from the log. In the event loop, a little at a time.

Reading needs no lock, and takes microseconds. A thread would take longer, as each row that SQLite
gives hands the interpreter's lock back and forth.
"""

import itertools
import json
import re
import sqlite3
from collections.abc import Iterable, Sequence

from dispytch import Delivery
from dispytch.topics import TopicPattern
from dispytch_sqlite.delivery import Share, SQLiteDelivery
from dispytch_sqlite.log import now_ms, read_headers

__all__ = ["Feed", "canonical"]

_BYTES = 1024 * 1024
"""Of payloads, read at once."""

_SCANNED = 20_000
"""Events passed over at once."""

_COLUMNS = "seq, topic, partition, key, headers, payload"
_ALIVE = "(expires_ms IS NULL OR expires_ms > ?)"
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{[^{}]*\}")


def canonical(pattern: str) -> str:
    """A topic pattern as groups know it: another name of a placeholder makes no other pattern."""
    numbers = itertools.count(1)
    return _PLACEHOLDER.sub(
        lambda found: found[0] if found[0] in {"{{", "}}"} else f"{{p{next(numbers)}}}", pattern
    )


class Feed:
    """Reads the log for one topic or pattern.

    Args:
        db: the consumer's own connection.
        pattern: the topic or pattern.
        name: of its temporary table, which holds the numbers of its topics.
        via: the subscriptions whose handlers its events are for; None: all.

    Attributes:
        topic: the topic or pattern, as groups know it.
        shares: the partitions that are ours, by number.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        pattern: TopicPattern,
        name: str,
        via: tuple[str, ...] | None = None,
    ) -> None:
        self._db, self._pattern, self._via = db, pattern, via
        self.topic = canonical(pattern.text)
        self.shares: dict[int, Share] = {}
        self._wanted = f"temp.{name}"
        db.execute(f"CREATE TEMP TABLE {name} (id INTEGER PRIMARY KEY)")
        self._topics: dict[int, str] = {}
        self._retries_to = 0  # those that were due by then have been looked at
        self._looked_to = 0  # topics up to this number have been looked at

    def take(self, taken: list[Delivery], limit: int) -> bool:
        """Add what can be delivered now, up to `limit` in all; whether there may be more.

        The partitions that are behind come first, up to where the next ones are.
        """
        shares = [share for share in self.shares.values() if share.is_read]
        if not shares:
            return False
        # The head first: each event up to there is of a topic that is known after that.
        head: int = self._db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()[0]
        self._learn_topics()
        for share in shares:
            while share.left and len(taken) < limit:
                self._take_left(share, taken, limit)
        if len(taken) >= limit:
            return True
        start = min(share.position for share in shares)
        if start >= head:
            return False
        behind = [share for share in shares if share.position == start]
        until = min([head, *(share.position for share in shares if share.position > start)])
        if until - start > _SCANNED:  # much of it may be deleted
            (first,) = self._db.execute(
                "SELECT min(seq) FROM events WHERE seq > ?", (start,)
            ).fetchone()
            start = until if first is None else min(first - 1, until)
            until = min(until, start + _SCANNED)
        return self._read(behind, start, until, taken, limit) < head

    def take_retries(self, taken: list[Delivery], limit: int) -> None:
        """Add what was given back to come again later and is due, up to `limit` in all."""
        now = self._retries_to = now_ms()
        if self._db.execute("SELECT 1 FROM retries LIMIT 1").fetchone() is None:
            return  # the most frequent answer, for a tenth of the time
        by_cursor = self._by_cursor()
        self._learn_topics()
        busy = sum(len(share.held) + len(share.ending) for share in by_cursor.values())
        rows = self._db.execute(
            "SELECT cursor, retries.seq, attempt, retries.headers, topic, key, payload "
            f"FROM retries LEFT JOIN events ON events.seq = retries.seq AND {_ALIVE} "
            f"WHERE visible_ms <= ? AND cursor IN ({_listed(by_cursor)}) "
            "ORDER BY visible_ms LIMIT ?",
            (now, now, busy + limit),
        )
        for cursor, seq, attempt, headers, topic, key, payload in rows:
            share = by_cursor[cursor]
            if len(taken) >= limit:
                break
            if share.is_busy_with(seq):
                continue
            if payload is None:  # deleted or expired meanwhile
                share.settling.drop(share, seq)
                continue
            row = (seq, topic, share.partition, key, headers, payload)
            taken.append(self._delivery(share, row, attempt + 1, is_retry=True))
        rows.close()

    def next_retry(self) -> int | None:
        """When one is due after those that were looked at, milliseconds since 1970 UTC."""
        due: int | None = self._db.execute(
            "SELECT min(due) FROM (SELECT (SELECT min(visible_ms) FROM retries "
            "WHERE cursor = ours.value AND visible_ms > ?) AS due FROM json_each(?) AS ours)",
            (self._retries_to, json.dumps(list(self._by_cursor()))),
        ).fetchone()[0]
        return due

    def waiting(self, db: sqlite3.Connection, group: str) -> int:
        """How many events wait for a group here, those under way included.

        It counts them, which takes a while: in a thread, on a connection of its own.
        """
        names = [
            (number,)
            for number, name in db.execute("SELECT id, name FROM topics")
            if self._pattern.match(name) is not None
        ]
        db.execute("CREATE TEMP TABLE IF NOT EXISTS counted (id INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM temp.counted")
        db.executemany("INSERT INTO temp.counted VALUES (?)", names)
        cursors = "cursors WHERE group_name = ?1 AND cursors.topic = ?2"
        (unread,) = db.execute(
            "SELECT count(*) FROM events CROSS JOIN "  # so that the log is read once
            f"{cursors} AND cursors.partition = events.partition AND seq > position "
            f"AND seq > (SELECT min(position) FROM {cursors}) "
            f"AND events.topic IN temp.counted AND {_ALIVE.replace('?', '?3')}",
            (group, self.topic, now_ms()),
        ).fetchone()
        (open_,) = db.execute(
            f"SELECT ifnull(sum(json_array_length(open)), 0) FROM {cursors}", (group, self.topic)
        ).fetchone()
        (later,) = db.execute(
            f"SELECT count(*) FROM retries WHERE cursor IN (SELECT id FROM {cursors})",
            (group, self.topic),
        ).fetchone()
        return int(unread + open_ + later)

    def _by_cursor(self) -> dict[int, Share]:
        return {share.cursor: share for share in self.shares.values() if share.is_read}

    # Topics

    def _learn_topics(self) -> None:
        """Take in the topics that are new to the file."""
        fresh = self._db.execute(
            "SELECT id, name FROM topics WHERE id > ? ORDER BY id", (self._looked_to,)
        ).fetchall()
        for number, name in fresh:
            if self._pattern.match(name) is not None:
                self._db.execute(f"INSERT INTO {self._wanted} VALUES (?)", (number,))
                self._topics[number] = name
            self._looked_to = number  # last: what failed on the way is looked at again

    # Reading

    def _take_left(self, share: Share, taken: list[Delivery], limit: int) -> None:
        """Some of what the owner before us left open."""
        part = dict(itertools.islice(share.left, limit - len(taken)))
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM events WHERE seq IN (SELECT value FROM json_each(?)) "
            f"AND {_ALIVE} ORDER BY seq",
            (json.dumps(list(part)), now_ms()),
        ).fetchall()
        for _ in part:
            share.left.popleft()
        taken += [self._delivery(share, row, part[row[0]] + 1) for row in rows]
        share.settling.touch(share)  # what was deleted meanwhile is open no longer

    def _read(
        self, shares: Sequence[Share], start: int, until: int, taken: list[Delivery], limit: int
    ) -> int:
        """Read for shares from one place on; all are then at the place that is returned."""
        by_number = {share.partition: share for share in shares}
        most = limit - len(taken)
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM events WHERE seq > ? AND seq <= ? "
            f"AND topic IN {self._wanted} AND partition IN ({_listed(by_number)}) AND {_ALIVE} "
            "ORDER BY seq LIMIT ?",
            (start, until, now_ms(), most),
        )
        size = 0
        for count, row in enumerate(rows, 1):
            share = by_number[row[2]]
            taken.append(self._delivery(share, row, 1))
            share.position = row[0]
            size += len(row[5])
            if count == most or size >= _BYTES:
                until = row[0]
                break
        rows.close()
        for share in shares:
            share.position = until
        return until

    def _delivery(
        self, share: Share, row: tuple[int, int, int, bytes | None, str | None, bytes],
        attempt: int, *, is_retry: bool = False,
    ) -> SQLiteDelivery:  # fmt: skip
        seq, topic, _, key, headers, payload = row
        text = None if key is None else key.decode("utf-8", "surrogateescape")
        pairs = () if headers is None else read_headers(headers)
        return SQLiteDelivery(
            share, seq, self._topics[topic], payload, text, pairs, attempt, self._via,
            is_retry=is_retry,
        )  # fmt: skip


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
