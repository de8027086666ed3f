"""What docs/sqlite.md tells to do with the sqlite3 shell, done to a file of ours."""

import asyncio
import contextlib
import re
import sqlite3
from pathlib import Path

from dispytch import Event, EventBase, EventEmitter, EventListener, RetryLater
from dispytch_sqlite import SQLiteEventConfig

PAGE = Path(__file__).parents[2] / "docs/sqlite.md"
_BLOCK = re.compile(r"^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)
URL = "sqlite:///{}/events.db?begin=first"


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"
    __key__ = "{number}"

    number: int


def _statements() -> list[str]:
    parts = [
        part.strip() for block in _BLOCK.findall(PAGE.read_text()) for part in block.split(";")
    ]
    return [part for part in parts if part]


def _done(folder: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "events.db")) as db, db:
        return db.execute(statement).fetchall()


async def _emit(folder: Path, numbers: range, config: SQLiteEventConfig | None = None) -> None:
    async with EventEmitter.from_url(URL.format(folder)) as emitter:
        await emitter.emit_many([Order(number=n) for n in numbers], config=config)


async def _handle(folder: Path, last: int) -> list[int]:
    """What the group `billing` gets, up to a number; 2 is to come again in an hour."""
    listener = EventListener.from_url(URL.format(folder), group="billing", max_in_flight=1)
    got: list[int] = []
    done = asyncio.Event()

    @listener.handler(Order)
    async def bill(event: Event[Order]) -> RetryLater | None:
        got.append(event.body.number)
        if event.body.number == last:
            done.set()
        return RetryLater(3600) if event.body.number == 2 else None

    async with asyncio.timeout(20), listener:
        await done.wait()
    return got


async def test_statements_do_what_the_page_says(tmp_path: Path) -> None:
    """Each of the page's statements runs, and shows or changes what is said there."""
    last, owners, waiting, delayed, retries, delete, *again = _statements()
    await _emit(tmp_path, range(5))
    assert await _handle(tmp_path, last=4) == [0, 1, 2, 3, 4]
    await _emit(tmp_path, range(5, 9))
    await _emit(tmp_path, range(9, 10), SQLiteEventConfig(delay=3600))

    assert [(row[0], row[2], row[4]) for row in _done(tmp_path, last)] == [
        (n + 1, "orders", str(n)) for n in range(8, -1, -1)
    ]
    assert _done(tmp_path, owners) == []
    assert _done(tmp_path, waiting) == [("billing", "orders", 4)]
    assert [row[1] for row in _done(tmp_path, delayed)] == ["orders"]
    assert [row[:3] for row in _done(tmp_path, retries)] == [("billing", 3, 1)]

    _done(tmp_path, delete.replace("4711", "8"))
    for statement in again[:2]:  # begin again
        _done(tmp_path, statement)
    assert await _handle(tmp_path, last=8) == [0, 1, 2, 3, 4, 5, 6, 8]
    for statement in again[2:]:  # forget the group
        _done(tmp_path, statement)
    assert _done(tmp_path, "SELECT cursor FROM retries UNION SELECT id FROM cursors") == []
    assert await _handle(tmp_path, last=8) == [0, 1, 2, 3, 4, 5, 6, 8]


async def test_owners_are_shown(tmp_path: Path) -> None:
    """A listener that runs is a member, with all partitions of its topic."""
    listener = EventListener.from_url(URL.format(tmp_path), group="billing")

    @listener.handler(Order)
    async def bill(order: Order) -> None: ...

    async with listener:
        assert [row[1:] for row in _done(tmp_path, _statements()[1])] == [("billing", "orders", 32)]
