"""Waking: at once in one process, soon between processes, and rarely when there is nothing."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dispytch import Outgoing
from dispytch_sqlite import news as news_module
from dispytch_sqlite.news import News
from plugins.sqlite.receiving import File, ack_all, take


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "events.db")


async def waking(file: File, process: int, pause: float = 0.0) -> list[float]:
    """Seconds from the commit of an event to its delivery, several times."""
    times: list[float] = []
    async with file.subscribed("orders") as consumer:
        for _ in range(15):
            receiving = asyncio.ensure_future(take(consumer, 1))
            await asyncio.sleep(pause)
            await file.emit("orders", b"1", process=process)
            committed = time.monotonic()
            await ack_all(await receiving)
            times.append(max(time.monotonic() - committed, 0.0))
    return times


async def test_event_of_this_process_wakes_at_once(file: File) -> None:
    """Nothing is waited for: not even a look is due when the consumer is told."""
    async with file.subscribed("orders", poll_interval=10) as consumer:
        await asyncio.sleep(0.02)
        news: Any = consumer._news
        news._latest -= 3600  # nothing has happened for an hour: the next look is far away
        receiving = asyncio.ensure_future(take(consumer, 1))
        await asyncio.sleep(0.02)
        began = time.monotonic()
        async with file.producer(poll_interval=10) as producer:  # the same URL, the same writer
            await producer.send_message(Outgoing("", "", "orders", b"1"))
            await receiving
        assert time.monotonic() - began < 1


async def test_event_of_another_process_wakes_soon(file: File) -> None:
    """While events come, another process' event is there within milliseconds."""
    assert median(await waking(file, process=1)) < 0.02


async def test_event_of_another_process_wakes_an_idle_consumer(file: File) -> None:
    """After a while of nothing it takes no longer than the poll interval, and a little."""
    async with file.subscribed("orders", poll_interval=0.1) as consumer:
        news: Any = consumer._news
        for _ in range(5):
            news._latest -= 3600
            receiving = asyncio.ensure_future(take(consumer, 1))
            await asyncio.sleep(0.15)
            await file.emit("orders", b"1", process=1)
            began = time.monotonic()
            await ack_all(await receiving)
            assert time.monotonic() - began < 0.1 + 0.5


class FakeLoop:
    """A clock that runs by jumps, and does what is due."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.real = asyncio.get_running_loop()
        patch.setattr(news_module, "time", self)

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def create_future(self) -> "asyncio.Future[None]":
        return self.real.create_future()

    def call_later(self, delay: float, call: Callable[[], object]) -> Any:
        self.due.append((self.now + delay, call))
        return asyncio.get_running_loop().call_soon(lambda: None)  # can be cancelled

    def run_until(self, end: float) -> int:
        """How many calls that were."""
        calls = 0
        while self.due and min(self.due, key=lambda each: each[0])[0] <= end:
            self.due.sort(key=lambda each: each[0])
            self.now, call = self.due.pop(0)
            call()
            calls += 1
        self.now = end
        return calls


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    path = tmp_path / "any.db"
    with closing(sqlite3.connect(path)) as ours, closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (n)")
        yield ours, other


def news_of(db: sqlite3.Connection, clock: FakeLoop, longest: float = 0.05) -> News:
    news = News(db, longest)
    news._loop = clock  # type: ignore[assignment]
    news.take_change()
    return news


async def begun(waiting: "asyncio.Task[None]") -> None:
    await asyncio.wait({waiting}, timeout=0)
    await asyncio.sleep(0)


async def test_looks_become_rare_when_nothing_happens(
    database: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each millisecond at first, then as rarely as is set: twenty times a second."""
    clock = FakeLoop(monkeypatch)
    news = news_of(database[0], clock)
    waiting = asyncio.ensure_future(news.wait(None))
    await begun(waiting)
    assert 40 <= clock.run_until(clock.now + 0.05) <= 51
    first = clock.run_until(clock.now + 10)
    assert first < 500
    assert 190 <= clock.run_until(clock.now + 10) <= 201
    assert not waiting.done()
    database[1].execute("INSERT INTO t VALUES (1)")
    database[1].commit()
    clock.run_until(clock.now + 0.05)
    await waiting
    assert news.take_change()
    assert not news.take_change()


async def test_looks_are_frequent_again_when_something_came(
    database: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour of nothing one event makes the next one welcome within a millisecond."""
    clock = FakeLoop(monkeypatch)
    news = news_of(database[0], clock)
    clock.now += 3600
    news.found()
    waiting = asyncio.ensure_future(news.wait(None))
    await begun(waiting)
    assert clock.run_until(clock.now + 0.0101) >= 9
    news.tell()
    await waiting


async def test_wait_ends_when_something_is_due(
    database: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry or a delayed event is not slept over, however rare the looks are."""
    clock = FakeLoop(monkeypatch)
    news = news_of(database[0], clock, longest=10)
    clock.now += 3600
    waiting = asyncio.ensure_future(news.wait(clock.now + 0.3))
    await begun(waiting)
    clock.run_until(clock.now + 0.29)
    await begun(waiting)
    assert not waiting.done()
    clock.run_until(clock.now + 0.02)
    await waiting


async def test_what_is_told_before_waiting_is_not_missed(
    database: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told between two waits, the next one ends at once; the one after it does not."""
    clock = FakeLoop(monkeypatch)
    news = news_of(database[0], clock)
    news.tell()
    await news.wait(None)
    waiting = asyncio.ensure_future(news.wait(None))
    await begun(waiting)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_cancelled_wait_looks_no_more(file: File) -> None:
    """A listener that stops receiving leaves no timer that looks."""
    async with file.subscribed("orders") as consumer:
        receiving = asyncio.ensure_future(take(consumer, 1))
        await asyncio.sleep(0.02)
        receiving.cancel()
        await asyncio.wait({receiving})
        news: Any = consumer._news
        assert news._timer.cancelled()
        await file.emit("orders", b"1", process=1)
        assert len(await take(consumer, 1)) == 1
