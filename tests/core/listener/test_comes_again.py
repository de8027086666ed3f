"""Events that come again: whom they are for, and what a cancelled handler may not do."""

import asyncio

from dispytch import DeadLetter, EventBase, EventEmitter, EventListener
from dispytch.listener import FOR_GROUP, FOR_HANDLERS
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.producer import HeaderPairs
from dispytch.testing import TestListener


class Placed(EventBase):
    __topic__ = "orders"
    __event_type__ = "placed"


def _payload(event: EventBase) -> bytes:
    return b'{"id":"%b","type":"placed","body":{},"timestamp":1}' % event.id.encode()


async def test_an_event_for_a_handler_that_is_gone_is_dead_lettered_again() -> None:
    """What is addressed to a handler that was renamed meanwhile is not acknowledged unseen."""
    listener = EventListener(MemoryConsumer(), group="billing")
    ran: list[str] = []

    @listener.handler(Placed)
    async def stays(event: Placed) -> None:
        ran.append(event.id)

    name = f"{stays.__module__}:{stays.__qualname__}"
    headers: dict[str, str | bytes] = {
        FOR_GROUP: "billing",
        FOR_HANDLERS: f"{name},elsewhere:gone",
    }
    event = Placed()
    async with TestListener(listener) as t:
        await t.send("orders", _payload(event), headers=headers)
        await t.settled()
    assert ran == [event.id]
    (letter,) = t.dead_letters
    assert letter.headers["x-dispytch-dlq-handler"] == "elsewhere:gone"


async def test_a_handler_that_ignores_its_cancellation_gets_the_event_again() -> None:
    """A handler that returns although it was cancelled at the end has not handled its event."""
    broker = MemoryBroker()
    begun = asyncio.Event()
    listener = EventListener(MemoryConsumer(broker), group="billing", drain_timeout=0)

    @listener.handler(Placed)
    async def stubborn(event: Placed) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    async with listener:
        async with EventEmitter(MemoryProducer(broker)) as emitter:
            await emitter.emit(Placed())
        await begun.wait()
    assert broker.unsettled == 1


async def test_a_dead_letter_keeps_headers_whose_name_comes_twice() -> None:
    """The original headers go along as they came, each of them."""
    listener = EventListener(MemoryConsumer(), group="billing")

    @listener.handler(Placed)
    async def fails(event: Placed) -> DeadLetter:
        return DeadLetter("no")

    pairs: list[tuple[str, str | bytes]] = [("hop", "a"), ("hop", "b"), ("other", "c")]
    async with TestListener(listener) as t:
        await t.send("orders", _payload(Placed()), headers=HeaderPairs(pairs))
        await t.settled()
    (letter,) = t.dead_letters
    kept = [pair for pair in letter.headers.items() if pair[0] in {"hop", "other"}]
    assert kept == [("hop", b"a"), ("hop", b"b"), ("other", b"c")]
