"""The consumer: settling, retries, delays, expiry, and what it leaves in the file."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dispytch import ConfigError, SettleError, Subscription
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer
from dispytch_sqlite import consumer as consumer_module
from dispytch_sqlite import log as log_module
from dispytch_sqlite.delivery import Share, SQLiteDelivery
from dispytch_sqlite.errors import WriteError
from dispytch_sqlite.group import Member
from dispytch_sqlite.settling import Settling
from plugins.sqlite.receiving import File, ack_all, nothing_more, numbered, payloads, take


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "events.db")


# Groups


async def test_new_group_begins_where_it_is_told(file: File) -> None:
    """`begin` decides what of the past a new group gets; one that was there goes on."""
    await file.emit("orders", b"old")
    file.rows("UPDATE events SET at_ms = at_ms - 60000")
    await file.emit("orders", b"new")
    minute = datetime.now(UTC) - timedelta(seconds=30)
    expected: dict[Any, list[bytes]] = {
        "first": [b"old", b"new"], minute: [b"new"], "latest": [],
    }  # fmt: skip
    for number, (begin, came) in enumerate(expected.items()):
        async with file.subscribed("orders", group=f"g{number}", begin=begin) as consumer:
            assert payloads(await take(consumer, len(came))) == came
            await file.emit("orders", b"next")
            assert payloads(await take(consumer, 1)) == [b"next"]
        file.rows("DELETE FROM events WHERE payload = ?", b"next")
    async with file.subscribed("orders", group="g2", begin="first") as consumer:
        await file.emit("orders", b"next")
        assert payloads(await take(consumer, 1)) == [b"next"]


async def test_each_group_gets_all(file: File) -> None:
    """What one group has handled is there for every other one."""
    await file.emit("orders", *numbered(20))
    for group in ("billing", "audit"):
        async with file.subscribed("orders", group=group) as consumer:
            came = await take(consumer, 20)
            assert payloads(came) == numbered(20)
            await ack_all(came)


async def test_consumer_of_two_groups_is_refused(file: File) -> None:
    """A consumer belongs to one group."""
    consumer = SQLiteConsumer(file.connection())
    await consumer.start()
    with pytest.raises(ConfigError, match="one group"):
        await consumer.subscribe([Subscription("orders", "a"), Subscription("orders", "b")])
    await consumer.stop()


# Settling


async def test_exactly_the_open_ones_come_again(file: File) -> None:
    """Acknowledged in any order: after the death of their owner those that were open come."""
    await file.emit("orders", *numbered(20), key="one")
    async with file.subscribed("orders") as first:
        came = await take(first, 15)
        for number in (14, 3, 7, 0, 1):
            await came[number].ack()
        file.kill(first)
        async with file.subscribed("orders", process=1) as second:
            again = await take(second, 15)
            done = {14, 3, 7, 0, 1}
            left = [number for number in range(20) if number not in done]
            assert payloads(again) == [b"%d" % number for number in left]
            assert [each.attempt for each in again] == [2] * 10 + [1] * 5
            with pytest.raises(SettleError):
                await came[2].ack()
            await ack_all(again)
            await nothing_more(second)


async def test_delivery_is_settled_once(file: File) -> None:
    """A delivery that was settled can't be settled again, and neither can one after the end."""
    await file.emit("orders", *numbered(4))
    async with file.subscribed("orders") as consumer:
        acked, again, later, kept = await take(consumer, 4)
        await acked.ack()
        await again.nack()
        await later.nack(60)
        for settled in (acked, again, later):
            with pytest.raises(SettleError):
                await settled.ack()
            with pytest.raises(SettleError):
                await settled.nack()
            with pytest.raises(SettleError):
                await settled.nack(1)
        (second,) = await take(consumer, 1)
        assert (second.payload, second.attempt) == (again.payload, 2)
    for stopped in (kept, second):
        with pytest.raises(SettleError):
            await stopped.ack()
        with pytest.raises(SettleError):
            await stopped.nack()


async def test_delivery_without_a_group_is_not_settled_after_the_end(file: File) -> None:
    """A consumer that was stopped settles nothing any more, in a group or not."""
    async with file.subscribed("orders", group=None) as consumer:
        await file.emit("orders", b"1")
        (late,) = await take(consumer, 1)
    with pytest.raises(SettleError):
        await late.ack()


