"""Retention: what is deleted, what never is, and what that does to who reads."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dispytch_sqlite import retention as retention_module
from dispytch_sqlite import writer as writer_module
from dispytch_sqlite.database import open_database, transaction
from dispytch_sqlite.log import Entry, Log, now_ms
from dispytch_sqlite.retention import Retention
from plugins.sqlite.receiving import File, ack_all, nothing_more, numbered, payloads, take

HOUR = 3_600_000
PARTITIONS = 4


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "events.db", partitions=PARTITIONS)


@pytest.fixture
def db(file: File) -> Iterator[sqlite3.Connection]:
    with closing(open_database(file.path, PARTITIONS)) as opened:
        yield opened


def append(
    db: sqlite3.Connection, topic: str, *payloads: bytes, ages: int = 0, **times: int
) -> list[int]:
    """Append events of one key, so old that many milliseconds; their numbers."""
    log = Log(PARTITIONS)
    with transaction(db):
        places = log.append(db, [Entry(topic, b"one", None, each, **times) for each in payloads])
        numbers = [place["seq"] for place in places]
        db.executemany(
            "UPDATE events SET at_ms = at_ms - ? WHERE seq = ?",
            [(ages, number) for number in numbers],
        )
    return numbers


def sweep(db: sqlite3.Connection, file: File, **options: Any) -> int:
    """Do all that is to be done; in how many steps."""
    return sweep_with(db, Retention(file.connection(**options)))


def sweep_with(db: sqlite3.Connection, retention: Retention) -> int:
    steps = 0
    while step := retention.next_step(db):
        with transaction(db):
            step(db)
        steps += 1
        assert steps < 1000, "no end"
    retention.report()
    return steps


def left(db: sqlite3.Connection) -> list[int]:
    return [seq for (seq,) in db.execute("SELECT seq FROM events ORDER BY seq")]


def cursor(
    db: sqlite3.Connection, topic: str, position: int, open_: str = "[]", group: str = "g"
) -> None:
    """A group that is so far in all partitions of a topic."""
    db.executemany(
        "INSERT OR REPLACE INTO cursors (group_name, topic, partition, position, open) "
        "VALUES (?, ?, ?, ?, ?)",
        [(group, topic, number, position, open_) for number in range(PARTITIONS)],
    )


def test_nothing_is_deleted_unless_it_is_asked_for(db: sqlite3.Connection, file: File) -> None:
    """Without settings events stay for ever, handled or not."""
    append(db, "orders", *numbered(10), ages=10**12)
    cursor(db, "orders", 5)
    assert sweep(db, file) == 0
    assert left(db) == list(range(1, 11))


def test_expired_events_are_deleted(db: sqlite3.Connection, file: File) -> None:
    """What nobody can receive any more goes, whatever else is set."""
    append(db, "orders", *numbered(1200), expires_ms=now_ms() - 1)
    kept = append(db, "orders", b"alive", expires_ms=now_ms() + HOUR)
    sweep(db, file)
    assert left(db) == kept


def test_old_events_are_deleted_but_dead_letters(db: sqlite3.Connection, file: File) -> None:
    """`max_age`: what is older goes, handled or not; dead letters stay for who repairs them."""
    dead = append(db, "orders.dlq", *numbered(3), ages=2 * HOUR)
    append(db, "orders", *numbered(1000), ages=2 * HOUR)
    kept = append(db, "orders", *numbered(5))
    sweep(db, file, max_age=3600)
    assert left(db) == [*dead, *kept]


def test_deleted_unhandled_events_are_told_of(
    db: sqlite3.Connection, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says how many events are lost to a group; what was handled is no loss."""
    caplog.set_level(logging.WARNING, "dispytch")
    append(db, "orders", *numbered(10), ages=2 * HOUR)
    append(db, "nobody", *numbered(10), ages=2 * HOUR)
    cursor(db, "orders", 8, "[[2, 1], [5, 1]]")
    sweep(db, file, max_age=3600)
    assert left(db) == []
    (told,) = caplog.messages
    assert "9 events" in told
    assert "max_age" in told


