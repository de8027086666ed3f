"""Processes that are killed while they write to a file."""

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from dispytch import EventEmitter
from dispytch.testing.conformance.kit import is_short

pytest.importorskip("dispytch_sqlite")

from chaos.sqlite_child import numbered
from chaos.sqlite_children import Children, Place, check_order, check_sound, stored, until

pytestmark = pytest.mark.chaos

logger = logging.getLogger("chaos")

EMITTERS, LISTENERS = 2, 2
LANES = 4  # of each emitter, so many emits at once
LONGEST = 0.05  # seconds that a process lives at most once it is at work
MAKING = 0.01  # seconds, about, that a file is being made
SOMETIMES, RARELY = 5, 10  # kills of emitters for one of a listener, and for a look at the file


class _Killing:
    """Kills emitters and listeners at random instants, and puts others in their place."""

    def __init__(self, children: Children, chance: random.Random) -> None:
        self._children, self._chance = children, chance
        self._emitters: list[int] = []
        self._listeners: list[int] = []
        self._generation = 0
        self.under_way: list[set[Place]] = []
        self.handlers_hit = 0

    async def begin(self) -> None:
        self._listeners = [await self._children.fork("listen") for _ in range(LISTENERS)]
        self._emitters = [await self._emitter(number) for number in range(EMITTERS)]

    async def kill_an_emitter(self, *, is_last: bool = False) -> None:
        record, number = self._children.record, self._chance.randrange(len(self._emitters))
        victim = self._emitters[number]
        await record.until(lambda: victim in record.begun, 20, "an emitter emits")
        await asyncio.sleep(self._chance.uniform(0, LONGEST))
        await self._children.kill(victim)
        record.read()
        self.under_way.append(record.under_way(victim))
        if is_last:
            del self._emitters[number]
        else:
            self._emitters[number] = await self._emitter(number)

    async def kill_a_listener(self) -> None:
        record, number = self._children.record, self._chance.randrange(LISTENERS)
        victim = self._listeners[number]
        await asyncio.sleep(self._chance.uniform(0, LONGEST))
        await self._children.kill(victim)
        record.read()
        mine = Counter(place for place, pid in record.handled if pid == victim)
        self.handlers_hit += Counter(record.taken[victim]) != mine
        self._listeners[number] = await self._children.fork("listen")

    async def _emitter(self, number: int) -> int:
        self._generation += 1
        lanes = list(range(number * LANES, (number + 1) * LANES))
        return await self._children.fork("emit", lanes=lanes, first=self._generation * 1_000_000)


async def test_kills_of_writers_lose_and_damage_nothing(tmp_path: Path) -> None:
    """Killed at any instant: the file is sound, and what was confirmed is there, once, in order."""
    seed, kills = random.randrange(2**32), 30 if is_short() else 300
    path, began = tmp_path / "events.db", time.monotonic()
    async with Children(f"sqlite:///{path}?lease=0.5", tmp_path) as children:
        killing = _Killing(children, random.Random(seed))
        await killing.begin()
        for count in range(1, kills + 1):
            await killing.kill_an_emitter(is_last=count > kills - EMITTERS)
            if count % SOMETIMES == 0:
                await killing.kill_a_listener()
            if count % RARELY == 0:
                check_sound(path, "quick_check")
        killed_in = time.monotonic() - began
        log, record = stored(path), children.record
        places = {place: seq for seq, place in log}
        await record.until(lambda: places.keys() <= set(record.places()), 60, f"all, seed {seed}")
    check_sound(path)
    hits = [each for each in killing.under_way if each]
    late = places.keys() & set().union(*hits)
    about = (
        f"seed {seed}, {kills} kills in {killed_in:.1f} s, {len(hits)} of them while "
        f"{sum(map(len, hits))} emits were under way, {len(late)} of which are stored; "
        f"{killing.handlers_hit} more hit handlers; {len(record.confirmed)} events confirmed, "
        f"{len(log)} stored, handled {len(record.handled)} times"
    )
    logger.info(about)
    assert len(hits) >= 0.95 * kills, about
    lost = {place for place, seq in record.confirmed.items() if places.get(place) != seq}
    assert not lost, f"{len(lost)} are not where their receipts say: {about}"
    assert len(places) == len(log), f"some are stored twice: {about}"
    assert set(record.places()) == places.keys(), about
    check_order((place for _, place in log), f"in the log: {about}")
    check_order(record.places(), f"handled: {about}")


async def test_a_file_whose_maker_was_killed_serves_the_next_one(tmp_path: Path) -> None:
    """Killed at any instant while it makes a file: the next process goes on with what there is."""
    seed, kills = random.randrange(2**32), 10 if is_short() else 100
    chance, numbers, hits = random.Random(seed), itertools.count(), 0
    async with Children("", tmp_path) as children:
        while hits < kills:
            path = tmp_path / f"{next(numbers)}.db"
            url = f"sqlite:///{path}"
            maker = await children.fork("emit", url=url, lanes=[0], first=0)
            await until(path.exists, 20, "a file is there")
            await asyncio.sleep(chance.uniform(0, MAKING))
            await children.kill(maker)
            children.record.read()
            hits += not children.record.begun[maker]
            async with EventEmitter.from_url(url) as emitter:
                await emitter.emit(numbered(1, 0))
            check_sound(path)
            assert (1, 0) in dict(stored(path)).values(), f"seed {seed}"
    logger.info("seed %d, %d kills, %d while a file was made", seed, next(numbers), hits)
