"""Failure: retries, outcomes, and dead letters."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from dispytch import (
    Ack,
    ConnectError,
    DeadLetter,
    Delivery,
    Drop,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Outgoing,
    Retry,
    RetryLater,
    Router,
    SettleError,
    Subscription,
)
from dispytch.consumer import Consumer
from dispytch.listener import DEAD_LETTER_HEADERS, FOR_HANDLERS
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage, MemoryProducer
from dispytch.testing import TestListener


class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"
    __key__ = "{who}"
    who: str = "me"
    n: int = 0


def listener(**options: Any) -> EventListener:
    return EventListener(MemoryConsumer(MemoryBroker()), **options)


def told(letter: MemoryMessage, name: str) -> str:
    return str(letter.headers[DEAD_LETTER_HEADERS + name])


def test_wait_doubles_up_to_the_cap() -> None:
    """Waits are base, twice that, ... at most cap; with jitter a random upper half of it."""
    plain = Retry(base=0.1, cap=1, jitter=False)
    assert [round(plain.wait(n), 3) for n in (1, 2, 3, 4, 5, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1, 1]
    spread = {Retry(base=1, cap=1).wait(1) for _ in range(100)}
    assert len(spread) > 50
    assert all(0.5 <= wait <= 1 for wait in spread)
    assert Retry(base=1e308, cap=5, jitter=False).wait(60) == 5


@pytest.mark.parametrize(
    ("handler", "router", "expected"), [(None, None, 4), (None, 3, 3), (2, 3, 2)]
)
async def test_nearest_retry_counts(handler: Any, router: Any, expected: int) -> None:
    """The handler's own retry wins over the router's, that over the listener's."""

    def retry(attempts: int | None) -> Retry | None:
        return None if attempts is None else Retry(attempts)

    ours, attempts = listener(retry=Retry(4)), []
    inner = Router(retry=retry(router))
    ours.include_router(inner)

    @inner.handler(Ping, retry=retry(handler))
    async def handle(event: Event[Ping]) -> None:
        attempts.append(event.attempt)
        raise ValueError

    async with TestListener(ours) as t:
        await t.emit(Ping())
        await t.settled()
        assert told(t.dead_letters[0], "attempts") == str(expected)
    assert attempts == list(range(1, expected + 1))


async def test_other_exceptions_are_dead_lettered_at_once() -> None:
    """Only `on` is worth another attempt."""
    ours, attempts = listener(), []

    @ours.handler(Ping, retry=Retry(on=(OSError,)))
    async def handle(event: Event[Ping]) -> None:
        attempts.append(event.body.n)
        raise ConnectionError if event.body.n else ValueError

    async with TestListener(ours) as t:
        await t.emit(Ping(n=0))
        await t.emit(Ping(n=1))
        await t.settled()
        assert len(t.dead_letters) == 2
    assert attempts == [0, 1, 1, 1]


async def test_dead_letter_is_the_original_and_says_why() -> None:
    """Original bytes, key and headers; reason, error, message, where, attempts, who, when."""
    ours = listener(group="billing")

    @ours.handler(Ping, retry=Retry(2))
    async def handle(event: Ping) -> None:
        raise LookupError("no such\nuser " + "x" * 5000 + "\ud800")

    payload = b' {"id":"i1", "type":"ping","body":{"who":"a"},"timestamp":1, "more": 1}'
    async with TestListener(ours) as t:
        await t.send("pings", payload, key="k", headers={"trace": b"\x00\xff"})
        await t.settled()
        [letter] = t.dead_letters
    assert (letter.topic, letter.payload, letter.key) == ("pings.dlq", payload, "k")
    assert letter.headers["trace"] == b"\x00\xff"
    assert told(letter, "reason").startswith("failed 2 times: LookupError: no such user xxx")
    assert len(told(letter, "reason")) <= 1000
    assert told(letter, "error") == "builtins.LookupError"
    assert "test_failure.py" in told(letter, "traceback")
    assert told(letter, "attempts") == "2"
    assert told(letter, "topic") == "pings"
    assert told(letter, "group") == "billing"
    assert told(letter, "handler") == f"{handle.__module__}:{handle.__qualname__}"
    assert told(letter, "id") == "i1"
    assert told(letter, "type") == "ping"
    assert told(letter, "time").endswith("+00:00")


async def test_outcomes_decide() -> None:
    """Ack and anything that is no outcome handle, Drop drops, DeadLetter buries at once."""
    ours = listener()
    outcomes: list[Any] = [Ack(), None, 5, "x", Drop(), DeadLetter("never"), DeadLetter()]

    @ours.handler(Ping)
    async def handle(event: Ping) -> Any:
        return outcomes[event.n]

    async with TestListener(ours) as t:
        for n in range(len(outcomes)):
            await t.emit(Ping(n=n))
        await t.settled()
        assert [told(each, "reason") for each in t.dead_letters] == [
            "never",
            "rejected by its handler",
        ]
        counts = t.health.counts
    assert (counts.handled, counts.dropped, counts.dead_lettered, counts.failed) == (4, 1, 2, 0)


