"""What dispytch-sqlite costs and gains: emitting, handling, waking and idling, on a real file.

Beside it, interleaved on the same machine at the same time, plain `sqlite3` on the same tables,
making the same commits, or those that a queue of rows makes. Asserts nothing. The files are in the
directory for temporary files: it should be on a disk (TMPDIR says where).

Run: python -m nox -s bench
"""

import asyncio
import itertools
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic_core import to_json

from dispytch import Event, EventBase, EventEmitter, EventListener, Subscription
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer
from dispytch_sqlite.schema import TABLES

ROUNDS, BACKLOG, KEYS = 7, 5_000, 50
TASKS = {1: 500, 16: 4_000, 128: 8_000}  # how many emit at once, and how many events in all
PAUSES = {0.02: 250, 0.2: 50, 2.0: 15}  # seconds between two events, and how many
IDLE = 5.0  # seconds

Contender = Callable[[], Awaitable[float]]
"""Runs once; events per second."""

_SPAWN = multiprocessing.get_context("spawn")
_numbers = itertools.count()


class Noted(EventBase):
    """About 300 bytes on the wire, one of many keys."""

    __topic__ = "notes"
    __event_type__ = "noted"
    __key__ = "{author}"

    author: str
    number: int
    text: str = "x" * 160


def noted(number: int) -> Noted:
    """An event."""
    return Noted(author=str(number % KEYS), number=number)


# Printing


def show(name: str, values: Sequence[float], base: Sequence[float], unit: str = "/s") -> None:
    """One line: the median with the middle half's width, and the ratio to what it is beside."""
    low, middle, high = statistics.quantiles(values, n=4)
    ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
    print(f"  {name:<46} {middle:>9,.0f} ±{(high - low) / 2:>6,.0f} {unit} {ratio:>6.2f}")


async def compare(title: str, contenders: Mapping[str, Contender]) -> None:
    """All contenders, round by round; ratios to the first."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, run in contenders.items():
            speed = await run()
            if number:  # the first warms up
                samples[name].append(speed)
    print(title)
    base = next(iter(samples.values()))
    for name, values in samples.items():
        show(name, values, base)


# Plain sqlite3


def plain(path: Path, synchronous: str = "NORMAL", wait: float = 0.0) -> sqlite3.Connection:
    """A connection of one's own, on the same tables, with a queue of rows beside them."""
    db = sqlite3.connect(path, isolation_level=None, timeout=wait)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        db.executescript(TABLES)
        db.executescript(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, worker INTEGER, payload BLOB NOT NULL);"
            "CREATE INDEX free ON jobs (id) WHERE worker IS NULL"
        )
    return db


def row(event: Noted) -> tuple[int, bytes, bytes]:
    """Partition, key and envelope."""
    now = time.time_ns() // 10**6
    envelope = {"id": event.id, "type": "noted", "body": event, "timestamp": now}
    return event.number % 32, event.author.encode(), to_json(envelope)


def appending(path: Path, synchronous: str, batch: int, events: int) -> Contender:
    """Appends the same events from one thread, so many with each commit."""
    db = plain(path, synchronous)
    insert = (
        "INSERT INTO events (topic, partition, at_ms, expires_ms, key, headers, payload) "
        "VALUES (1, ?, 1, NULL, ?, NULL, ?)"
    )
    ready = [noted(number) for number in range(events)]

    async def run() -> float:
        started = time.perf_counter()
        for first in range(0, events, batch):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(insert, map(row, ready[first : first + batch]))
            db.execute("COMMIT")
        return events / (time.perf_counter() - started)

    return run


def fill(db: sqlite3.Connection) -> None:
    """A backlog for `claim`."""
    db.execute("BEGIN IMMEDIATE")
    rows = [(b"x" * 300,)] * BACKLOG
    db.executemany("INSERT INTO jobs (payload) VALUES (?)", rows)
    db.execute("COMMIT")


def claim(db: sqlite3.Connection, batch: int) -> int:
    """Work a queue of rows off: a commit to claim some, and one to delete them; how many."""
    take = (
        "UPDATE jobs SET worker = 1 WHERE id IN "
        "(SELECT id FROM jobs WHERE worker IS NULL ORDER BY id LIMIT ?) RETURNING id, payload"
    )
    done = 0
    while True:
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(take, (batch,)).fetchall()
        db.execute("COMMIT")
        if not rows:
            return done
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM jobs WHERE id = ?", [row[:1] for row in rows])
        db.execute("COMMIT")
        done += len(rows)


def claiming(path: Path, batch: int) -> Contender:
    """Works a backlog of rows off."""
    db = plain(path)

    async def run() -> float:
        fill(db)
        started = time.perf_counter()
        claim(db, batch)
        return BACKLOG / (time.perf_counter() - started)

    return run


