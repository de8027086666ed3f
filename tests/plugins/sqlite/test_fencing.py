"""Consumers that were taken for dead."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispytch import Delivery, EventBase, EventEmitter, SettleError, Subscription
from dispytch.url import connect
from dispytch_sqlite import settling
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.consumer import SQLiteConsumer


class Happened(EventBase):
    __topic__ = "happened"
    __event_type__ = "happened"
    __key__ = "always the same"


@pytest.fixture
async def emitter(tmp_path: Path) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(f"sqlite:///{tmp_path}/events.db") as emitter:
        yield emitter


@pytest.fixture
async def consumer(tmp_path: Path, emitter: EventEmitter) -> AsyncIterator[SQLiteConsumer]:
    """One that renews its lease often, and does not wait for locks."""
    url = f"sqlite:///{tmp_path}/events.db?lease=0.5&lock_timeout=0.01"
    consumer = SQLiteConsumer(connect(url, SQLiteConnection))
    await consumer.start()
    await consumer.subscribe([Subscription("happened", "all")])
    yield consumer
    await consumer.stop()


async def receive(consumer: SQLiteConsumer) -> Delivery:
    async with asyncio.timeout(5):
        (delivery,) = await consumer.receive(1)
    return delivery


async def test_an_acknowledgement_that_is_late_costs_its_partition_nothing(
    tmp_path: Path,
    emitter: EventEmitter,
    consumer: SQLiteConsumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member that comes back, and gets its partition again, keeps it when its old claim fails."""
    monkeypatch.setattr(settling, "_PAUSE", 1.0)
    await emitter.emit(Happened(id="first"))
    delivery = await receive(consumer)
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.execute("BEGIN IMMEDIATE")
        acknowledging = asyncio.create_task(delivery.ack())
        while consumer._settling.problem is None:
            await asyncio.wait({acknowledging}, timeout=0.01)
        db.execute("UPDATE cursors SET owner = NULL")  # as others do after the end of its lease
        db.execute("DELETE FROM members")
        db.commit()
    again = await receive(consumer)
    with pytest.raises(SettleError):
        await acknowledging
    await again.ack()
    await emitter.emit(Happened(id="second"))
    await (await receive(consumer)).ack()


@pytest.mark.parametrize("change", ["owner = owner + 1", "epoch = epoch + 1"])
async def test_who_does_not_own_a_cursor_any_more_moves_it_no_further(
    tmp_path: Path, emitter: EventEmitter, consumer: SQLiteConsumer, change: str
) -> None:
    """Another's now, or its own again since: what it settles late is refused, and not written."""
    await emitter.emit(Happened())
    delivery = await receive(consumer)
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db, db:
        db.execute(f"UPDATE cursors SET {change}")
        before = db.execute("SELECT position, open FROM cursors").fetchall()
    with pytest.raises(SettleError):
        await delivery.ack()
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        assert db.execute("SELECT position, open FROM cursors").fetchall() == before
