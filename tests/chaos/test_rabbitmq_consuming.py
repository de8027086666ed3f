"""Consuming from RabbitMQ while it dies, freezes, restarts, or the network fails."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from brokers.rabbitmq import RabbitMQ
from dispytch import (
    ConnectError,
    Consumer,
    Delivery,
    EmitError,
    EventBase,
    EventEmitter,
    SettleError,
    Subscription,
)
from dispytch.plugins import backend_for_url
from dispytch.url import connect

pytest.importorskip("aio_pika")
pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]

RECOVERY = 30.0
"""Seconds after a fault until new events must arrive."""


def make_consumer(url: str) -> Consumer:
    backend = backend_for_url(url)
    assert backend.connection is not None
    return backend.make_consumer(connect(url, backend.connection))


@dataclass
class Flow:
    """Emits and receives side by side, and keeps when what happened."""

    topic: str
    emitter: EventEmitter
    consumer: Consumer
    confirmed: dict[int, float] = field(default_factory=dict)
    received: dict[int, float] = field(default_factory=dict)
    orders: list[int] = field(default_factory=list)
    lost: list[Delivery] = field(default_factory=list)
    pings: list[tuple[float, bool]] = field(default_factory=list)

    async def emit(self) -> None:
        topic = self.topic

        class Numbered(EventBase):
            __topic__ = topic
            __event_type__ = "numbered"
            __key__ = "one"

            number: int

        for number in count():
            try:
                await self.emitter.emit(Numbered(number=number))
            except EmitError:
                await asyncio.sleep(0.1)
            else:
                self.confirmed[number] = time.monotonic()
            await asyncio.sleep(0.01)

    async def receive(self) -> None:
        while True:
            for delivery in await self.consumer.receive(50):
                number = json.loads(delivery.payload)["body"]["number"]
                if number not in self.received:
                    self.received[number] = time.monotonic()
                    self.orders.append(number)
                try:
                    await delivery.ack()
                except SettleError:
                    self.lost.append(delivery)

    async def ping(self) -> None:
        while True:
            try:
                async with asyncio.timeout(2):
                    await self.consumer.ping()
            except (ConnectError, TimeoutError):
                self.pings.append((time.monotonic(), False))
            else:
                self.pings.append((time.monotonic(), True))
            await asyncio.sleep(0.5)

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - polls what others write
                await asyncio.sleep(0.05)


async def consume_through(
    broker: RabbitMQ, topic: str, consuming_url: str, fault: Callable[[], object]
) -> Flow:
    """Run events through a fault, and check what must be true after every one."""
    before = asyncio.all_tasks()
    flow = Flow(topic, EventEmitter.from_url(broker.url, timeout=5), make_consumer(consuming_url))
    await flow.consumer.start()
    await flow.consumer.subscribe([Subscription(topic, "g")])
    await asyncio.to_thread(broker.write_declarations)
    await flow.emitter.start()
    work = [asyncio.create_task(one()) for one in (flow.emit, flow.receive, flow.ping)]
    try:
        await flow.until(lambda: len(flow.received) > 100, RECOVERY)
        began = time.monotonic()
        await asyncio.to_thread(fault)
        ended = time.monotonic()
        await flow.until(lambda: _since(flow.confirmed, ended) > 100, RECOVERY)
        await flow.until(lambda: _since(flow.received, ended) > 100, RECOVERY)
        work[0].cancel()
        await flow.until(lambda: flow.confirmed.keys() <= flow.received.keys(), RECOVERY)
        await flow.until(lambda: flow.pings[-1][1], RECOVERY)
        async with asyncio.timeout(RECOVERY):
            while await flow.consumer.backlog() != 0:  # noqa: ASYNC110 - only the broker knows
                await asyncio.sleep(0.1)
    finally:
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        stopping = time.monotonic()
        await flow.consumer.stop()
        assert time.monotonic() - stopping < 6
        await flow.emitter.stop()
    assert any(when < began for when in flow.received.values())
    assert any(began < when < ended and not well for when, well in flow.pings), flow.pings
    assert flow.orders == sorted(flow.orders)
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=2)
    assert not left
    return flow


def _since(times: dict[int, float], moment: float) -> int:
    return sum(when > moment for when in times.values())


async def test_a_killed_broker_is_met_again(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """Killed and started again: everything confirmed arrives, in order, and new events too."""

    def fault() -> None:
        own_rabbitmq.kill()
        time.sleep(1)
        own_rabbitmq.start()

    await consume_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)


async def test_a_frozen_broker_is_waited_for(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """Frozen for 20 s it is not left: the channel goes on, and nothing comes twice."""

    def fault() -> None:
        own_rabbitmq.freeze()
        time.sleep(20)
        own_rabbitmq.thaw()

    flow = await consume_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)
    assert not flow.lost


async def test_reset_connections_are_replaced(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """Reset again and again, the consumer comes back each time."""
    with own_rabbitmq.proxy() as proxy:

        def fault() -> None:
            proxy.refuse()
            time.sleep(2)
            proxy.restore()
            for _ in range(5):
                time.sleep(0.5)
                proxy.reset()

        url = own_rabbitmq.url_for(port=proxy.port)
        await consume_through(own_rabbitmq, unique_name, f"{url}?reconnect_interval=0.3", fault)


async def test_a_black_hole_is_noticed(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """Where nothing comes any more the heartbeat tells, and a new connection is made."""
    with own_rabbitmq.proxy() as proxy:

        def fault() -> None:
            proxy.black_hole()
            time.sleep(10)  # longer than 3 * (heartbeat + 1)
            before = proxy.connections
            assert before > 1  # it tried again by itself
            proxy.restore()

        url = own_rabbitmq.url_for(port=proxy.port)
        options = "heartbeat=1&connect_timeout=2&reconnect_interval=0.3"
        await consume_through(own_rabbitmq, unique_name, f"{url}?{options}", fault)


@pytest.mark.parametrize("state", ["gone", "frozen", "unreachable"])
async def test_stop_returns_whatever_the_broker_does(
    own_rabbitmq: RabbitMQ, unique_name: str, state: str
) -> None:
    """Stopping takes seconds with the broker dead, frozen or cut off, whatever is unsettled."""
    before = asyncio.all_tasks()
    with own_rabbitmq.proxy() as proxy:
        consumer = make_consumer(own_rabbitmq.url_for(port=proxy.port))
        await consumer.start()
        await consumer.subscribe([Subscription(unique_name, "g")])
        flow = Flow(unique_name, EventEmitter.from_url(own_rabbitmq.url, timeout=5), consumer)
        async with flow.emitter:
            emitting = asyncio.create_task(flow.emit())
            first, *_ = await consumer.receive(10)
            await first.nack(1)  # opens the connection for delays
            second, *_ = await consumer.receive(10)
            emitting.cancel()
            await asyncio.wait((emitting,))
        faults = {
            "gone": own_rabbitmq.kill,
            "frozen": own_rabbitmq.freeze,
            "unreachable": proxy.black_hole,
        }
        await asyncio.to_thread(faults[state])
        try:
            await second.ack()
        except SettleError:
            assert state == "gone"
        began = time.monotonic()
        await consumer.stop()
        assert time.monotonic() - began < 8
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=2)
    assert not left


_POISONED = """
import asyncio, os, signal, sys
from dispytch import Event, EventListener
from pydantic import BaseModel

