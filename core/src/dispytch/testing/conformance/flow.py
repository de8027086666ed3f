"""Flow: events emitted and handled without a pause, while something goes wrong."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable

from dispytch.emitter import EventEmitter
from dispytch.listener import Event, EventListener
from dispytch.testing.conformance.kit import Kit, Numbered
from dispytch.testing.conformance.load import EMITTERS, Load, News
from dispytch.testing.conformance.report import Fault, Handled, Report

__all__ = ["EMIT_TIMEOUT", "EVENTS", "IN_FLIGHT", "Flow", "no_tasks_left"]

EMIT_TIMEOUT = 5.0
"""Seconds an emit has: those that meet a fault end during it."""

IN_FLIGHT = 50
"""Handlers that run at once: at least so many may have ended without the broker knowing."""

WORK = 0.02
"""Seconds a handler takes: some are always under way."""

EVENTS = 10_000
"""How many events are handled in all, at least."""

BATCH = 100
"""How many events are emitted when all is over; and at least handled before and after a fault."""

NOTICED = 30.0
"""Seconds of an outage until `health()` must tell of it."""


class Flow:
    """A listener and an emitter at work, and what is to be said of them afterwards.

    Made by `through`.

    Attributes:
        kit: opens what it needs.
        topic: where events go.
        emitter: emits them.
        listener: handles them.
        report: what happened so far.
        news: told of all that happens.
    """

    def __init__(
        self, kit: Kit, topic: str, emitter: EventEmitter, listener: EventListener
    ) -> None:
        self.kit, self.topic, self.emitter, self.listener = kit, topic, emitter, listener
        self.report, self.news = Report(), News()
        self._kind = kind = kit.event(topic)
        self._load = Load(emitter, lambda n: kind(lane=n % EMITTERS, number=n), self.report.emitted)
        self._watching: asyncio.Task[None] | None = None
        listener.handler(kind)(self._handle)

    @classmethod
    @contextlib.asynccontextmanager
    async def through(cls, kit: Kit, url: str | None = None) -> AsyncIterator["Flow"]:
        """Emit and handle until the end; then check that nothing was lost.

        Args:
            kit: opens what it needs.
            url: leads to the broker.
        """
        topic = await kit.topic()
        tasks = asyncio.all_tasks()
        listener = kit.listener(kit.name("g"), url, max_in_flight=IN_FLIGHT)
        emitter = EventEmitter.from_url(url or kit.url, timeout=EMIT_TIMEOUT)
        flow = cls(kit, topic, emitter, listener)
        try:
            await listener.start()
            await emitter.start()
            flow.begin()
            await flow.until(lambda: len(flow.report.done) >= BATCH)
            yield flow
            await flow.finish()
        finally:
            await flow.end()
            await kit.stop(emitter.stop())
            await kit.stop(listener.stop())
        await no_tasks_left(tasks)

    def begin(self) -> None:
        """Start to emit and to watch."""
        self._watching = asyncio.create_task(self._watch())
        self._load.start()

    async def end(self) -> None:
        """Emit and watch no more."""
        await self._load.end()
        if self._watching is not None:
            self._watching.cancel()

    @contextlib.asynccontextmanager
    async def fault(
        self, name: str, *, repair: Callable[[], object] | None = None, noticed: bool = True
    ) -> AsyncIterator[Fault]:
        """What is inside does harm: it begins with handlers at work, and an emit under way.

        Afterwards events are handled again, and `health()` is good.

        Args:
            name: for messages.
            repair: ends it; blocks meanwhile. None: it ends by itself.
            noticed: whether it lasts long enough for `health()` to tell of it.
        """
        await self._load.emitting.wait()
        while not self.listener.health().running:
            await self.until(lambda: bool(self.listener.health().running))
            await self._load.emitting.wait()  # which may take longer than they run
        fault = Fault(name, time.monotonic(), under_way=self._under_way())
        self.report.faults.append(fault)
        try:
            yield fault
        finally:
            if repair is not None:
                await asyncio.to_thread(repair)
        fault.ended = time.monotonic()
        if noticed:
            await self.noticed()
        await self.more()
        await self.until(lambda: bool(self.listener.health()))

    async def noticed(self) -> None:
        """Wait until `health()` tells of the fault."""
        fault = self.report.faults[-1]
        await self.until(lambda: fault.down is not None, NOTICED)

    async def more(self) -> None:
        """Wait until more events are emitted and handled."""
        now, handled = time.monotonic(), len(self.report.done)
        await self.until(
            lambda: (
                len(self.report.done) >= handled + BATCH
                and self.report.confirmed_since(now) >= BATCH
            )
        )

    async def handled(self, count: int) -> None:
        """Wait until so many events have been handled, as long as there are always more."""
        while len(self.report.handled) < count:
            await self.more()

    async def until(self, true: Callable[[], bool], within: float | None = None) -> None:
        """Wait for something, at most as long as recovering may take."""
        if within is None:
            within = self.kit.suite.recovery
        await self.news.until(true, within, self.report.summary)

    async def finish(self) -> None:
        """End the load, and check that all is handled, and a new batch too."""
        await self.handled(self.kit.many(EVENTS))
        await self._load.end()
        await self.until(lambda: not self.report.unhandled)
        await self.batch()
        await self.until(lambda: bool(self.listener.health()))
        self.report.check(
            repeatable=self.kit.suite.uncommitted,
            ordered=self.kit.keeps_order,
        )

    async def batch(self) -> list[str]:
        """Emit new events, and wait until they are handled; their ids."""
        fresh = [self._kind(lane=n % EMITTERS, number=10**9 + n) for n in range(BATCH)]
        await self.emitter.emit_many(fresh)
        ids = [event.id for event in fresh]
        await self.until(lambda: self.report.handled.issuperset(ids))
        return ids

    def _under_way(self) -> int:
        health = self.listener.health()
        return max(health.running + health.ready + health.waiting, IN_FLIGHT)

    async def _handle(self, event: Event[Numbered]) -> None:
        if self.report.faults and self.report.faults[-1].lasts:
            # Some were on their way to us when it began.
            fault = self.report.faults[-1]
            fault.under_way = max(fault.under_way, self._under_way())
        await asyncio.sleep(WORK)
        body = event.body
        self.report.finished(
            Handled(time.monotonic(), os.getpid(), body.lane, body.number, event.id)
        )
        self.news.tell()

    async def _watch(self) -> None:
        while True:
            health = self.listener.health()
            self.report.problems = {f"health(): {told}" for told in health.problems}
            if self.report.faults:
                self.report.faults[-1].see(healthy=bool(health))
            self.news.tell()
            await asyncio.sleep(0.1)


async def no_tasks_left(before: set[asyncio.Task[object]]) -> None:
    """What is stopped has no tasks; what it cancelled last may need a moment."""
    here = asyncio.current_task()
    left = {task for task in asyncio.all_tasks() - before if task is not here}
    if left:
        _, left = await asyncio.wait(left, timeout=1.0)
    assert not left, f"tasks left behind: {left}"