# Emitting


async def emitting(directory: Path) -> None:
    """Durable emits of 1, 16 and 128 tasks at once."""
    url = f"sqlite:///{directory}/emitted.db"
    for tasks, events in TASKS.items():
        ready = [noted(number) for number in range(events)]
        async with EventEmitter.from_url(url) as emitter:

            async def run(
                emitter: EventEmitter = emitter, tasks: int = tasks, ready: list[Noted] = ready
            ) -> float:
                async def emit(events: Iterable[Noted]) -> None:
                    for event in events:
                        await emitter.emit(event)

                started = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    for number in range(tasks):
                        group.create_task(emit(ready[number::tasks]))
                return len(ready) / (time.perf_counter() - started)

            beside = {
                "sqlite3, one a commit, NORMAL": ("NORMAL", 1, events),
                "sqlite3, one a commit, FULL": ("FULL", 1, min(events, 1_000)),
                f"sqlite3, {tasks} a commit, FULL": ("FULL", tasks, events),
            }
            contenders = {
                name: appending(directory / f"plain{next(_numbers)}.db", *case)
                for name, case in beside.items()
            }
            await compare(f"{tasks} emitting at once", {**contenders, "EventEmitter, FULL": run})


# Handling


class Handling:
    """Handles the events of a file, and counts.

    Args:
        url: of the file.
        group: a new one begins with the first event.
    """

    def __init__(self, url: str, group: str) -> None:
        self.times: list[float] = []
        self.done = asyncio.Event()
        self.listener = EventListener.from_url(url, group=group)
        self.listener.handler(Noted)(self.handle)

    async def handle(self, event: Event[Noted]) -> None:
        """Note when."""
        self.times.append(time.monotonic())
        if len(self.times) == BACKLOG:
            self.done.set()


def listening(url: str) -> Contender:
    """An EventListener of a new group; from its first event to its last."""

    async def run() -> float:
        handling = Handling(url, f"group{next(_numbers)}")
        async with handling.listener:
            await handling.done.wait()
        return (BACKLOG - 1) / (handling.times[-1] - handling.times[0])

    return run


def receiving(path: Path, limit: int) -> Contender:
    """The consumer alone, that acknowledges what it got at once."""

    async def run() -> float:
        consumer = SQLiteConsumer(SQLiteConnection(scheme="sqlite", path=f"/{path}"))
        await consumer.start()
        await consumer.subscribe([Subscription("notes", f"group{next(_numbers)}")])
        started, left = time.perf_counter(), BACKLOG
        while left:
            deliveries = await consumer.receive(limit)
            await asyncio.gather(*(delivery.ack() for delivery in deliveries))
            left -= len(deliveries)
        took = time.perf_counter() - started
        await consumer.stop()
        return BACKLOG / took

    return run


async def handling(directory: Path) -> None:
    """A backlog, worked off by one process."""
    path = directory / "handled.db"
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit_many([noted(number) for number in range(BACKLOG)])
    await compare(
        f"handling a backlog of {BACKLOG:,}",
        {
            "sqlite3, claim a row": claiming(directory / "rows.db", 1),
            "sqlite3, claim 20 rows": claiming(directory / "rows20.db", 20),
            "consumer, receive and ack 20": receiving(path, 20),
            "consumer, receive and ack 100": receiving(path, 100),
            "EventListener": listening(url),
        },
    )


# Several processes


def listen(url: str, group: str, told: Connection) -> None:
    """In a process of its own: handle, and answer each question with the times since the last."""

    async def main() -> None:
        handling, loop, ended = Handling(url, group), asyncio.get_running_loop(), asyncio.Event()

        def answer() -> None:
            if told.recv():
                told.send(handling.times[:])
                handling.times.clear()
            else:
                ended.set()

        async with handling.listener:
            loop.add_reader(told.fileno(), answer)
            told.send("ready")
            await ended.wait()

    asyncio.run(main())


def work(path: Path, told: Connection) -> None:
    """In a process of its own: claim row after row, each time when told to; say when it is done."""
    db = plain(path, wait=60)
    told.send("ready")
    while told.recv():
        claim(db, 1)
        told.send(time.monotonic())


class Processes:
    """Processes that are told something through a pipe, and answer.

    Args:
        target: what they do.
        count: how many.
        args: what they get.
    """

    def __init__(self, target: Callable[..., None], count: int, *args: object) -> None:
        self._pipes, self._all = [], []
        for _ in range(count):
            ours, theirs = _SPAWN.Pipe()
            self._pipes.append(ours)
            self._all.append(_SPAWN.Process(target=target, args=(*args, theirs)))
            self._all[-1].start()
        for pipe in self._pipes:
            pipe.recv()

    async def ask(self) -> list[object]:
        """Their answers."""
        for pipe in self._pipes:
            pipe.send(True)
        return [await asyncio.to_thread(pipe.recv) for pipe in self._pipes]

    def end(self) -> None:
        """End them all."""
        for pipe, process in zip(self._pipes, self._all, strict=True):
            pipe.send(False)
            process.join()