def test_what_another_process_deleted_first_is_not_told_of(
    db: sqlite3.Connection, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    """What is reported was deleted by who reports it."""
    append(db, "orders", *numbered(10), ages=2 * HOUR)
    cursor(db, "orders", 0)
    retention = Retention(file.connection(max_age=3600))
    step = retention.next_step(db)
    assert step is not None
    sweep(db, file, max_age=3600)
    caplog.clear()
    step(db)
    retention.report()
    assert caplog.messages == []


def test_delayed_events_expire_though_nobody_listens(db: sqlite3.Connection, file: File) -> None:
    """Only listeners append what is due; what is too late by then goes without them."""
    log, now = Log(PARTITIONS), now_ms()
    with transaction(db):
        for expires_ms in (now - 1, now + HOUR):
            log.append(db, [Entry("orders", None, None, b"", expires_ms, now + HOUR // 2)])
    sweep(db, file)
    assert db.execute("SELECT expires_ms FROM delayed").fetchall() == [(now + HOUR,)]


def test_what_waits_for_one_group_does_not_keep_what_is_handled(
    db: sqlite3.Connection, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`delete_handled`: a topic that nobody handles any more holds no other topic up."""
    monkeypatch.setattr(retention_module, "_SCANNED", 10)
    waiting = append(db, "left", *numbered(25))
    cursor(db, "left", 0, group="gone")
    append(db, "orders", *numbered(25))
    cursor(db, "orders", 40)
    sweep(db, file, delete_handled=True)
    assert left(db) == [*waiting, *range(41, 51)]


def test_what_is_handled_later_is_deleted_then(db: sqlite3.Connection, file: File) -> None:
    """What was passed over, as it waited, is looked at again."""
    append(db, "orders", *numbered(10))
    cursor(db, "orders", 4)
    retention = Retention(file.connection(delete_handled=True))
    sweep_with(db, retention)
    assert left(db) == [5, 6, 7, 8, 9, 10]
    cursor(db, "orders", 10)
    sweep_with(db, retention)
    sweep_with(db, retention)
    assert left(db) == []


def test_file_above_its_size_loses_its_oldest(db: sqlite3.Connection, file: File) -> None:
    """`max_bytes`: the oldest go until the file is small enough, and no more; no dead letters."""
    dead = append(db, "orders.dlq", *[bytes(10_000)] * 20)
    append(db, "orders", *[bytes(10_000)] * 300)
    limit = 1024 * 1024
    sweep(db, file, max_bytes=limit)
    numbers = left(db)
    kept = numbers[len(dead) :]
    assert numbers[: len(dead)] == dead
    assert kept == list(range(kept[0], 321))
    assert 0.5 * limit < sum(len(row[0]) for row in db.execute("SELECT payload FROM events"))
    assert 0 < len(kept) < 100
    assert sweep(db, file, max_bytes=limit) == 0


def test_file_full_of_dead_letters_is_left_alone(db: sqlite3.Connection, file: File) -> None:
    """Where nothing else is left, dead letters stay though the file is too large."""
    dead = append(db, "orders.dlq", *[bytes(10_000)] * 200)
    sweep(db, file, max_bytes=1024 * 1024)
    assert left(db) == dead


def test_unused_pages_are_given_back(db: sqlite3.Connection, file: File) -> None:
    """After much was deleted the file becomes smaller."""
    append(db, "orders", *[bytes(10_000)] * 1000, expires_ms=now_ms() - 1)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = file.path.stat().st_size
    sweep(db, file)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert file.path.stat().st_size < before / 2


def test_file_that_can_not_shrink_is_left_as_it_is(db: sqlite3.Connection, file: File) -> None:
    """Who has changed how the file is kept does not keep the writer busy for ever."""
    append(db, "orders", *[bytes(10_000)] * 1000, expires_ms=now_ms() - 1)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA auto_vacuum = NONE")
    db.execute("VACUUM")
    sweep(db, file)
    assert left(db) == []


# What every group has handled


def test_handled_events_are_deleted(db: sqlite3.Connection, file: File) -> None:
    """`delete_handled`: gone is what all groups have handled; the slowest one counts."""
    append(db, "orders", *numbered(10))
    cursor(db, "orders", 9)
    cursor(db, "orders", 4, group="slow")
    cursor(db, "other", 0, group="other")
    sweep(db, file, delete_handled=True)
    assert left(db) == [5, 6, 7, 8, 9, 10]
    assert sweep(db, file) == 0


def test_open_and_retried_events_are_kept(db: sqlite3.Connection, file: File) -> None:
    """What a group holds or has given back for later is not handled, nor what comes after it."""
    append(db, "orders", *numbered(10))
    cursor(db, "orders", 10, "[[7, 1], [9, 1]]")
    sweep(db, file, delete_handled=True)
    assert left(db) == [7, 8, 9, 10]
    cursor(db, "orders", 10)
    (number,), *_ = db.execute("SELECT cursors.id FROM cursors JOIN events USING (partition)")
    db.execute("INSERT INTO retries VALUES (?, 8, 1, 0, NULL)", (number,))
    sweep(db, file, delete_handled=True)
    assert left(db) == [8, 9, 10]
    db.execute("DELETE FROM retries")
    sweep(db, file, delete_handled=True)
    assert left(db) == []


def test_events_nobody_subscribed_to_are_kept(db: sqlite3.Connection, file: File) -> None:
    """Topics without a group keep their events, and so do dead letters; a pattern is a group's."""
    kept = append(db, "nobody", b"1")
    append(db, "orders.north", b"2")
    kept += append(db, "orders.north.dlq", b"3")
    append(db, "orders.south", b"4")
    cursor(db, "orders.{p1}", 4)
    sweep(db, file, delete_handled=True)
    assert left(db) == kept


def test_events_are_deleted_whose_group_came_later(db: sqlite3.Connection, file: File) -> None:
    """What nobody had subscribed to when it was looked at goes when a group has handled it."""
    append(db, "orders", *numbered(10))
    retention = Retention(file.connection(delete_handled=True))
    assert sweep_with(db, retention) == 0
    cursor(db, "orders", 9)
    sweep_with(db, retention)
    assert left(db) == [10]


def test_handled_events_behind_many_that_stay_are_deleted(
    db: sqlite3.Connection, file: File
) -> None:
    """However many events stay for other topics, those behind them go in their time."""
    kept = append(db, "nobody", *numbered(12_000))
    append(db, "orders", *numbered(10))
    cursor(db, "orders", 10**6)
    sweep(db, file, delete_handled=True)
    assert left(db) == kept


# Who reads meanwhile


def test_number_is_never_given_again(db: sqlite3.Connection, file: File) -> None:
    """After all was deleted new events have new numbers: cursors are not ahead of them."""
    (*_, last) = append(db, "orders", *numbered(10), ages=2 * HOUR)
    sweep(db, file, max_age=3600)
    assert append(db, "orders", b"new") == [last + 1]


async def test_reader_behind_a_deletion_goes_on(file: File) -> None:
    """A group whose events were deleted, all or many, goes on with those that are there."""
    await file.emit("orders", *numbered(500))
    async with file.subscribed("orders") as consumer:
        await ack_all(await take(consumer, 10))
        with closing(open_database(file.path, PARTITIONS)) as db:
            db.execute("DELETE FROM events WHERE seq <= 490")
            assert payloads(await take(consumer, 10)) == numbered(490, 500)
            db.execute("DELETE FROM events")
        await nothing_more(consumer)
        await file.emit("orders", b"new")
        assert payloads(await take(consumer, 1)) == [b"new"]


async def test_writer_deletes_by_itself(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses the file deletes what its URL says, and its consumer goes on."""
    monkeypatch.setattr(writer_module, "_SWEEP_EVERY", 0.05)
    await file.emit("orders", *numbered(20))
    async with file.subscribed("orders", delete_handled="true") as consumer:
        await ack_all(await take(consumer, 19))
        async with asyncio.timeout(5):
            while file.rows("SELECT count(*) FROM events") != [(1,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await file.emit("orders", b"new")
        assert len(await take(consumer, 2)) == 2
