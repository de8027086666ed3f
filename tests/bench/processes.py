"""Processes that work a SQLite file off, each told through a pipe."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.events import UserCreated
from bench.sqlite_plain import claim, connected
from dispytch import EventListener

_SPAWN = multiprocessing.get_context("spawn")


def listen(url: str, group: str, told: Connection) -> None:
    """In a process of its own: handle, and answer each question with the times since the last."""

    async def main() -> None:
        times: list[float] = []
        listener = EventListener.from_url(url, group=group)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        @listener.handler(UserCreated)
        async def handle(event: UserCreated) -> None:
            times.append(time.monotonic())

        def answer() -> None:
            if told.recv():
                told.send(times[:])
                times.clear()
            else:
                ended.set()

        async with listener:
            loop.add_reader(told.fileno(), answer)
            told.send("ready")
            await ended.wait()

    asyncio.run(main())


def work_off(path: Path, told: Connection) -> None:
    """In a process of its own: claim row after row, each time when told to; say when it is done."""
    db = connected(path, wait=60)
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

    async def ask(self) -> list[Any]:
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
            times += answer
    return sorted(times)
