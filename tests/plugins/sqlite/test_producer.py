"""SQLiteProducer: what is confirmed is in the file, in order, as it was given."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dispytch import (
    ConfigError,
    EmitManyError,
    EmitRejected,
    EventBase,
    EventEmitter,
    Outgoing,
    Receipt,
    Subscription,
)
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer, SQLiteEventConfig, SQLiteProducer
from plugins.sqlite.faults import faulty, held_up

EMOJI = "\N{PARTY POPPER}\N{FAMILY}\u200d"


class Counted(EventBase):
    __topic__ = "counts"
    __event_type__ = "counted"
    __key__ = "{lane}"

    lane: str = "a"
    number: int = 0
    text: str = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def emitter(path: Path) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(f"sqlite:///{path}?max_event_bytes=2000000") as emitter:
        yield emitter


def fetched(path: Path, query: str = "SELECT seq, partition FROM events ORDER BY seq") -> list[Any]:
    """What another connection sees."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def out(topic: str = "counts", payload: bytes = b"{}", **rest: Any) -> Outgoing:
    return Outgoing("id", "counted", topic, payload, **rest)


# What a receipt says


async def test_a_receipt_tells_where_the_event_is(emitter: EventEmitter, path: Path) -> None:
    """Its number in the log, which rises, and the partition of its key, which stays."""
    receipts = [
        await emitter.emit(Counted(lane=lane, number=number))
        for number in range(3)
        for lane in ("a", "b")
    ]
    places = [(receipt.details["seq"], receipt.details["partition"]) for receipt in receipts]
    assert [seq for seq, _ in places] == [1, 2, 3, 4, 5, 6]
    assert [place for _, place in places] == [zlib.crc32(lane) % 32 for lane in (b"a", b"b")] * 3
    assert fetched(path) == places


async def test_events_without_a_key_are_spread(path: Path) -> None:
    """Each in turn, so that every member of a group gets some."""
    async with EventEmitter.from_url(f"sqlite:///{path}?partitions=4") as emitter:
        producer = emitter.producer
        details = await producer.send_messages([out() for _ in range(8)])
    assert sorted(each["partition"] for each in details) == [0, 0, 1, 1, 2, 2, 3, 3]  # type: ignore[index,call-overload]


async def test_an_emit_returns_when_others_can_see_the_event(
    emitter: EventEmitter, path: Path
) -> None:
    """Not before it is committed."""
    for number in range(1, 20):
        receipt = await emitter.emit(Counted(number=number))
        assert fetched(path, "SELECT max(seq) FROM events") == [(receipt.details["seq"],)]


async def test_concurrent_emits_share_a_commit(emitter: EventEmitter, path: Path) -> None:
    """A commit costs a write to the disk, whatever is in it."""
    db = faulty()
    receipts = await asyncio.gather(*(emitter.emit(Counted(number=n)) for n in range(100)))
    assert db.commits == 1
    assert [receipt.details["seq"] for receipt in receipts] == list(range(1, 101))


async def test_emitters_of_one_process_share_a_commit(path: Path) -> None:
    """They have one writer, and what waits for it is written together."""
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url) as one, EventEmitter.from_url(url) as two:
        db = faulty()
        async with held_up():
            emits = [asyncio.create_task(each.emit(Counted())) for each in (one, two)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*emits)
    assert db.commits == 2  # the other one is of what held the writer up


async def test_emit_many_keeps_the_order_of_ten_thousand(emitter: EventEmitter, path: Path) -> None:
    """Each has its own receipt, and the log has them as they were given."""
    db = faulty()
    receipts = await emitter.emit_many([Counted(number=number) for number in range(10_000)])
    assert [receipt.details["seq"] for receipt in receipts] == list(range(1, 10_001))
    assert db.commits == 10
    stored = fetched(path, "SELECT payload FROM events ORDER BY seq")
    assert [json.loads(row[0])["body"]["number"] for row in stored] == list(range(10_000))


async def test_emits_of_several_tasks_meet_in_one_log(emitter: EventEmitter, path: Path) -> None:
    """Single emits and batches at once: no number is given twice, none is left out."""

    async def singly() -> list[Receipt]:
        return [await emitter.emit(Counted()) for _ in range(50)]

    results = await asyncio.gather(
        singly(), emitter.emit_many([Counted()] * 1500), singly(), emitter.emit_many([Counted()])
    )
    numbers = sorted(receipt.details["seq"] for receipts in results for receipt in receipts)
    assert numbers == list(range(1, 1602))


# What can't be stored