async def test_nack_brings_it_before_those_after_it(file: File) -> None:
    """What is given back at once comes next, the oldest first."""
    await file.emit("orders", *numbered(6), key="one")
    async with file.subscribed("orders") as consumer:
        came = await take(consumer, 3)
        for delivery in reversed(came):
            await delivery.nack()
        again = await take(consumer, 6)
        assert payloads(again) == numbered(6)
        assert [each.attempt for each in again] == [2, 2, 2, 1, 1, 1]


async def test_acknowledgements_wait_for_who_has_the_lock(file: File) -> None:
    """While another process writes for long, what is done stays done and is written afterwards."""
    await file.emit("orders", *numbered(3))
    async with file.subscribed("orders", lock_timeout=0.05) as consumer:
        came = await take(consumer, 3)
        with file.opened() as other:
            other.execute("BEGIN IMMEDIATE")
            acks = [asyncio.ensure_future(delivery.ack()) for delivery in came]
            done, _ = await asyncio.wait(acks, timeout=0.3)
            assert not done
            other.execute("COMMIT")
        await asyncio.gather(*acks)
        await consumer.ping()
        await nothing_more(consumer)
    async with file.subscribed("orders") as consumer:
        await nothing_more(consumer)


async def test_consumer_that_can_not_write_its_end_leaves_the_group_nevertheless(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the file is locked, it renews its lease no longer: the others take over."""
    monkeypatch.setattr(consumer_module, "_LAST_WRITE", 0.1)
    await file.emit("orders", b"1")
    options: dict[str, Any] = {"lock_timeout": 0.05, "lease": 0.5}
    async with file.producer(**options):  # keeps the writer of this process going
        async with file.subscribed("orders", **options) as first:
            (late,) = await take(first, 1)
            with file.opened() as other:
                other.execute("BEGIN IMMEDIATE")
                acking = asyncio.ensure_future(late.ack())
                await asyncio.wait({acking}, timeout=0.1)
                await first.stop()
                other.execute("COMMIT")
            with pytest.raises(SettleError):
                await acking
        async with file.subscribed("orders", process=1) as second:
            assert payloads(await take(second, 1, within=5)) == [b"1"]


class FakeWriter:
    """Writes when it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, asyncio.Future[Any]]] = []

    def run(self, call: Any) -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        self.calls.append((call, future))
        return future


