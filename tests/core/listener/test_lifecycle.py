"""Lifecycle: starting, draining, failing, and leaving nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from dispytch import (
    ConfigError,
    ConnectError,
    Delivery,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Subscription,
)
from dispytch.listener import session as session_module
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer


class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"
    n: int = 0


class Watched(MemoryConsumer):
    """Tells what is called, and fails or waits where the test says."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        super().__init__(broker)
        self.calls: list[str] = []
        self.errors: dict[str, list[BaseException]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()

    async def _at(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            self.reached.set()
            await self.gates[name].wait()
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    async def start(self) -> None:
        await self._at("start")

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await self._at("subscribe")
        await super().subscribe(subscriptions)

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        await self._at("receive")
        return await super().receive(limit)

    async def ping(self) -> None:
        await self._at("ping")

    async def stop(self) -> None:
        await self._at("stop")
        await super().stop()


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """No test leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    mine = {asyncio.current_task()}
    assert {
        task for task in asyncio.all_tasks() - before if task not in mine and not task.done()
    } == set()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def emitter(broker: MemoryBroker) -> AsyncIterator[EventEmitter]:
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        yield emitter


async def until(condition: Callable[[], object]) -> None:
    """Let others go on until this is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - health and counts tell no event
            await asyncio.sleep(0)


async def within(what: Any, seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        return await what


async def test_stop_drains(broker: MemoryBroker, emitter: EventEmitter) -> None:
    """What runs finishes and is acknowledged; what did not begin comes to the next listener."""
    ours = EventListener(MemoryConsumer(broker), group="g", max_in_flight=1)
    begun, gate = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        begun.set()
        await gate.wait()
        seen.append(event.n)

    await ours.start()
    for n in range(3):
        await emitter.emit(Ping(n=n))
    await within(begun.wait())
    first, second = asyncio.ensure_future(ours.stop()), asyncio.ensure_future(ours.stop())
    await asyncio.sleep(0)
    assert not first.done()
    assert "stopping" in ours.health().problems
    gate.set()
    await within(asyncio.gather(first, second))
    await ours.stop()
    assert seen == [0]
    assert broker.unsettled == 2
    assert ours.health().problems == ("not started",)
    await ours.start()  # the same listener once more
    await until(lambda: not broker.unsettled)
    await ours.stop()
    assert seen == [0, 1, 2]


async def test_handler_that_outlives_the_drain_comes_again_alone(
    broker: MemoryBroker, emitter: EventEmitter
) -> None:
    """After `drain_timeout` it is cancelled, and only its event comes to the next listener."""
    ours = EventListener(MemoryConsumer(broker), group="g", drain_timeout=0.05)
    begun, gate = asyncio.Barrier(4), asyncio.Event()
    ended: list[Any] = []

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        await begun.wait()
        try:
            await (asyncio.Event() if event.n == 1 else gate).wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append(event.n)

    await ours.start()
    for n in range(3):
        await emitter.emit(Ping(n=n))
    await within(begun.wait())
    gate.set()
    await within(ours.stop())
    assert sorted(ended, key=str) == [0, 2, "cancelled"]

    again = EventListener(MemoryConsumer(broker), group="g")
    seen: list[Any] = []

    @again.handler(Ping)
    async def take(event: Event[Ping]) -> None:
        seen.append((event.body.n, event.attempt))

    async with again:
        await until(lambda: not broker.unsettled)
    assert seen == [(1, 2)]


@pytest.mark.parametrize("how", ["run", "async with"])
async def test_handler_may_stop_its_listener(
    how: str, broker: MemoryBroker, emitter: EventEmitter
) -> None:
    """`stop()` in a handler returns at once; nothing more is begun, and it is acknowledged."""
    ours = EventListener(MemoryConsumer(broker), group="g", max_in_flight=1)
    seen: list[int] = []
    stopped = asyncio.Event()

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        await ours.stop()
        seen.append(event.n)
        stopped.set()

    await emitter.emit(Ping(n=0))
    await emitter.emit(Ping(n=1))
    if how == "run":
        await within(ours.run())
    else:
        async with ours:
            await within(stopped.wait())
            for _ in range(20):
                await asyncio.sleep(0)
            await emitter.emit(Ping(n=2))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not ours.health()
    assert seen == [0]
    assert broker.unsettled == 1 + (how != "run")


async def test_run_ends_with_stop(broker: MemoryBroker, emitter: EventEmitter) -> None:
    """`run()` returns when another task stops the listener, and leaves signals as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ours = EventListener(MemoryConsumer(broker))
    handled = asyncio.Event()

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        handled.set()

    running = asyncio.ensure_future(ours.run())
    await asyncio.sleep(0)
    assert ours.health().problems == ("starting",)
    await until(ours.health)
    await emitter.emit(Ping())
    await within(handled.wait())
    await within(ours.stop())
    await within(running)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_cancelled_run_drains_and_disconnects(broker: MemoryBroker) -> None:
    """Cancelling `run()` stops the listener before it goes on."""
    consumer = Watched(broker)
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    running = asyncio.ensure_future(ours.run())
    await until(ours.health)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert consumer.calls[-1] == "stop"


async def nothing(event: Ping) -> None: ...


PROGRAM = """
import asyncio, os, signal
from dispytch import EventBase, EventEmitter, EventListener
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"

broker = MemoryBroker()
listener = EventListener(MemoryConsumer(broker), group="g")

@listener.handler(Ping)
async def handle(event: Ping):
    print("begun", flush=True)
    for _ in range(3):
        await asyncio.sleep(0.05)
    print("handled", flush=True)

async def main():
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(Ping())
    await listener.run()
    print("unsettled", broker.unsettled, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_ends_the_program(number: int) -> None:
    """At SIGTERM or SIGINT what runs is finished and acknowledged, and the program goes on."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, number)
        found, _ = process.communicate(timeout=30)
    assert found.split("\n")[:2] == ["handled", "unsettled 0"]
    assert process.returncode == 0


async def test_connection_that_comes_back_is_used_again(
    broker: MemoryBroker, emitter: EventEmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retriable error of `receive` is unhealthy, not the end; new events are handled after it."""
    monkeypatch.setattr(session_module, "_PAUSE", 0.01)
    consumer = Watched(broker)
    consumer.errors["receive"] = [
        ConnectError("connection gone", backend="memory", retriable=True) for _ in range(2)
    ]
    ours = EventListener(consumer)
    handled = asyncio.Event()

    @ours.handler(Ping)
    async def handle(event: Ping) -> None:
        handled.set()

    async with ours:
        await until(lambda: not ours.health())
        assert ours.health().problems == ("connection gone",)
        await emitter.emit(Ping())
        await within(handled.wait())
        assert ours.health()


async def test_connection_that_comes_back_is_healthy_though_nothing_comes(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a quiet topic a sign of life is enough to be healthy again."""
    monkeypatch.setattr(session_module, "_PAUSE", 0.01)
    monkeypatch.setattr(session_module, "_PING_EVERY", 0.01)
    consumer = Watched(broker)
    error = ConnectError("connection gone", backend="memory", retriable=True)
    consumer.errors = {"receive": [error], "ping": [error, error]}
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    async with ours, asyncio.timeout(5):
        await until(lambda: not ours.health())
        assert "connection gone" in ours.health().problems
        await until(ours.health)


@pytest.mark.parametrize(
    "error", [ConnectError("no access", backend="memory", retriable=False), RuntimeError("bug")]
)
async def test_fatal_error_of_receive_is_raised_by_run(
    broker: MemoryBroker, error: Exception
) -> None:
    """The receiving task never dies in silence: `run()` raises what ended it, all is closed."""
    consumer = Watched(broker)
    consumer.errors["receive"] = [error]
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    with pytest.raises(type(error), match=str(error)):
        await within(ours.run())
    assert consumer.calls == ["start", "subscribe", "receive", "stop"]

    consumer.errors["receive"] = [error]
    async with ours:  # nobody there to raise to: health tells
        await until(lambda: not ours.health())
        assert ours.health().problems == (f"ended: {error!r}",)


@pytest.mark.parametrize("where", ["start", "subscribe"])
async def test_failed_start_leaves_nothing_running(broker: MemoryBroker, where: str) -> None:
    """What can't connect is closed again, and may be started anew."""
    consumer = Watched(broker)
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    consumer.errors[where] = [ConnectError("refused", backend="memory")]
    with pytest.raises(ConnectError, match="refused"):
        await ours.start()
    assert consumer.calls[-1] == "stop"
    assert ours.health().problems == ("not started",)
    consumer.errors[where] = [TimeoutError("its own")]
    with pytest.raises(TimeoutError, match="its own"):
        await ours.run()
    await ours.start()
    assert ours.health()
    await ours.stop()


@pytest.mark.parametrize("where", ["start", "subscribe"])
async def test_start_that_takes_too_long_is_a_connect_error(
    broker: MemoryBroker, where: str
) -> None:
    """`timeout` bounds starting, and names the backend."""
    consumer = Watched(broker)
    consumer.gates[where] = asyncio.Event()
    ours = EventListener(consumer, timeout=0.02)
    ours.handler(Ping)(nothing)
    with pytest.raises(ConnectError, match=r"memory: not subscribed within 0\.02 s"):
        await within(ours.start())
    assert consumer.calls[-1] == "stop"


@pytest.mark.parametrize("where", ["start", "subscribe"])
@pytest.mark.parametrize("how", ["run", "start"])
async def test_stop_while_starting_stops(broker: MemoryBroker, where: str, how: str) -> None:
    """A stop that comes while the listener connects is not lost, and leaves nothing running."""
    consumer = Watched(broker)
    consumer.gates[where] = asyncio.Event()
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    starting = asyncio.ensure_future(ours.run() if how == "run" else ours.start())
    await within(consumer.reached.wait())
    await within(ours.stop())
    await within(starting)
    assert consumer.calls[-1] == "stop"
    assert "receive" not in consumer.calls
    assert ours.health().problems == ("not started",)


async def test_cancelled_start_leaves_nothing_running(broker: MemoryBroker) -> None:
    """A start that is cancelled closes what it opened."""
    consumer = Watched(broker)
    consumer.gates["subscribe"] = asyncio.Event()
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    starting = asyncio.ensure_future(ours.start())
    await within(consumer.reached.wait())
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert consumer.calls[-1] == "stop"


async def test_failing_stop_is_logged(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer that can't be closed does not keep the rest from closing."""
    consumer = Watched(broker)
    consumer.errors["stop"] = [OSError("gone")]
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    async with ours:
        await ours.start()  # a second start does nothing
    assert consumer.calls.count("start") == 1
    assert "stop failed: OSError('gone')" in caplog.text


def test_listener_belongs_to_its_loop() -> None:
    """Starting or stopping a started listener in another loop is an error."""
    ours = EventListener(MemoryConsumer(MemoryBroker()))
    ours.handler(Ping)(nothing)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(ours.start())
        for call in (ours.start, ours.stop):
            with pytest.raises(ConfigError, match="another event loop"):
                asyncio.run(call())
        loop.run_until_complete(ours.stop())
    finally:
        loop.close()
    asyncio.run(_start_and_stop(ours))


async def _start_and_stop(ours: EventListener) -> None:
    async with ours:
        assert ours.health()


async def test_sign_of_life_that_fails_is_unhealthy(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not answer is told by health until it does."""
    monkeypatch.setattr(session_module, "_PING_EVERY", 0.01)
    consumer = Watched(broker)
    consumer.gates["ping"] = asyncio.Event()
    ours = EventListener(consumer)
    ours.handler(Ping)(nothing)
    async with ours, asyncio.timeout(5):
        await until(lambda: not ours.health())
        assert "no answer within 0.01 s" in ours.health().problems
        consumer.gates["ping"].set()
        await until(ours.health)