async def test_an_event_that_is_too_large_is_rejected(path: Path) -> None:
    """With its size and the limit; what is emitted with it is stored."""
    async with EventEmitter.from_url(f"sqlite:///{path}?max_event_bytes=1024") as emitter:
        with pytest.raises(EmitRejected, match=r"limit is 1,024 \(max_event_bytes\)") as caught:
            await emitter.emit(Counted(text="x" * 1024))
        assert not caught.value.retriable
        events = [
            Counted(number=1),
            Counted(number=2, text="x" * 1024),
            Counted(number=3),
            Counted(number=4, lane="b"),
        ]
        with pytest.raises(EmitManyError) as several:
            await emitter.emit_many(events)
        kinds = [type(result) for result in several.value.results]
    assert kinds == [Receipt, EmitRejected, EmitRejected, Receipt]  # the third is behind the second
    assert len(fetched(path)) == 2


@pytest.mark.parametrize("topic", ["", "\0", "a\0b", EMOJI, "x" * 1_000_000, "%_'\";--"])
async def test_a_topic_may_be_any_text(emitter: EventEmitter, path: Path, topic: str) -> None:
    """It is kept as it is, and known again."""
    for _ in range(2):
        await emitter.producer.send_message(out(topic))
    assert fetched(path, "SELECT name FROM topics JOIN events ON id = topic") == [(topic,)] * 2


@pytest.mark.parametrize(
    "key", ["", "\0", EMOJI, "x" * 1_000_000, b"\xff\xfe".decode(errors="surrogateescape")]
)
async def test_a_key_and_headers_come_as_they_were_given(
    emitter: EventEmitter, path: Path, key: str
) -> None:
    """Empty, long, with zero bytes, and bytes that are no text."""
    headers = {"": "", "\0": "\0", EMOJI: EMOJI, "x" * 100_000: b"\xff\0" * 1000}
    consumer = SQLiteConsumer(connect(f"sqlite:///{path}", SQLiteConnection))
    await consumer.start()
    try:
        await consumer.subscribe([Subscription("counts", "g")])
        await emitter.producer.send_message(out(key=key, headers=headers))
        (delivery,) = await consumer.receive(10)
        assert delivery.key == key
        told = [(name, value.encode() if isinstance(value, str) else value)
                for name, value in headers.items()]  # fmt: skip
        assert list(delivery.headers) == told
        await delivery.ack()
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        out("\ud800"),
        out(key="\ud800"),
        out(headers={"a": "\ud800"}),
    ],
    ids=["topic", "key", "header"],
)
async def test_text_that_can_t_be_encoded_is_rejected(
    emitter: EventEmitter, path: Path, wrong: Outgoing
) -> None:
    """Half a character is no text; nothing of it is stored."""
    with pytest.raises(EmitRejected, match="UTF-8"):
        await emitter.producer.send_message(wrong)
    assert fetched(path) == []


async def test_a_config_s_key_wins(emitter: EventEmitter, path: Path) -> None:
    """Over the event's own; and it is what keeps a batch in order."""
    config = SQLiteEventConfig(partition_key=7)
    await emitter.emit(Counted(lane="a"))
    await emitter.emit(Counted(lane="a", __backend_config__=config))
    assert fetched(path, "SELECT key FROM events") == [(b"a",), (b"7",)]
    assert emitter.producer.ordering_key(out(key="a", config=config)) == b"7"


# Delays and ttl


async def test_a_delayed_event_is_not_in_the_log_yet(emitter: EventEmitter, path: Path) -> None:
    """Its receipt says until when it is held back."""
    before = time.time()
    receipt = await emitter.emit(Counted(), config=SQLiteEventConfig(delay=60, ttl=100))
    due = receipt.details["due_ms"] / 1000
    assert before + 59.9 <= due <= time.time() + 60
    assert fetched(path) == []
    held: list[tuple[int, int]] = fetched(path, "SELECT due_ms, expires_ms FROM delayed")
    assert held == [(receipt.details["due_ms"], receipt.details["due_ms"] + 40_000)]


@pytest.mark.parametrize("delay", [0, timedelta(0), datetime(2001, 1, 1, tzinfo=UTC)])
async def test_a_delay_that_has_passed_holds_nothing_back(
    emitter: EventEmitter, path: Path, delay: Any
) -> None:
    """The event is in the log at once."""
    receipt = await emitter.emit(Counted(), config=SQLiteEventConfig(delay=delay))
    assert receipt.details["seq"] == 1
    assert len(fetched(path)) == 1