@pytest.mark.parametrize("outcome", [Ack, Drop, DeadLetter, RetryLater])
async def test_class_of_an_outcome_is_a_failure(outcome: Any) -> None:
    """A forgotten call is told, not taken for success."""
    ours = listener(retry=Retry(1))

    @ours.handler(Ping)
    async def handle(event: Ping) -> Any:
        return outcome

    async with TestListener(ours) as t:
        await t.emit(Ping())
        await t.settled()
        assert f"return {outcome.__name__}()" in told(t.dead_letters[0], "reason")


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan")])
def test_retry_later_needs_a_delay(delay: float) -> None:
    """A delay that can't be waited for is refused where it is given."""
    with pytest.raises(ValueError, match="RetryLater"):
        RetryLater(delay)


@pytest.mark.parametrize("broker_waits", [True, False])
async def test_retry_later_gives_up_order_and_names_the_unfinished(
    broker_waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of the key goes ahead; only the handlers that want it get it again, later."""
    monkeypatch.setattr(MemoryConsumer, "delays", broker_waits)
    ours, seen = listener(), []

    @ours.handler(Ping)
    async def wants_it_again(event: Event[Ping]) -> Any:
        seen.append(("again", event.body.n, event.attempt))
        return RetryLater(60) if event.body.n == 0 and event.attempt < 3 else None

    @ours.handler(Ping)
    async def other(event: Event[Ping]) -> None:
        seen.append(("other", event.body.n, event.attempt))

    async with TestListener(ours) as t:
        await t.emit(Ping(n=0))
        await t.emit(Ping(n=1))
        await t.settled()
        assert not t.dead_letters
        assert t.health.counts.failed == 0
    assert [each[1:] for each in seen if each[0] == "again"] == [(0, 1), (1, 1), (0, 2), (0, 3)]
    assert [each[1:] for each in seen if each[0] == "other"] == [(0, 1), (1, 1)]


class Unreachable(MemoryProducer):
    """A dead-letter producer whose broker is gone for a while."""

    def __init__(self, broker: MemoryBroker, failures: int) -> None:
        super().__init__(broker)
        self.failures, self.tried = failures, asyncio.Event()

    async def send_message(self, out: Outgoing, /) -> Any:
        self.tried.set()
        if self.failures:
            self.failures -= 1
            raise ConnectError("gone", backend="memory")
        return await super().send_message(out)


class Now:
    """Timers that wait for nobody: what is due later is due when the test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Any, Any]] = []
        self.news = asyncio.Event()

    def call_later(self, delay: float, callback: Any, item: Any, /) -> Any:
        self.due.append((delay, callback, item))
        self.news.set()
        return asyncio.get_running_loop().call_soon(lambda: None)

    async def fire(self) -> float:
        await self.news.wait()
        self.news.clear()
        delay, callback, item = self.due.pop()
        callback(item)
        return delay


async def test_dead_letter_topic_unreachable_keeps_the_event_until_it_is_there() -> None:
    """Not acknowledged, tried again ever later, health says so; once it is reached all is well."""
    broker, timers = MemoryBroker(), Now()
    producer = Unreachable(broker, failures=3)
    ours = EventListener(MemoryConsumer(broker), dead_letter=producer, retry=Retry(1), group="g")
    ours.timers = timers
    handled: list[int] = []
    done = asyncio.Event()

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        handled.append(event.n)
        if event.n:
            done.set()
        else:
            raise ValueError

    async with ours, EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Ping(n=0))
        delays = []
        for left in (2, 1, 0):
            await timers.news.wait()
            assert producer.failures == left
            health = ours.health()
            assert not health
            assert "dead letters can't be sent: ConnectError: gone" in health.problems[0]
            assert broker.unsettled == 1
            delays.append(await timers.fire())
        await emitter.emit(Ping(n=1))  # of the same key: behind the other one
        async with asyncio.timeout(5):
            await done.wait()
        assert ours.health()
        assert [each.topic for each in broker.messages] == ["pings", "pings", "pings.dlq"]
    assert broker.unsettled == 0
    assert handled == [0, 1]
    assert delays == [0.5, 1.0, 2.0]


async def test_listener_without_dead_letters_keeps_the_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no dead-letter producer nothing is thrown away, and health says so."""
    monkeypatch.setattr(MemoryConsumer, "dead_letter_producer", lambda self: None)
    broker, timers = MemoryBroker(), Now()
    ours = EventListener(MemoryConsumer(broker), retry=Retry(1), group="g")
    ours.timers = timers

    @ours.handler(Ping)
    async def handle(event: Ping) -> Any:
        return DeadLetter()

    async with ours, EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Ping())
        await timers.news.wait()
        assert "no dead-letter producer" in ours.health().problems[0]
    assert broker.unsettled == 1


@pytest.mark.parametrize("how", ["raise", "cancel itself", "cancelled child"])
async def test_handler_that_is_cancelled_from_within_never_acks(how: str) -> None:
    """A CancelledError of the handler's own is no success: the event comes again."""
    ours, seen = listener(max_in_flight=1), []

    @ours.handler(Ping)
    async def handle(event: Event[Ping]) -> None:
        seen.append((event.body.n, event.attempt))
        if len(seen) > 1:
            return
        if how == "raise":
            raise asyncio.CancelledError
        task = asyncio.current_task()
        if how == "cancelled child":
            task = asyncio.ensure_future(asyncio.Event().wait())  # type: ignore[assignment]
        assert task is not None
        task.cancel()
        await (asyncio.sleep(0) if how == "cancel itself" else task)

    async with TestListener(ours) as t:
        await t.emit(Ping(n=0))
        await t.emit(Ping(n=1))
        await t.settled()
        assert t.health
        assert t.health.counts.handled == 2
        assert not t.dead_letters
    assert seen == [(0, 1), (0, 2), (1, 1)]  # of one key: its order is kept