async def times_of(listeners: Processes, events: int) -> list[float]:
    """When so many events were handled, by all of them together."""
    times: list[float] = []
    while len(times) < events:
        await asyncio.sleep(0.02)
        for answer in await listeners.ask():
            times += answer  # type: ignore[arg-type]
    return sorted(times)


async def sharing(directory: Path) -> None:
    """A backlog that is there all at once, worked off by two processes of one group."""
    path, source = directory / "shared.db", directory / "handled.db"
    url = f"sqlite:///{path}"
    listeners = Processes(listen, 2, url, "both")
    workers = Processes(work, 2, directory / "rows2.db")
    await asyncio.sleep(3)  # their shares are equal by then
    db, rows = plain(path), plain(directory / "rows2.db")
    db.execute("ATTACH ? AS source", (str(source),))
    db.execute("INSERT INTO topics SELECT * FROM source.topics")
    columns = "topic, partition, at_ms, expires_ms, key, headers, payload"
    handled: list[int] = []

    async def share() -> float:
        db.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM source.events")
        started = time.monotonic()
        times = await times_of(listeners, BACKLOG)
        handled.append(len(times))
        return BACKLOG / (times[-1] - started)

    async def claim_rows() -> float:
        fill(rows)
        started = time.monotonic()
        ended = await workers.ask()
        return BACKLOG / (max(ended) - started)  # type: ignore[type-var, operator]

    contenders = {"sqlite3, claim a row": claim_rows, "EventListener": share}
    await compare(f"two processes, a backlog of {BACKLOG:,}", contenders)
    listeners.end()
    workers.end()


# Waking and idling


async def waking(directory: Path) -> None:
    """From the receipt in one process to the handler in another, and in the same."""
    print("waking: milliseconds               receipt p50 | from the receipt to the handler")
    url = f"sqlite:///{directory}/woken.db"
    there = Processes(listen, 1, url, "there")
    for pause, events in PAUSES.items():
        started, ended = await emit_slowly(url, pause, events)
        show_latency(f"each {pause * 1e3:,.0f} ms", started, ended, await times_of(there, events))
    there.end()
    here = Handling(url := f"sqlite:///{directory}/here.db", "here")
    async with here.listener:
        started, ended = await emit_slowly(url, 0.02, PAUSES[0.02])
        while len(here.times) < len(ended):
            await asyncio.sleep(0.02)
    show_latency("each 20 ms, in one process", started, ended, here.times)


async def emit_slowly(url: str, pause: float, events: int) -> tuple[list[float], list[float]]:
    """Emit with pauses; when each emit began, and when it ended."""
    started, ended = [], []
    async with EventEmitter.from_url(url) as emitter:
        for number in range(events):
            await asyncio.sleep(pause * (0.5 + number * 0.618 % 1))  # not in step with anything
            started.append(time.monotonic())
            await emitter.emit(noted(number))
            ended.append(time.monotonic())
    return started, ended


def show_latency(
    name: str, started: list[float], ended: list[float], handled: list[float]
) -> None:
    """One line."""
    emits = statistics.median(b - a for a, b in zip(started, ended, strict=True))
    woken = sorted((b - a) * 1e3 for a, b in zip(ended, handled, strict=True))
    p99 = woken[int(len(woken) * 0.99)]
    middle = statistics.median(woken)
    print(f"  {name:<32} {emits * 1e3:>10.2f}  |  p50 {middle:>6.2f}  p99 {p99:>6.2f}")


async def idling(directory: Path) -> None:
    """What a listener costs to which nothing comes."""

    async def percent() -> float:
        await asyncio.sleep(IDLE / 2)
        started = time.process_time()
        await asyncio.sleep(IDLE)
        return (time.process_time() - started) / IDLE * 100

    nothing = await percent()
    async with Handling(f"sqlite:///{directory}/idle.db", "idle").listener:
        listener = await percent()
    print(f"idling: {listener:.2f} % of a core; an event loop alone {nothing:.2f} %")


async def main() -> None:
    """Everything."""
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}; events per second")
    with tempfile.TemporaryDirectory() as name:
        for measure in (emitting, handling, sharing, waking, idling):
            if not sys.argv[1:] or measure.__name__ in sys.argv[1:]:
                await measure(Path(name))


if __name__ == "__main__":
    asyncio.run(main())
