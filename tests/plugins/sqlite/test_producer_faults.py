"""SQLiteProducer when the disk is full or fails, or the file is locked: what it tells is true."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from dispytch import (
    EmitError,
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Outgoing,
    ProducerTimeout,
    Receipt,
)
from dispytch.listener import session
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteProducer, sharing
from dispytch_sqlite import producer as producing
from dispytch_sqlite.retention import Retention
from plugins.sqlite.faults import can_mount, faulty, full_disk, held_up, small_disk

DISKS = ["tmpfs", "limit"] if can_mount() else ["limit"]


class Stored(EventBase):
    __topic__ = "store"
    __event_type__ = "stored"
    __key__ = "{lane}"

    lane: str = "a"
    number: int = 0
    text: str = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def producer(path: Path) -> AsyncIterator[SQLiteProducer]:
    producer = SQLiteProducer(connect(f"sqlite:///{path}?lock_timeout=60", SQLiteConnection))
    await producer.start()
    yield producer
    await producer.stop()


def out(number: int = 0, key: str | None = None) -> Outgoing:
    return Outgoing(str(number), "stored", "store", b"%d" % number, key)


def payloads(path: Path) -> list[int]:
    """What is in the log, as another connection sees it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [int(row[0]) for row in db.execute("SELECT payload FROM events ORDER BY seq")]


