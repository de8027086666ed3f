"""Feed: reads what one subscription wants from the log. In the event loop, a little at a time.

Reading needs no lock, and takes microseconds. A thread would take longer, as each row that SQLite
gives hands the interpreter's lock back and forth.
"""

import itertools
import json
import re
import sqlite3
from collections.abc import Iterable, Sequence

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
        self._looked_to = 0  # topics up to this number have been looked at
        self._pointer = 0  # the farthest position of all shares

    def take(self, limit: int) -> tuple[list[SQLiteDelivery], bool]:
        """What can be delivered now, and whether there may be more."""
        shares = [share for share in self.shares.values() if share.is_read]
        if not shares:
            return [], False
        # The head first: each event up to there is of a topic that is known after that.
        (head,) = self._db.execute("SELECT ifnull(max(seq), 0) FROM events").fetchone()
        self._learn_topics()
        taken: list[SQLiteDelivery] = []
        for share in shares:
            if share.left and len(taken) < limit:
                taken += self._take_left(share, limit - len(taken))
        self._pointer = max(share.position for share in shares)
        for share in shares:
            if share.position < self._pointer and len(taken) < limit:
                taken += self._read([share], share.position, self._pointer, limit - len(taken))[0]
        if len(taken) >= limit or any(share.position < self._pointer for share in shares):
            return taken, True
        fresh, is_more = self._take_new(shares, head, limit - len(taken))
        return [*taken, *fresh], is_more

    def take_retries(self, limit: int) -> list[SQLiteDelivery]:
        """What was given back to come again later and is due."""
        if self._db.execute("SELECT 1 FROM retries LIMIT 1").fetchone() is None:
            return []  # the most frequent answer, for a tenth of the time
        by_cursor = self._by_cursor()
        self._learn_topics()
        rows = self._db.execute(
            f"SELECT cursor, seq, attempt, retries.headers, topic, partition, key, payload "
            f"FROM retries LEFT JOIN events USING (seq) WHERE visible_ms <= ? "
            f"AND cursor IN ({_listed(by_cursor)}) ORDER BY visible_ms",
            (now_ms(),),
        )
        taken: list[SQLiteDelivery] = []
        for cursor, seq, attempt, headers, topic, _, key, payload in rows:
            share = by_cursor[cursor]
            if seq in share.held:
                continue
            if payload is None:  # deleted meanwhile
                share.settling.drop(share, seq)
                continue
            row = (seq, topic, share.partition, key, headers, payload)
            taken.append(self._delivery(share, row, attempt + 1, is_retry=True))
            if len(taken) == limit:
                break
        rows.close()
        return taken

    def next_retry(self) -> int | None:
        """When the next one is due that is not under way, milliseconds since 1970 UTC."""
        by_cursor = self._by_cursor()
        rows = self._db.execute(
            f"SELECT cursor, seq, visible_ms FROM retries WHERE cursor IN ({_listed(by_cursor)}) "
            "ORDER BY visible_ms"
        )
        due = next((at for cursor, seq, at in rows if seq not in by_cursor[cursor].held), None)
        rows.close()
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
        (unread,) = db.execute(
            "SELECT count(*) FROM cursors JOIN events ON events.partition = cursors.partition "
            "AND seq > position WHERE group_name = ? AND cursors.topic = ? "
            f"AND events.topic IN temp.counted AND {_ALIVE}",
            (group, self.topic, now_ms()),
        ).fetchone()
        (open_,) = db.execute(
            "SELECT ifnull(sum(json_array_length(open)), 0) FROM cursors "
            "WHERE group_name = ? AND topic = ?",
            (group, self.topic),
        ).fetchone()
        (later,) = db.execute(
            "SELECT count(*) FROM retries JOIN cursors ON cursor = cursors.id "
            "WHERE group_name = ? AND topic = ?",
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

    def _take_left(self, share: Share, limit: int) -> list[SQLiteDelivery]:
        """What the owner before us left open."""
        part = [share.left.popleft() for _ in range(min(limit, len(share.left)))]
        times = dict(part)
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM events WHERE seq IN (SELECT value FROM json_each(?)) "
            f"AND {_ALIVE} ORDER BY seq",
            (json.dumps(list(times)), now_ms()),
        ).fetchall()
        share.settling.touch(share)  # what was deleted meanwhile is open no longer
        return [self._delivery(share, row, times[row[0]] + 1) for row in rows]

    def _take_new(
        self, shares: Sequence[Share], head: int, limit: int
    ) -> tuple[list[SQLiteDelivery], bool]:
        """Read on from where all shares are, up to the log's head."""
        if head <= self._pointer:
            return [], False
        start = self._pointer
        if head - start > _SCANNED:  # much of it may be deleted
            (first,) = self._db.execute(
                "SELECT min(seq) FROM events WHERE seq > ?", (start,)
            ).fetchone()
            start = first - 1
        until = min(head, start + _SCANNED)
        taken, position = self._read(shares, start, until, limit)
        self._pointer = position
        return taken, position < head

    def _read(
        self, shares: Sequence[Share], start: int, until: int, limit: int
    ) -> tuple[list[SQLiteDelivery], int]:
        """Read for shares from one place on; they are then all at the place that is returned."""
        by_number = {share.partition: share for share in shares}
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM events WHERE seq > ? AND seq <= ? "
            f"AND topic IN {self._wanted} AND partition IN ({_listed(by_number)}) AND {_ALIVE} "
            "ORDER BY seq LIMIT ?",
            (start, until, now_ms(), limit),
        )
        taken: list[SQLiteDelivery] = []
        size = 0
        for row in rows:
            taken.append(self._delivery(by_number[row[2]], row, 1))
            size += len(row[5])
            if size >= _BYTES:
                break
        rows.close()
        position = taken[-1].seq if len(taken) == limit or size >= _BYTES else until
        for share in shares:
            share.position = position
        return taken, position

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
