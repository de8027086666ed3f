"""SQLite: emitting, handling, waking and idling beside plain `sqlite3`, on a real file.

The same tables, and the same commits, or those that a queue of rows makes. The files are in the
directory for temporary files: it should be on a disk (TMPDIR says where).
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from bench.events import UserCreated, created, database
from bench.measuring import (
    BARE,
    OURS,
    Contender,
    Cost,
    Handled,
    Samples,
    Watch,
    Work,
    at_once,
    check,
    compare,
    scaled,
    show,
)
from bench.processes import Processes, listen, times_of, work_off
from bench.sqlite_plain import (
    BACKLOG,
    Run,
    appending,
    claiming,
    claiming_in_threads,
    connected,
    fill,
    size,
)
from dispytch import Depends, Event, EventEmitter, EventListener, Subscription
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer

TASKS = {  # how many emit at once, and how many events in all
    1: scaled(500),
    16: scaled(4_000),
    128: scaled(8_000),
}
PAUSES = {0.02: scaled(250), 0.2: scaled(50), 2.0: scaled(15)}  # seconds between two, and how many
IDLE = 5.0  # seconds
SHORT = 7  # rounds, where one takes long

_numbers = itertools.count()


# Emitting


async def emitted(
    path: Path, emitter: EventEmitter, events: Sequence[UserCreated], tasks: int
) -> Cost:
    """So many tasks emit, each one event after the other; all are in the file then."""
    before = size(path)
    with Watch(len(events)) as watch:
        await at_once(emitter.emit, tasks, events)
    check("in the file", size(path) - before, len(events))
    return watch.cost


async def emitting(directory: Path) -> list[Work]:
    """Durable emits of 1, 16 and 128 tasks at once."""
    works = []
    for tasks, events in TASKS.items():
        ready = [created(number) for number in range(events)]
        path = directory / f"emitted{tasks}.db"

        def beside(synchronous: str, batch: int, events: int) -> Run:
            return appending(directory / f"plain{next(_numbers)}.db", synchronous, batch, events)

        async with EventEmitter.from_url(f"sqlite:///{path}") as emitter:
            await emitter.emit(ready[0])
            full, normal = "on the disk", "in the operating system"
            contenders = [
                Contender("1 a commit, FULL", BARE, beside("FULL", 1, min(events, 1_000)), full),
                Contender("1 a commit, NORMAL", "", beside("NORMAL", 1, events), normal),
            ]
            if tasks > 1:
                batches = beside("FULL", tasks, events)
                contenders.append(Contender(f"{tasks} a commit, FULL", BARE, batches, full))
            run = partial(emitted, path, emitter, ready, tasks)
            contenders.append(Contender("emit", OURS, run, full))
            works.append(await compare(f"emit, SQLite, {tasks} in flight", contenders))
    return works


# Handling


def listener_of(url: str, group: str, handled: Handled) -> EventListener:
    """One that notes what it handles; a new group begins with the first event."""
    listener = EventListener.from_url(url, group=group)

    @listener.handler(UserCreated)
    async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
        handled.note(event.body.timestamp)

    return listener


async def listening(url: str) -> Cost:
    """An EventListener of a new group."""
    handled = Handled(BACKLOG)
    async with listener_of(url, f"group{next(_numbers)}", handled):
        await handled.done.wait()
    return handled.cost


async def receiving(path: Path, limit: int) -> Cost:
    """The consumer alone, that acknowledges what it got at once."""
    consumer = SQLiteConsumer(SQLiteConnection(scheme="sqlite", hosts=(), path=f"/{path}"))
    await consumer.start()
    await consumer.subscribe([Subscription("user_events", f"group{next(_numbers)}")])
    left = BACKLOG
    with Watch(BACKLOG) as watch:
        while left > 0:
            deliveries = await consumer.receive(limit)
            await asyncio.gather(*(delivery.ack() for delivery in deliveries))
            left -= len(deliveries)
    await consumer.stop()
    check("left", left, 0)
    return watch.cost


async def handling(directory: Path) -> list[Work]:
    """A backlog, worked off by one process."""
    path = directory / "handled.db"
    url = f"sqlite:///{path}"
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit_many([created(number) for number in range(BACKLOG)])
    row = claiming(directory / "rows.db", 1)
    threads = claiming_in_threads(directory / "rowst.db")
    rows = claiming(directory / "rows20.db", 20)
    once = "at least once"
    work = await compare(
        f"handle, SQLite, a backlog of {BACKLOG:,}, one async dependency",
        [
            Contender("claim a row, asyncio.to_thread", BARE, threads, once),
            Contender("claim a row", "", row, once),
            Contender("claim 20 rows", "", rows, once),
            Contender("consumer, receive and ack 20", "", partial(receiving, path, 20)),
            Contender("consumer, receive and ack 100", "", partial(receiving, path, 100)),
            Contender("EventListener", OURS, partial(listening, url), once),
        ],
        rounds=SHORT,
    )
    return [work, await sharing(directory, path)]


async def sharing(directory: Path, source: Path) -> Work:
    """A backlog that is there all at once, worked off by two processes of one group."""
    path, queue = directory / "shared.db", directory / "rows2.db"
    listeners = Processes(listen, 2, f"sqlite:///{path}", "both")
    workers = Processes(work_off, 2, queue)
    rows, db = connected(queue), connected(path)  # the processes have made both
    await asyncio.sleep(3)  # their shares are equal by then
    db.execute("ATTACH ? AS source", (str(source),))
    db.execute("INSERT OR IGNORE INTO topics SELECT * FROM source.topics")
    columns = "topic, partition, at_ms, expires_ms, key, headers, payload"

    async def share() -> Cost:
        db.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM source.events")
        started = time.monotonic()
        times = await times_of(listeners, BACKLOG)
        check("handled", len(times), BACKLOG)
        return Cost((times[-1] - started) / BACKLOG * 1e6, 0.0)

    async def claim_rows() -> Cost:
        fill(rows)
        started = time.monotonic()
        ended = max(await workers.ask())
        check("left", rows.execute("SELECT count(*) FROM jobs").fetchone()[0], 0)
        return Cost((ended - started) / BACKLOG * 1e6, 0.0)

    try:
        return await compare(
            f"handle, SQLite, two processes, a backlog of {BACKLOG:,}",
            [
                Contender("claim a row", BARE, claim_rows, "at least once"),
                Contender("EventListener", OURS, share, "at least once"),
            ],
            rounds=SHORT,
        )
    finally:
        listeners.end()
        workers.end()


# Waking and idling


async def waking(directory: Path) -> list[Work]:
    """From the receipt in one process to the handler in another, and in the same."""
    samples = []
    url = f"sqlite:///{directory}/woken.db"
    there = Processes(listen, 1, url, "there")
    try:
        for pause, events in PAUSES.items():
            ended = await emit_slowly(url, pause, events)
            came = await times_of(there, events)
            samples.append(latencies(f"another process, each {pause * 1e3:,.0f} ms", ended, came))
    finally:
        there.end()
    here, times = EventListener.from_url(url := f"sqlite:///{directory}/here.db", group="here"), []

    @here.handler(UserCreated)
    async def handle(event: UserCreated) -> None:
        times.append(time.monotonic())

    async with here:
        ended = await emit_slowly(url, 0.02, PAUSES[0.02])
        await asyncio.sleep(0.1)
    samples.append(latencies("the same process, each 20 ms", ended, times))
    return [Work("wake, SQLite: from a receipt to the handler", samples, "ms")]


async def emit_slowly(url: str, pause: float, events: int) -> list[float]:
    """Emit with pauses; when each was there."""
    ended = []
    async with EventEmitter.from_url(url) as emitter:
        for number in range(events):
            await asyncio.sleep(pause * (0.5 + number * 0.618 % 1))  # not in step with anything
            await emitter.emit(created(number))
            ended.append(time.monotonic())
    return ended


def latencies(name: str, ended: list[float], handled: list[float]) -> Samples:
    """Milliseconds from the one to the other."""
    walls = [(b - a) * 1e3 for a, b in zip(ended, handled, strict=True)]
    return Samples(name, OURS, "", walls)


async def idling(directory: Path) -> list[Work]:
    """What a listener costs to which nothing comes."""

    async def percent() -> float:
        await asyncio.sleep(IDLE / 2)
        started = time.process_time()
        await asyncio.sleep(IDLE)
        return (time.process_time() - started) / IDLE * 100

    nothing = Samples("an event loop alone", "", "", [await percent()])
    async with listener_of(f"sqlite:///{directory}/idle.db", "idle", Handled(2)):
        listener = Samples("EventListener", OURS, "", [await percent()])
    return [Work("idle, SQLite", [nothing, listener], "% of a core")]


async def measure() -> list[Work]:
    """Everything."""
    works = []
    with tempfile.TemporaryDirectory() as name:
        for part in (emitting, handling, waking, idling):
            works += await part(Path(name))
    for work in works:
        if work.title.startswith(("wake", "idle")):
            show(work)
    return works
