"""Processes that stand still while they have something of a file: its lock, or partitions."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dispytch import ConnectError, EmitRejected, Event, EventEmitter, EventListener
from dispytch.listener import session

pytest.importorskip("dispytch_sqlite")

from chaos.sqlite_child import Numbered, numbered
from chaos.sqlite_children import Children, Place, check_order, check_sound, stored, until

pytestmark = pytest.mark.chaos

LOCKED = "another process writes"
LANES = 64


class Load:
    """Emits events of many keys, some of each partition.

    Attributes:
        places: what was emitted.
    """

    def __init__(self, emitter: EventEmitter) -> None:
        self._emitter = emitter
        self._numbers = itertools.count()
        self.places: set[Place] = set()

    async def emit(self) -> None:
        """One event of each key."""
        number = next(self._numbers)
        await self._emitter.emit_many([numbered(lane, number) for lane in range(LANES)])
        self.places |= {(lane, number) for lane in range(LANES)}

    async def until(self, children: Children, true: Callable[[], bool]) -> None:
        """Emit until the children have written something down."""
        async with asyncio.timeout(10):
            while not true():
                await self.emit()
                children.record.read()


async def test_emits_beside_a_frozen_transaction_are_rejected_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emits wait for a process that stands still with the lock, then are told why they failed."""
    monkeypatch.setattr(session, "_PING_EVERY", 1.0)
    path, handled = tmp_path / "events.db", set()
    url = f"sqlite:///{path}?lock_timeout=0.5"
    listener = EventListener.from_url(url, group="here")

    @listener.handler(Numbered)
    async def note(event: Event[Numbered]) -> None:
        handled.add(event.id)

    async with Children(url, tmp_path) as children, EventEmitter.from_url(url) as emitter, listener:
        await emitter.emit(numbered(0, 0))
        frozen = await children.fork("freeze_in_transaction", lane=1)
        await children.frozen(frozen)

        began = time.monotonic()
        emits = [emitter.emit(numbered(2, number)) for number in range(20)]
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        waited = time.monotonic() - began
        assert 0.5 <= waited < 2
        for outcome in outcomes:
            assert isinstance(outcome, EmitRejected), outcome
            assert LOCKED in str(outcome)
            assert outcome.retriable
        with pytest.raises(ConnectError, match=LOCKED):
            await listener.consumer.ping()
        await until(lambda: LOCKED in str(listener.health().problems), 10, "health() tells")

        os.kill(frozen, signal.SIGCONT)
        await children.record.until(lambda: (1, 0) in children.record.confirmed, 10, "it goes on")
        await children.kill(frozen)
        await emitter.emit(numbered(0, 1))
        await until(lambda: bool(listener.health()), 10, "all is well")
        places = {place for _, place in stored(path)}
        children.record.read()
        assert {(0, 0), (0, 1), *children.record.confirmed} <= places
        assert not [place for place in places if place[0] == 2]
        ids = {f"{lane}.{number}" for lane, number in places}
        await until(lambda: handled == ids, 10, "all are handled")
    check_sound(path)


async def test_a_listener_frozen_beyond_its_lease_is_replaced_and_fenced(tmp_path: Path) -> None:
    """Another takes over; what the frozen one then settles does not count, and it comes back."""
    path, stuck = tmp_path / "events.db", (3, 2)
    url = f"sqlite:///{path}?lease=0.5"
    async with Children(url, tmp_path) as children, EventEmitter.from_url(url) as emitter:
        load, record = Load(emitter), children.record
        for _ in range(5):
            await load.emit()
        frozen = await children.fork("listen", freeze="3.2")
        await children.frozen(frozen)
        other = await children.fork("listen", hang="3.2")
        await record.until(lambda: stuck in record.taken[other], 10, "another takes over")

        os.kill(frozen, signal.SIGCONT)
        await record.until(lambda: (stuck, frozen) in record.handled, 10, "it goes on")
        before = load.places.copy()
        await load.until(children, lambda: not before.issuperset(record.taken[frozen]))
        assert "taken for dead" in children.told()
        assert stuck in _open(path)

        await children.kill(other)  # it had not settled what the frozen one settled too late
        await record.until(lambda: load.places <= set(record.places()), 10, "all are handled")
        assert record.taken[frozen].count(stuck) == 2
    check_order(record.places(), "handled")


def _open(path: Path) -> set[tuple[int, int]]:
    """What is not done of what was delivered, as the file has it."""
    places = dict(stored(path))
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT open FROM cursors").fetchall()
    return {places[seq] for (listed,) in rows for seq, _ in json.loads(listed)}


async def test_listeners_locked_out_beyond_their_leases_go_on_with_all_partitions(
    tmp_path: Path,
) -> None:
    """When no lease could be renewed in time, the group still handles everything, in order."""
    url = f"sqlite:///{tmp_path}/events.db?lease=0.5&lock_timeout=0.2"
    async with Children(url, tmp_path) as children, EventEmitter.from_url(url) as emitter:
        load, record = Load(emitter), children.record
        for _ in range(2):
            await children.fork("listen")
        await load.until(children, lambda: len(record.taken) == 2)  # both share the work
        for lane in range(3):
            await load.emit()
            frozen = await children.fork("freeze_in_transaction", lane=LANES + lane)
            await children.frozen(frozen)
            await asyncio.sleep(1.0)  # two leases, while what was handled can't be settled
            await children.kill(frozen)
        await load.emit()
        await record.until(lambda: load.places <= set(record.places()), 10, "all are handled")
    check_order(record.places(), "handled")