class Body(BaseModel):
    number: int

listener = EventListener.from_url(sys.argv[1], group="g")

@listener.handler(topic=sys.argv[2], event="numbered")
async def handle(event: Event[Body]) -> None:
    if event.body.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print("handled", event.body.number, flush=True)

asyncio.run(listener.run())
"""


async def test_an_event_that_kills_its_process_is_bounded(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """After `delivery_limit` deaths the broker puts it aside, and what is behind it is handled."""

    class Numbered(EventBase):
        __topic__ = unique_name
        __event_type__ = "numbered"
        __key__ = "one"

        number: int

    url = f"{own_rabbitmq.url}?delivery_limit=2"
    consumer = make_consumer(url)
    await consumer.start()
    await consumer.subscribe([Subscription(unique_name, "g")])
    await consumer.stop()
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit(Numbered(number=1))
        deaths = 0
        while own_rabbitmq.queue_size(f"{unique_name}.dlq") == 0:
            process = await _listen(url, unique_name)
            async with asyncio.timeout(20):
                assert await process.wait() == -signal.SIGKILL
            deaths += 1
            await asyncio.sleep(0.5)  # the broker's moment to see it and to move the event
        assert deaths == 3
        await emitter.emit(Numbered(number=2))
        process = await _listen(url, unique_name)
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"handled 2\n"
        process.terminate()
        await process.communicate()


async def _listen(url: str, topic: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _POISONED, url, topic, stdout=asyncio.subprocess.PIPE
    )