def numbers(path: Path) -> list[int]:
    """The same, of `Stored` events."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        query = "SELECT json_extract(CAST(payload AS TEXT), '$.body.number') FROM events ORDER BY 1"
        return [row[0] for row in db.execute(query)]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program is writing meanwhile."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def outcome(emit: Awaitable[Any]) -> Any:
    """What an emit returns, or its error."""
    try:
        return await emit
    except EmitError as error:
        return error


async def given() -> None:
    """Let tasks that were made hand over what they emit."""
    for _ in range(5):
        await asyncio.sleep(0)


# A full disk


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """SQLite itself says that the file may not grow."""
    (writer,) = sharing.writers()
    (pages,) = writer._db.execute("PRAGMA page_count").fetchone()
    writer._db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        writer._db.execute("PRAGMA max_page_count = 1000000")


@pytest.fixture(params=DISKS)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[], AbstractContextManager[None]]]]:
    """Where there is a disk, and what fills it."""
    if request.param == "limit":
        yield tmp_path, _limited
        return
    with small_disk(tmp_path) as place:
        yield place, lambda: full_disk(place)


async def test_a_full_disk_rejects_and_has_room_again(
    disk: tuple[Path, Callable[[], AbstractContextManager[None]]],
) -> None:
    """Nothing rejected is there, nothing confirmed is lost, the file stays sound."""
    place, fill = disk
    path = place / "events.db"
    large = "x" * 20_000
    async with EventEmitter.from_url(f"sqlite:///{path}") as emitter:
        await emitter.emit(Stored(number=1))
        with fill():
            for number in (2, 3):
                with pytest.raises(EmitRejected, match="the disk is full") as caught:
                    await emitter.emit(Stored(number=number, text=large))
                assert caught.value.retriable
                assert str(caught.value).startswith("nothing was stored")
            with pytest.raises(EmitManyError) as several:
                await emitter.emit_many([Stored(number=4, text=large) for _ in range(3)])
            assert {type(result) for result in several.value.results} == {EmitRejected}
            assert numbers(path) == [1]
        await emitter.emit(Stored(number=5, text=large))
        await emitter.emit_many([Stored(number=6), Stored(number=7)])
        assert numbers(path) == [1, 5, 6, 7]
    assert numbers(path) == [1, 5, 6, 7]


async def test_a_full_disk_is_told_to_who_opens_a_file(
    disk: tuple[Path, Callable[[], AbstractContextManager[None]]],
) -> None:
    """A disk without room for the first page; a new file when there is room again."""
    place, fill = disk
    async with EventEmitter.from_url(f"sqlite:///{place}/first.db"):
        pass
    if fill is _limited:  # only a real disk is full for a file that is not open yet
        return
    emitter = EventEmitter.from_url(f"sqlite:///{place}/events.db")
    with fill(), pytest.raises(Exception, match="disk is full") as caught:
        await emitter.start()
    assert caught.value.retriable  # type: ignore[attr-defined]
    async with emitter:
        await emitter.emit(Stored(number=1))
    assert numbers(place / "events.db") == [1]


async def test_what_fits_is_stored_beside_what_does_not(path: Path) -> None:
    """Each producer's part of a commit that failed is tried by itself."""
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url) as one, EventEmitter.from_url(url) as two:
        await one.emit(Stored(number=1))
        with _limited():
            async with held_up():
                large = asyncio.create_task(outcome(one.emit(Stored(text="x" * 20_000))))
                small = asyncio.create_task(outcome(two.emit(Stored(number=2))))
                await given()
            assert isinstance(await large, EmitRejected)
            assert isinstance(await small, Receipt)
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("fault", DISKS)
async def test_what_is_done_while_the_disk_is_full_runs_once(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement is kept and written when there is room; health tells meanwhile."""
    monkeypatch.setattr(session, "_PING_EVERY", 0.02)
    handled: list[int] = []
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(small_disk(tmp_path)) if fault == "tmpfs" else tmp_path
        url = f"sqlite:///{place}/events.db"
        full = stack.enter_context(contextlib.ExitStack())

        def made() -> EventListener:
            listener = EventListener.from_url(url, group="g")

            @listener.handler(Stored)
            async def store(event: Event[Stored]) -> None:
                handled.append(event.body.number)
                if event.body.number == 1 and fault == "tmpfs":
                    full.enter_context(full_disk(place))
                elif event.body.number == 1:
                    faulty().fail(float("inf"), sqlite3.SQLITE_FULL)

            return listener

        async with EventEmitter.from_url(url) as emitter, made() as listener:
            await emitter.emit(Stored(number=1))
            async with asyncio.timeout(5):
                while listener.health():  # noqa: ASYNC110 - health tells no event
                    await asyncio.sleep(0.005)
            assert "the disk is full" in listener.health().problems[0]
            assert handled == [1]
            full.close()
            if fault == "limit":
                (writer,) = sharing.writers()
                writer._db.heal()  # type: ignore[attr-defined]
            async with asyncio.timeout(5):
                while not listener.health():  # noqa: ASYNC110 - health tells no event
                    await asyncio.sleep(0.005)
        async with EventEmitter.from_url(url) as emitter, made() as listener:
            await emitter.emit(Stored(number=2))
            async with asyncio.timeout(5):
                while handled[-1] != 2:  # noqa: ASYNC110 - a list tells nobody
                    await asyncio.sleep(0.005)
    assert handled == [1, 2]


# A disk that fails


@pytest.mark.parametrize("are_stored", [False, True], ids=["lost", "stored"])
async def test_a_disk_that_fails_to_confirm_leaves_it_unknown(
    path: Path, *, are_stored: bool
) -> None:
    """It may be there; so it is written by nobody again, neither alone nor with others."""
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url) as one, EventEmitter.from_url(url) as two:
        db = faulty()
        db.fail(1, sqlite3.SQLITE_IOERR_FSYNC, after=1, are_stored=are_stored)
        async with held_up():
            emits = [
                asyncio.create_task(outcome(each.emit(Stored(number=number))))
                for number, each in enumerate((one, two))
            ]
            await given()
        results = await asyncio.gather(*emits)
        assert db.commits == 2  # the first one is of what held the writer up
    for result in results:
        assert type(result) is EmitUnknown
        assert result.retriable
        assert str(result).startswith("it may be stored: the disk or the memory failed")
    assert numbers(path) == ([0, 1] if are_stored else [])


async def test_a_disk_that_fails_before_the_commit_rejects(
    producer: SQLiteProducer, path: Path
) -> None:
    """What was written is taken back, and that is certain."""
    (writer,) = sharing.writers()
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR"
    append = writer.log.append

    def fails(*arguments: Any) -> Any:
        append(*arguments)
        raise error

    assert producer._batches is not None
    producer._batches._write = fails
    with pytest.raises(EmitRejected, match="nothing was stored") as caught:
        await producer.send_message(out(1))
    assert caught.value.__cause__ is error
    producer._batches._write = append
    await producer.send_message(out(2))
    assert payloads(path) == [2]


async def test_a_topic_that_was_rolled_back_is_made_again(
    producer: SQLiteProducer, path: Path
) -> None:
    """The writer knows the numbers of topics by heart, but not of one that is not there."""
    faulty().fail(1, sqlite3.SQLITE_FULL)
    with pytest.raises(EmitRejected):
        await producer.send_message(out(1))
    await producer.send_message(out(2))
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT name, payload FROM events JOIN topics ON id = topic"
        assert db.execute(query).fetchall() == [("store", b"2")]


async def test_a_failure_holds_back_what_follows_in_a_batch(
    producer: SQLiteProducer, path: Path
) -> None:
    """Events of its key are not sent after it; those of others are."""
    faulty().fail(1, sqlite3.SQLITE_FULL)
    batch = [out(number, "a") for number in range(1500)] + [out(1500, "b")]
    outcomes = await producer.send_messages(batch)
    assert [type(each) for each in outcomes[:1500]] == [EmitRejected] * 1500
    assert "not sent" in str(outcomes[1000])
    assert isinstance(outcomes[1500], dict)
    assert payloads(path) == [1500]


async def test_a_batch_is_not_split_by_what_waits_before_it(
    producer: SQLiteProducer, path: Path
) -> None:
    """Its first events would be rejected and its last ones, of the same key, accepted."""
    faulty().fail(1, sqlite3.SQLITE_FULL, after=2)
    async with held_up():
        first = asyncio.create_task(outcome(producer.send_message(out())))
        await given()
        singles = [
            asyncio.create_task(outcome(producer.send_message(out(n)))) for n in range(1, 700)
        ]
        batch = asyncio.create_task(
            producer.send_messages([out(number, "a") for number in range(700, 1600)])
        )
        await given()
    assert isinstance(await first, dict)
    results = [*await asyncio.gather(*singles), *await batch]
    assert {type(result) for result in results} == {EmitRejected}
    assert payloads(path) == [0]


# A file that is locked


async def test_a_locked_file_rejects_after_a_while(path: Path) -> None:
    """It says why, and that trying again may help; then it does."""
    async with EventEmitter.from_url(f"sqlite:///{path}?lock_timeout=0.05") as emitter:
        with locked(path), pytest.raises(EmitRejected, match="another process writes") as caught:
            await emitter.emit(Stored(number=1))
        assert caught.value.retriable
        await emitter.emit(Stored(number=2))
    assert numbers(path) == [2]


async def test_a_deadline_before_the_lock_leaves_it_unknown(path: Path) -> None:
    """The writer goes on: the event may arrive, and here it does."""
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url), EventEmitter.from_url(url, timeout=0.05) as emitter:
        with locked(path), pytest.raises(ProducerTimeout):
            await emitter.emit(Stored(number=1))
        await emitter.emit(Stored(number=2))
    assert numbers(path) == [1, 2]


async def test_an_emit_that_is_cancelled_before_its_turn_is_not_written(
    producer: SQLiteProducer, path: Path
) -> None:
    """Single ones and batches; those beside it are."""
    async with held_up():
        first = asyncio.create_task(producer.send_message(out(1)))
        await given()
        single = asyncio.create_task(producer.send_message(out(2)))
        batch = asyncio.create_task(producer.send_messages([out(3), out(4)]))
        last = asyncio.create_task(producer.send_message(out(5)))
        await given()
        single.cancel()
        batch.cancel()
        await asyncio.wait({single, batch})
    await asyncio.gather(first, last)
    assert single.cancelled()
    assert batch.cancelled()
    assert payloads(path) == [1, 5]


async def test_stopping_with_a_locked_file_leaves_no_emit_without_an_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being written and what waits behind it: all is rejected, and soon."""
    monkeypatch.setattr(producing, "_FLUSH", 0.05)
    producer = SQLiteProducer(connect(f"sqlite:///{path}?lock_timeout=60", SQLiteConnection))
    await producer.start()
    with locked(path):
        emits = []
        for number in range(3):
            emits.append(asyncio.create_task(outcome(producer.send_message(out(number)))))
            await given()
        batch = asyncio.create_task(
            producer.send_messages([out(number) for number in range(3, 2000)])
        )
        await given()
        async with asyncio.timeout(2):
            await producer.stop()
            results = [*await asyncio.gather(*emits), *await batch]
    assert {type(result) for result in results} == {EmitRejected}
    assert all(isinstance(result, EmitError) and result.retriable for result in results)
    assert "stopped before its turn" in str(results[1])
    assert payloads(path) == []


async def test_stopping_writes_what_was_given(producer: SQLiteProducer, path: Path) -> None:
    """Also what waits behind something that is being written."""
    async with held_up():
        emits = []
        for number in range(3):
            emits.append(asyncio.create_task(producer.send_message(out(number))))
            await given()
        stopping = asyncio.create_task(producer.stop())
        await given()
    await stopping
    await asyncio.gather(*emits)
    assert payloads(path) == [0, 1, 2]


async def test_the_writer_survives_a_mistake_in_what_it_does_beside(
    producer: SQLiteProducer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without its thread every emit would wait for its deadline, and tell nothing."""

    def fails(*_: Any) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Retention, "next_step", fails)
    (writer,) = sharing.writers()
    writer._next_sweep = 0
    with caplog.at_level(logging.WARNING, "dispytch"):
        await producer.send_message(out(1))
        await producer.send_message(out(2))
    assert "nothing could be deleted" in caplog.text
    assert payloads(path) == [1, 2]


async def test_the_writer_survives_a_filter_of_the_log_that_raises(
    producer: SQLiteProducer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged in its thread can't end it."""

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a mistake of the user's")

    monkeypatch.setattr(Retention, "next_step", fails)
    monkeypatch.setattr(logging.getLogger("dispytch"), "warning", fails)
    (writer,) = sharing.writers()
    writer._next_sweep = 0
    await producer.send_message(out(1))
    await producer.send_message(out(2))
    assert payloads(path) == [1, 2]