async def test_share_that_was_lost_takes_no_new_one_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What could not be written for a share fails when it is lost; its cursor may be ours anew."""
    monkeypatch.setattr("dispytch_sqlite.settling._PAUSE", 0)
    writer: Any = FakeWriter()
    settling = Settling(writer, lambda: None)
    settling.member = Member(1, "g", ("orders",))
    old = Share(settling, "orders", 0, 5, cursor=7, epoch=1)
    acking = asyncio.ensure_future(SQLiteDelivery(old, 5, "orders", b"").ack())
    later = asyncio.ensure_future(SQLiteDelivery(old, 4, "orders", b"").nack(9))
    await asyncio.sleep(0.01)
    ((_, writing),) = writer.calls
    writing.set_exception(WriteError(TimeoutError(), committing=False))
    await asyncio.sleep(0)
    old.lose()
    new = Share(settling, "orders", 0, 3, cursor=7, epoch=2)
    settling.touch(new)
    await asyncio.sleep(0.05)
    _, writing = writer.calls[1]
    writing.set_result({old.tenure})
    for lost in (acking, later):
        with pytest.raises(SettleError):
            await lost
    assert new.is_ours


# Later


async def test_delayed_retry_comes_when_it_is_due_and_blocks_nothing(file: File) -> None:
    """Given back with a delay, an event comes alone, not early, with what the listener wrote."""
    await file.emit("orders", *numbered(3), key="one", headers={"raw": b"\xff"})
    async with file.subscribed("orders") as consumer:
        (first,) = await take(consumer, 1)
        began = time.time()
        first.headers = (*first.headers, ("x-dispytch-for-handlers", b"one,two"))
        await first.nack(0.3)
        others = await take(consumer, 2)
        assert payloads(others) == [b"1", b"2"]
        assert time.time() - began < 0.3
        await ack_all(others)
        (again,) = await take(consumer, 1)
        assert 0.3 <= time.time() - began < 2
        assert (again.payload, again.topic, again.key) == (b"0", "orders", "one")
        assert again.attempt == 2
        assert again.headers == (("raw", b"\xff"), ("x-dispytch-for-handlers", b"one,two"))
        await again.nack(0.05)
        (third,) = await take(consumer, 1)
        assert (third.attempt, third.headers) == (3, again.headers)
        await third.nack()
        (fourth,) = await take(consumer, 1)
        assert (fourth.attempt, fourth.headers) == (4, again.headers)
        await fourth.ack()
        assert file.rows("SELECT * FROM retries") == []
        await nothing_more(consumer)


async def test_delayed_retry_survives_the_death_of_its_owner(file: File) -> None:
    """It is due when it was to be, for whoever has its partition then; before, and under way."""
    await file.emit("orders", b"1")
    async with file.subscribed("orders") as first:
        (delivery,) = await take(first, 1)
        began = time.time()
        delivery.headers = (("told", b"1"),)
        await delivery.nack(0.3)
        file.kill(first)
        async with file.subscribed("orders", process=1) as second:
            (again,) = await take(second, 1)
            assert 0.3 <= time.time() - began < 2
            assert (again.attempt, again.headers) == (2, (("told", b"1"),))
            file.kill(second)
            async with file.subscribed("orders", process=2) as third:
                (last,) = await take(third, 1)
                assert (last.attempt, last.headers) == (2, (("told", b"1"),))
                await last.ack()
    assert file.rows("SELECT * FROM retries") == []


async def test_settled_retry_does_not_come_before_that_is_written(file: File) -> None:
    """However long another process has the lock: a retry that was settled comes no second time."""
    await file.emit("orders", *numbered(2))
    async with file.subscribed("orders") as consumer:
        for delivery in await take(consumer, 2):
            await delivery.nack(0.01)
        acked, later = await take(consumer, 2)
        with file.opened() as other:
            other.execute("BEGIN IMMEDIATE")
            settling = [asyncio.ensure_future(each) for each in (acked.ack(), later.nack(0.3))]
            await nothing_more(consumer)
            other.execute("COMMIT")
        await asyncio.gather(*settling)
        (again,) = await take(consumer, 1)
        assert (again.payload, again.attempt) == (later.payload, 3)
        await nothing_more(consumer)


async def test_retry_of_a_deleted_event_is_forgotten(file: File) -> None:
    """What retention has deleted meanwhile does not come, and leaves nothing."""
    await file.emit("orders", *numbered(2))
    async with file.subscribed("orders") as consumer:
        for delivery in await take(consumer, 2):
            await delivery.nack(0.1)
        file.rows("DELETE FROM events WHERE payload = ?", b"0")
        (left,) = await take(consumer, 1)
        assert left.payload == b"1"
        await left.ack()
        await nothing_more(consumer)
        assert file.rows("SELECT * FROM retries") == []


async def test_delayed_events_join_the_log_once_and_in_order(file: File) -> None:
    """Held back over the end of their process, they come once, those due first before others."""
    for number, delay in enumerate((0.4, 0.2, 0.3)):
        await file.emit("orders", b"%d" % number, key="one", delay=delay)
    began = time.monotonic()
    await file.emit("orders", b"at once", key="one")
    async with (
        file.subscribed("orders") as first,
        file.subscribed("orders", group="h", process=1) as second,
        file.subscribed("orders", group="i", process=2) as third,
    ):
        for came in await asyncio.gather(*(take(each, 4) for each in (first, second, third))):
            assert payloads(came) == [b"at once", b"1", b"2", b"0"]
        assert time.monotonic() - began > 0.2
        await asyncio.gather(*(nothing_more(each) for each in (first, second, third)))
    assert file.rows("SELECT count(*) FROM delayed") == [(0,)]
    assert file.rows("SELECT count(*) FROM events") == [(4,)]


async def test_many_delayed_events_join_the_log_part_by_part(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are due at once, others can write in between, and none waits for the next."""
    monkeypatch.setattr(log_module, "_MOST_DUE", 3)
    await file.emit("orders", *numbered(10), key="one", delay=0.05)
    async with file.subscribed("orders") as consumer:
        assert payloads(await take(consumer, 10)) == numbered(10)


