"""Handlers that want their event later."""

from dispytch import Event, EventBase, EventListener, RetryLater
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