async def test_a_batch_may_have_both(emitter: EventEmitter) -> None:
    """What is held back and what is not; each has the details of its own."""
    later = SQLiteEventConfig(delay=60)
    events = [
        Counted(number=number, __backend_config__=later if number % 2 else SQLiteEventConfig())
        for number in range(200)
    ]
    receipts = await emitter.emit_many(events)
    assert [receipt.details["seq"] for receipt in receipts[::2]] == list(range(1, 101))
    assert all(set(receipt.details) == {"due_ms"} for receipt in receipts[1::2])


async def test_an_event_that_expires_before_it_is_due_is_rejected(
    emitter: EventEmitter, path: Path
) -> None:
    """With a moment as its delay this is known only when it is emitted."""
    config = SQLiteEventConfig(delay=datetime.now(UTC) + timedelta(hours=1), ttl=60)
    with pytest.raises(EmitRejected, match=r"expire \(ttl\) before it is due \(delay\)"):
        await emitter.emit(Counted(), config=config)
    assert fetched(path, "SELECT * FROM delayed") == []


# When it can't be used


async def test_a_producer_that_is_not_running_stores_nothing(path: Path) -> None:
    """Before it is started, and after it was stopped; it can be started again."""
    producer = SQLiteProducer(connect(f"sqlite:///{path}", SQLiteConnection))
    for _ in range(2):
        with pytest.raises(EmitRejected, match="not started"):
            await producer.send_message(out())
        with pytest.raises(EmitRejected, match="not started"):
            await producer.send_messages([out()])
        await producer.start()
        await producer.start()
        await producer.send_message(out())
        await producer.stop()
        await producer.stop()
    assert len(fetched(path)) == 2


async def test_an_emitter_is_of_the_loop_that_started_it(emitter: EventEmitter, path: Path) -> None:
    """Another loop is told so at once."""
    with pytest.raises(EmitRejected, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(emitter.emit(Counted())))
    with pytest.raises(ConfigError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(emitter.stop()))
    assert fetched(path) == []


def test_a_loop_that_died_leaves_the_file_to_the_next(path: Path) -> None:
    """An emitter that was never stopped disturbs no other one of its process."""
    url = f"sqlite:///{path}"
    abandoned = EventEmitter.from_url(url)

    async def begin() -> None:
        await abandoned.start()
        await abandoned.emit(Counted())

    async def again() -> None:
        async with EventEmitter.from_url(url) as emitter:
            await emitter.emit(Counted())
        await abandoned.start()
        await abandoned.emit(Counted())
        await abandoned.stop()

    asyncio.run(begin())
    asyncio.run(again())
    assert len(fetched(path)) == 3


async def test_a_bad_key_of_a_batch_fails_alone(path: Path) -> None:
    """What can't be written is refused by itself, and says why."""
    producer = SQLiteProducer(connect(f"sqlite:///{path}", SQLiteConnection))
    await producer.start()
    good, bad, other = await producer.send_messages([out(), out(key="\ud800"), out(key="b")])
    await producer.stop()
    assert isinstance(bad, EmitRejected)
    assert "UTF-8" in str(bad)
    assert not isinstance(good, BaseException)
    assert not isinstance(other, BaseException)
    assert len(fetched(path)) == 2


async def test_a_dead_letter_may_be_larger_than_events(path: Path) -> None:
    """Who emitted it may have had another limit, and it must not be lost for that."""
    connection = connect(f"sqlite:///{path}?max_event_bytes=1024", SQLiteConnection)
    producer = SQLiteProducer(connection)
    await producer.start()
    large = out("counts.dlq", bytes(2000))
    with pytest.raises(EmitRejected, match="max_event_bytes"):
        await producer.send_message(large)
    await producer.send_dead_letter(large)
    await producer.stop()
    assert len(fetched(path)) == 1


_EMIT = """
import asyncio, sys, time
from dispytch import EventBase, EventEmitter

class Counted(EventBase):
    __topic__ = "counts"
    __event_type__ = "counted"

async def emit(url):
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit(Counted())
        print("ready", flush=True)
        sys.stdin.readline()
        count, end = 0, time.monotonic() + 1.5
        while time.monotonic() < end:
            await asyncio.gather(*(emitter.emit(Counted()) for _ in range(4)))
            count += 4
    print(count)

asyncio.run(emit(sys.argv[1]))
"""


def test_no_process_starves_beside_others(path: Path) -> None:
    """SQLite's lock has no queue; each of three processes that want it all the time gets turns."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _EMIT, f"sqlite:///{path}?lock_timeout=30"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )
            for _ in range(3)
        ]  # fmt: skip
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        shares = sorted(int(told) for told in _answers(processes))
    assert shares[0] > shares[-1] / 10, shares


def _answers(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What they say when all are told to go."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=30)[0] for process in processes]
