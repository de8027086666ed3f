"""Handlers that want their event later."""

import asyncio
from collections.abc import Sequence

from dispytch import (
    Consumer,
    Delivery,
    Event,
    EventBase,
    EventListener,
    RetryLater,
    Subscription,
)
from dispytch.memory import MemoryConsumer
from dispytch.testing import TestListener


class Asked(EventBase):
    __topic__ = "asked"
    __event_type__ = "asked"


class Tick(EventBase):
    __topic__ = "asked"
    __event_type__ = "tick"


async def test_no_handler_gets_it_before_its_delay() -> None:
    """Where several handlers want one event later, none of them gets it too early."""
    listener = EventListener(MemoryConsumer(), group="g")
    ran: list[str] = []

    @listener.handler(Asked)
    async def soon(event: Event[Asked]) -> RetryLater | None:
        ran.append(f"soon {event.attempt}")
        return RetryLater(1) if event.attempt == 1 else None

    @listener.handler(Asked)
    async def late(event: Event[Asked]) -> RetryLater | None:
        ran.append(f"late {event.attempt}")
        return RetryLater(60) if event.attempt == 1 else None

    @listener.handler(Tick)
    async def tick(event: Event[Tick]) -> RetryLater | None:
        ran.append(f"tick {event.attempt}")
        return RetryLater(30) if event.attempt == 1 else None

    async with TestListener(listener) as t:
        await t.emit(Asked())
        await t.emit(Tick())
        await t.settled()
    assert sorted(ran[:3]) == ["late 1", "soon 1", "tick 1"]
    assert ran[3] == "tick 2"
    assert sorted(ran[4:]) == ["late 2", "soon 2"]


class Echo(Consumer):
    """Gives back the very delivery that it got back."""

    delays = True

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self.settled: list[str] = []
        self.done = asyncio.Event()

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        pass

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        return [await self.waiting.get()]


class Echoed(Delivery):
    def __init__(self, consumer: Echo, payload: bytes) -> None:
        super().__init__("asked", payload)
        self.consumer = consumer

    async def ack(self) -> None:
        self.consumer.settled.append("ack")
        self.consumer.done.set()

    async def nack(self, delay: float | None = None) -> None:
        self.consumer.settled.append(f"nack {delay:g}")
        self.consumer.waiting.put_nowait(self)


async def test_a_delivery_that_comes_again_itself_begins_anew() -> None:
    """What was wanted of it the last time is over: handled this time, it is acknowledged."""
    consumer = Echo()
    listener = EventListener(consumer, group="g")
    ran: list[int] = []

    @listener.handler(Asked)
    async def twice(event: Event[Asked]) -> RetryLater | None:
        ran.append(event.attempt)
        return RetryLater(1) if len(ran) < 3 else None

    async with listener, asyncio.timeout(5):
        payload = b'{"id":"1","type":"asked","body":{},"timestamp":1}'
        consumer.waiting.put_nowait(Echoed(consumer, payload))
        await consumer.done.wait()
    assert consumer.settled == ["nack 1", "nack 1", "ack"]