async def test_backlog_is_of_the_file_that_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it did at the start, and counting makes no file."""
    monkeypatch.chdir(tmp_path)
    consumer = SQLiteConsumer(connect("sqlite:///events.db", SQLiteConnection))
    await consumer.start()
    await consumer.subscribe([Subscription("orders", "g")])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert await consumer.backlog() == 0
    await consumer.stop()
    assert list(elsewhere.iterdir()) == []


async def test_delayed_event_is_appended_though_there_is_always_more(file: File) -> None:
    """A consumer that is never idle does not keep what is due back."""
    await file.emit("orders", *numbered(500))
    await file.emit("orders", b"due", delay=0.05)
    await asyncio.sleep(0.06)
    async with file.subscribed("orders") as consumer:
        async with asyncio.timeout(10):
            while file.rows("SELECT * FROM delayed"):
                (delivery,) = await consumer.receive(1)
                assert delivery.payload != b"499", "the log was read to its end before"


# Expiry


async def test_expired_event_comes_no_more(file: File) -> None:
    """Its time over, an event is not delivered: waiting, open or to be retried."""
    await file.emit("orders", b"retried", b"open", ttl=0.4)
    async with file.subscribed("orders") as first:
        retried, _ = await take(first, 2)
        await file.emit("orders", b"waiting", ttl=0.05)
        await retried.nack(0.45)
        await asyncio.sleep(0.5)
        await file.emit("orders", b"last")
        file.kill(first)
        async with file.subscribed("orders", process=1) as second:
            assert payloads(await take(second, 1)) == [b"last"]
            await nothing_more(second, 0.3)
            assert await second.backlog() == 1
            assert file.rows("SELECT * FROM retries") == []


async def test_event_that_expires_in_time_is_delivered(file: File) -> None:
    """A time to live that is not over keeps nothing back."""
    await file.emit("orders", b"1", ttl=60)
    async with file.subscribed("orders") as consumer:
        assert payloads(await take(consumer, 1)) == [b"1"]


# Without a group


async def test_consumer_without_a_group_leaves_nothing_behind(file: File) -> None:
    """It gets what comes after it, again when it was given back, and the file knows nothing of it.

    Others without a group get the same.
    """
    await file.emit("orders", b"before")
    async with (
        file.subscribed("orders", group=None) as consumer,
        file.subscribed("orders", group=None, process=1) as other,
    ):
        await file.emit("orders", *numbered(2))
        came, _ = await take(consumer, 2)
        began = time.monotonic()
        await came.nack(0.2)
        (again,) = await take(consumer, 1)
        assert time.monotonic() - began >= 0.19
        assert (again.payload, again.attempt) == (b"0", 2)
        await again.nack()
        (third,) = await take(consumer, 1)
        assert third.attempt == 3
        await third.ack()
        await nothing_more(consumer)
        assert payloads(await take(other, 2)) == numbered(2)
        assert await consumer.backlog() is None
        for table in ("cursors", "members", "retries"):
            assert file.rows(f"SELECT * FROM {table}") == []


# Backlog


async def test_backlog_counts_what_waits_and_what_is_under_way(file: File) -> None:
    """Waiting, delivered, given back for later: each counts once until it is done."""
    await file.emit("orders", *numbered(10))
    await file.emit("other", *numbered(5))
    async with (
        file.subscribed("orders") as consumer,
        file.subscribed("orders", "other", group="h", process=1) as all_of_it,
    ):
        assert (await consumer.backlog(), await all_of_it.backlog()) == (10, 15)
        came = await take(consumer, 6)
        assert await consumer.backlog() == 10
        await ack_all(came[:2])
        assert await consumer.backlog() == 8
        await came[2].nack(0.05)
        await came[3].nack()
        assert await consumer.backlog() == 8
        rest = await take(consumer, 6)
        await came[4].ack()
        assert await consumer.backlog() == 7
        await ack_all([*rest, came[5]])
        assert await consumer.backlog() == 0
        await file.emit("orders", b"brief", ttl=0.01)
        await file.emit("orders", b"later", delay=60)
        await asyncio.sleep(0.02)
        assert (await consumer.backlog(), await all_of_it.backlog()) == (0, 15)
