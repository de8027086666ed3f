"""Events that come again: whom they are for, and what a cancelled handler may not do."""

import asyncio
from typing import Any

import pytest
from pydantic import field_validator

from dispytch import (
    ConfigError,
    DeadLetter,
    EventBase,
    EventEmitter,
    EventListener,
    HandlerDefinitionError,
    Retry,
    Router,
)
from dispytch.listener import FOR_GROUP, FOR_HANDLERS
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage, MemoryProducer
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


@pytest.mark.parametrize("payload", [b"no event", _payload(Placed())], ids=["none", "one"])
async def test_an_event_for_another_group_is_acknowledged_unrun(payload: bytes) -> None:
    """Whether it can be read or not: a replay for one group makes no dead letter of others."""
    listener = EventListener(MemoryConsumer(), group="billing")
    ran: list[str] = []

    @listener.handler(Placed)
    async def note(event: Placed) -> None:
        ran.append(event.id)

    async with TestListener(listener) as t:
        await t.send("orders", payload, headers={FOR_GROUP: "shipping"})
        await t.settled()
    assert not ran
    assert not t.dead_letters


async def test_an_event_for_a_handler_that_moved_is_dead_lettered_again() -> None:
    """Its handler is there, but takes another type now: the event must not vanish."""
    listener = EventListener(MemoryConsumer(), group="billing")

    @listener.handler(topic="orders", event="moved")
    async def bill() -> None: ...

    @listener.handler(Placed)
    async def audit(event: Placed) -> None:
        raise AssertionError("not for me")

    name = f"{bill.__module__}:{bill.__qualname__}"
    async with TestListener(listener) as t:
        headers: dict[str, str | bytes] = {FOR_GROUP: "billing", FOR_HANDLERS: name}
        await t.send("orders", _payload(Placed()), headers=headers)
        gone = _payload(Placed()).replace(b'"placed"', b'"forgotten"')
        await t.send("orders", gone, headers=headers)
        await t.settled()
    assert len(t.dead_letters) == 2


async def test_a_key_that_comes_from_a_config_keeps_its_order() -> None:
    """A class without `__key__` may still be given a key: one of it waits for the one before."""
    broker = MemoryBroker()
    listener = EventListener(MemoryConsumer(broker), group="billing")
    order: list[str] = []
    all_done = asyncio.Event()

    @listener.handler(Placed)
    async def slow_first(event: Placed) -> None:
        if not order:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        order.append(event.id)
        if len(order) == 3:
            all_done.set()

    events = [Placed() for _ in range(3)]
    for event in events:
        message = MemoryMessage("orders", _payload(event), "k", {}, None, event.id, "placed")
        broker.append(message)
    async with listener, asyncio.timeout(5):
        await all_done.wait()
    assert order == [event.id for event in events]


async def test_a_cancelled_handler_that_fails_otherwise_is_not_dead_lettered() -> None:
    """A driver that turns our cancellation into its own error: the event comes again."""
    broker = MemoryBroker()
    begun = asyncio.Event()
    listener = EventListener(
        MemoryConsumer(broker), group="billing", drain_timeout=0, retry=Retry(attempts=1)
    )

    @listener.handler(Placed)
    async def translate(event: Placed) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("connection broken") from None

    async with listener:
        async with EventEmitter(MemoryProducer(broker)) as emitter:
            await emitter.emit(Placed())
        await begun.wait()
    assert broker.unsettled == 1
    assert not broker.on("orders.dlq")


async def test_what_is_declared_after_the_start_is_refused() -> None:
    """It would have no effect, and nobody would notice."""
    listener = EventListener(MemoryConsumer())

    @listener.handler(Placed)
    async def note(event: Placed) -> None: ...

    async def late(event: Placed) -> None: ...

    async with listener:
        with pytest.raises(HandlerDefinitionError, match="is started"):
            listener.handler(Placed)(late)
        with pytest.raises(ConfigError, match="is started"):
            listener.include_router(Router())
        with pytest.raises(ConfigError, match="is started"):
            listener.override(note, late)


def test_a_url_given_as_dead_letter_is_not_repeated() -> None:
    """Who mistakes it for a URL does not find the password in a log."""
    wrong: Any = "amqp://user:s3cret@host"
    with pytest.raises(ConfigError) as raised:
        EventListener(MemoryConsumer(), dead_letter=wrong)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("disturbed", ["begun", "woken"])
async def test_a_worker_cancelled_before_its_turn_is_not_waited_for(disturbed: str) -> None:
    """Whoever cancels all tasks as an event comes in: that event and those after it are handled."""
    loop, comes = asyncio.get_running_loop(), asyncio.Queue[str]()

    def cancel_workers() -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == "dispytch-worker":
                task.cancel()

    class Disturbed(EventBase):
        __topic__ = "orders"
        __event_type__ = "disturbed"

        what: str

        @field_validator("what")
        @classmethod
        def _as_it_is_read(cls, what: str) -> str:
            if what == disturbed:
                loop.call_soon(cancel_workers)
            return what

    broker = MemoryBroker()
    listener = EventListener(MemoryConsumer(broker), group="billing")

    @listener.handler(Disturbed)
    async def handle(event: Disturbed) -> None:
        comes.put_nowait(event.what)

    async with listener, EventEmitter(MemoryProducer(broker)) as emitter, asyncio.timeout(5):
        for what in ("begun", "woken", "after"):
            await emitter.emit(Disturbed.model_construct(what=what))
            assert await comes.get() == what