ENDING = """
import asyncio, sys
from dispytch import EventBase, EventEmitter, EventListener
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"

broker = MemoryBroker()
listener = EventListener(MemoryConsumer(broker), group="g", drain_timeout=0)

@listener.handler(Ping)
{define} handle(event: Ping):
    raise {error}

async def main():
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Ping())
    await listener.run()

try:
    asyncio.run(main())
except BaseException as error:
    print(type(error).__name__)
print(broker.unsettled, len(broker.messages))
"""


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
@pytest.mark.parametrize("define", ["async def", "def"])
def test_handler_that_ends_the_process_never_acks(error: str, define: str) -> None:
    """SystemExit and KeyboardInterrupt go through: neither acknowledged nor dead-lettered."""
    code = ENDING.format(error=error, define=define)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert found.stdout.split() == [error.partition("(")[0], "1", "1"], found.stderr


class Scripted(Consumer):
    """Delivers what the test puts in, and remembers how it was settled."""

    backend = "scripted"

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.settled: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.unsettling = False

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None: ...

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        found = await self.incoming.get()
        if isinstance(found, BaseException):
            raise found
        return [found]

    def put(self, n: int, **more: Any) -> "Told":
        payload = b'{"id":"%d","type":"ping","body":{"n":%d},"timestamp":1}' % (n, n)
        delivery = Told(self, "pings", payload, **more)
        self.incoming.put_nowait(delivery)
        return delivery


class Told(Delivery):
    __slots__ = ("_consumer",)

    def __init__(self, consumer: Scripted, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._consumer = consumer

    async def ack(self) -> None:
        if self._consumer.unsettling:
            self._consumer.settled.put_nowait(("lost", ""))
            raise SettleError("gone")
        self._consumer.settled.put_nowait(("ack", self.payload.decode()[7]))

    async def nack(self, delay: float | None = None) -> None:
        self._consumer.settled.put_nowait(("nack", str(dict(self.headers).get(FOR_HANDLERS))))


async def test_lost_delivery_is_not_begun() -> None:
    """What the backend has marked lost comes again elsewhere: it is neither run nor settled."""
    consumer = Scripted()
    ours = EventListener(consumer, max_in_flight=1)
    seen: list[int] = []
    gate, begun = asyncio.Event(), asyncio.Event()

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        seen.append(event.n)
        begun.set()
        await gate.wait()

    async with ours, asyncio.timeout(5):
        first = consumer.put(0, key="a")
        behind = consumer.put(1, key="a")
        behind.lost = True
        consumer.put(2, key="a")
        await begun.wait()
        assert first.running == 1
        gate.set()
        assert [await consumer.settled.get() for _ in range(2)] == [("ack", "0"), ("ack", "2")]
        assert first.running == 0
    assert seen == [0, 2]


async def test_delivery_that_cant_be_settled_is_counted() -> None:
    """A SettleError is no failure of the handler's: it is counted, and the event comes again."""
    consumer = Scripted()
    ours = EventListener(consumer)

    @ours.handler(Ping)
    async def handle(event: Ping) -> None: ...

    async with ours, asyncio.timeout(5):
        consumer.unsettling = True
        consumer.put(0)
        await consumer.settled.get()
        consumer.unsettling = False
        consumer.put(1)
        assert await consumer.settled.get() == ("ack", "1")
        counts = ours.health().counts
    assert (counts.unsettled, counts.handled, counts.failed) == (1, 2, 0)


async def test_dead_letters_confirmation_comes_before_the_ack() -> None:
    """The original is acknowledged only after the dead letter is confirmed."""
    consumer, log = Scripted(), []
    confirmed = asyncio.Event()
    sending = asyncio.Event()

    class Slow(MemoryProducer):
        async def send_message(self, out: Outgoing, /) -> Any:
            sending.set()
            await confirmed.wait()
            log.append("confirmed")

    ours = EventListener(consumer, dead_letter=Slow())

    @ours.handler(Ping)
    async def handle(event: Ping) -> Any:
        return DeadLetter()

    async with ours, asyncio.timeout(5):
        consumer.put(0)
        await sending.wait()
        assert consumer.settled.empty()
        confirmed.set()
        log.append((await consumer.settled.get())[0])
    assert log == ["confirmed", "ack"]
