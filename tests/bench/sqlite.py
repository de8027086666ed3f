"""What dispytch-sqlite costs and gains: emitting, handling, waking and idling, on a real file.

Beside it, interleaved on the same machine at the same time, plain `sqlite3` on the same tables,
making the same commits, or those that a queue of rows makes. Asserts nothing. The files are in the
directory for temporary files: it should be on a disk (TMPDIR says where).

Run: python -m nox -s bench
One part: python tests/bench/sqlite.py emitting|handling|sharing|waking|idling
"""

import asyncio
import itertools
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from sqlite_plain import (
    BACKLOG,
    Contender,
    Noted,
    appending,
    claim,
    claiming,
    claiming_in_threads,
    fill,
    noted,
    plain,
)

from dispytch import Event, EventEmitter, EventListener, Subscription
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer

ROUNDS = 7
TASKS = {1: 500, 16: 4_000, 128: 8_000}  # how many emit at once, and how many events in all
PAUSES = {0.02: 250, 0.2: 50, 2.0: 15}  # seconds between two events, and how many
IDLE = 5.0  # seconds

_SPAWN = multiprocessing.get_context("spawn")
_numbers = itertools.count()


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
            if number:  # the first round warms up
                samples[name].append(speed)
    print(title)
    base = next(iter(samples.values()))
    for name, values in samples.items():
        show(name, values, base)


# Emitting


async def at_once(emitter: EventEmitter, events: Sequence[Noted], tasks: int) -> float:
    """So many tasks emit, each one event after the other."""

    async def emit(mine: Iterable[Noted]) -> None:
        for event in mine:
            await emitter.emit(event)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(tasks):
            group.create_task(emit(events[number::tasks]))
    return len(events) / (time.perf_counter() - started)


async def emitting(directory: Path) -> None:
    """Durable emits of 1, 16 and 128 tasks at once."""
    for tasks, events in TASKS.items():
        ready = [noted(number) for number in range(events)]
        url = f"sqlite:///{directory}/emitted{tasks}.db"
        async with EventEmitter.from_url(url) as emitter:
            beside = {
                "sqlite3, 1 a commit, NORMAL": ("NORMAL", 1, events),
                "sqlite3, 1 a commit, FULL": ("FULL", 1, min(events, 1_000)),
                f"sqlite3, {tasks} a commit, FULL": ("FULL", tasks, events),
            }
            contenders = {
                name: appending(directory / f"plain{next(_numbers)}.db", *case)
                for name, case in beside.items()
            }
            contenders["EventEmitter, FULL"] = partial(at_once, emitter, ready, tasks)
            await compare(f"{tasks} emitting at once", contenders)


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
        consumer = SQLiteConsumer(SQLiteConnection(scheme="sqlite", hosts=(), path=f"/{path}"))
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
            "sqlite3, claim a row, asyncio.to_thread": claiming_in_threads(directory / "rowst.db"),
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
        while claim(db, 1):
            pass
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

    async def share() -> float:
        db.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM source.events")
        started = time.monotonic()
        times = await times_of(listeners, BACKLOG)
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
        await asyncio.sleep(0.1)
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


def show_latency(name: str, started: list[float], ended: list[float], handled: list[float]) -> None:
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
