"""Many emits at once, and a way to wait for what they bring about."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from dispytch.emitter import EventEmitter
from dispytch.errors import EmitManyError
from dispytch.event import EventBase
from dispytch.producer import Receipt

__all__ = ["EMITTERS", "Emit", "Load", "News"]

EMITTERS = 50
"""How many emits run at once."""

BATCH = 5
"""How many events an emitter sends with `emit_many`; every tenth one does."""

PAUSE = 0.15
"""Seconds an emitter rests after each event: the load is many at once, not many per second."""


@dataclass(frozen=True, slots=True)
class Emit:
    """One event's way: when its emit began and ended, in seconds of `time.monotonic()`."""

    event_id: str
    began: float
    ended: float
    outcome: Receipt | BaseException


class News:
    """Wakes those who wait for something to become true, whenever something has happened."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    def tell(self) -> None:
        """Something has happened."""
        self._happened.set()

    async def until(
        self, true: Callable[[], bool], within: float, otherwise: Callable[[], str]
    ) -> None:
        """Wait until it is true.

        Args:
            true: looked at again after each `tell`.
            within: seconds it may take.
            otherwise: tells what there is instead.

        Raises:
            AssertionError: it took longer.
        """
        try:
            async with asyncio.timeout(within):
                while not true():
                    self._happened.clear()
                    await self._happened.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within:g} s: {otherwise()}") from None


class Load:
    """Emitters that emit one event after the other until told to end.

    What failed is not emitted again: it may have arrived.

    Args:
        emitter: started.
        make_event: makes the event of a number. Those of one emitter are alike modulo `emitters`,
            and rise: with that for a key, events of one key are emitted one after the other.
        note: is told of each emit.
        emitters: how many emit at once.
        pause: seconds each rests for each event, so that no key has more than others.

    Attributes:
        emitting: set while an emit is under way.
    """

    def __init__(
        self,
        emitter: EventEmitter,
        make_event: Callable[[int], EventBase],
        note: Callable[[Emit], object],
        *,
        emitters: int = EMITTERS,
        pause: float = PAUSE,
    ) -> None:
        self._emitter, self._make_event, self._note = emitter, make_event, note
        self._emitters, self._pause = emitters, pause
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.emitting = asyncio.Event()
        self._under_way = 0

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(self._emitters)]

    async def end(self) -> None:
        """Let every emitter finish the emit it is in."""
        self._ending.set()
        await asyncio.gather(*self._tasks)

    async def _work(self, emitter: int) -> None:
        # They start one after the other: a crowd in step would meet a fault all at one moment.
        await self._rest(self._pause * emitter / self._emitters)
        numbers = count(emitter, self._emitters)
        while not self._ending.is_set():
            size = BATCH if emitter % 10 == 0 else 1
            events = [self._make_event(next(numbers)) for _ in range(size)]
            began = time.monotonic()
            self._under_way += 1
            self.emitting.set()
            outcomes = await self._emit(events)
            self._under_way -= 1
            if not self._under_way:
                self.emitting.clear()
            ended = time.monotonic()
            for event, outcome in zip(events, outcomes, strict=True):
                self._note(Emit(event.id, began, ended, outcome))
            await self._rest(self._pause * size)

    async def _emit(self, events: list[EventBase]) -> list[Receipt | BaseException]:
        try:
            if len(events) == 1:
                return [await self._emitter.emit(events[0])]
            return list(await self._emitter.emit_many(events))
        except EmitManyError as error:
            return error.results
        except Exception as error:  # noqa: BLE001 - whoever is told judges it
            return [error] * len(events)

    async def _rest(self, seconds: float) -> None:
        """Pause, but not beyond the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return
