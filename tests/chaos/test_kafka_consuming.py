"""Receiving from Kafka while it dies, freezes, restarts, or the network fails."""

import asyncio
import contextlib
import gc
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from brokers.kafka import Kafka
from dispytch import ConnectError, Consumer, EmitError, EventBase, EventEmitter, Subscription
from dispytch.envelope import JSONDeserializer
from dispytch.plugins import backend_for_url
from dispytch.url import connect

pytest.importorskip("aiokafka")
pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

HOLD = 5.0
"""Seconds of a fault whose end is ours to choose."""

SETTLED = 2.0
"""What was acknowledged so many seconds before a fault was committed by then."""

OPTIONS = (
    "request_timeout_ms=2000&session_timeout_ms=6000&heartbeat_interval_ms=500"
    "&discovery_interval_ms=500&commit_every=50&commit_interval_ms=200"
)
WORKERS = 20


@dataclass
class Report:
    """When what happened, on the clock of `time.monotonic()`."""

    confirmed: dict[str, float] = field(default_factory=dict)
    handled: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    began: float = 0.0
    ended: float = 0.0
    back: float = 0.0
    ping_failed: bool = False

    def summary(self) -> str:
        """For the message of a failed check."""
        again = sum(len(times) - 1 for times in self.handled.values())
        return (
            f"fault of {self.ended - self.began:.1f} s, new events handled {self.back:.1f} s after "
            f"it, {len(self.confirmed)} confirmed, {len(self.handled)} handled, {again} again"
        )


def consumer_at(url: str, options: str = OPTIONS) -> Consumer:
    url = f"{url}?{options}"
    backend = backend_for_url(url)
    assert backend.connection is not None
    return backend.make_consumer(connect(url, backend.connection))


async def receive_through(
    kafka: Kafka, topic: str, url: str, fault: Callable[[], object], group: str | None
) -> Report:
    """Emit and handle before, during and after a fault, and check what must be true of both."""

    class Numbered(EventBase):
        __topic__ = topic
        __event_type__ = "numbered"
        __key__ = "{lane}"

        lane: int

    kafka.create_topic(topic, 4)
    tasks = asyncio.all_tasks()
    report = Report()
    consumer = consumer_at(url)
    consumer.drain_timeout = 5.0
    await consumer.start()
    await consumer.subscribe([Subscription(topic, group)])
    emitter = EventEmitter.from_url(f"{url}?request_timeout_ms=2000", timeout=4.0)
    ending = asyncio.Event()
    numbers = count()

    async def emit() -> None:
        while not ending.is_set():
            event = Numbered(lane=next(numbers) % 50)
            with contextlib.suppress(EmitError):
                await emitter.emit(event)
                report.confirmed[event.id] = time.monotonic()
            await asyncio.sleep(0.1)

    async def handle() -> None:
        read = JSONDeserializer().deserialize
        while True:
            for delivery in await consumer.receive(20):
                if delivery.lost:
                    continue
                delivery.running = 1
                report.handled[read(delivery.payload).id].append(time.monotonic())
                await delivery.ack()
                delivery.running = 0
            await asyncio.sleep(0.01)

    async def ping() -> None:
        while not ending.is_set():
            try:
                async with asyncio.timeout(1.0):
                    await consumer.ping()
            except (ConnectError, TimeoutError):
                report.ping_failed = True
            await asyncio.sleep(0.2)

    async def handled_since(moment: float, wanted: int, within: float) -> None:
        async with asyncio.timeout(within):
            while True:
                new = {one for one, at in report.confirmed.items() if at > moment + 1.0}
                if len(new & report.handled.keys()) >= wanted:
                    return
                await asyncio.sleep(0.05)

    async with emitter:
        handling = asyncio.create_task(handle())
        emitting = [asyncio.create_task(emit()) for _ in range(WORKERS)]
        pinging = asyncio.create_task(ping())
        try:
            await handled_since(time.monotonic() - 1.0, 300, 30)
            await asyncio.sleep(SETTLED)
            report.began = time.monotonic()
            await asyncio.to_thread(fault)
            report.ended = time.monotonic()
            await handled_since(report.ended, 100, 45)
            report.back = time.monotonic() - report.ended
            ending.set()
            await asyncio.gather(*emitting, pinging)
            async with asyncio.timeout(20):
                while report.confirmed.keys() - report.handled.keys():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await consumer.ping()
        except TimeoutError:
            raise AssertionError(report.summary()) from None
        finally:
            ending.set()
            handling.cancel()
            await asyncio.wait([handling, pinging, *emitting])
            await consumer.stop()
    check(report)
    left = asyncio.all_tasks() - tasks
    if left:
        _, left = await asyncio.wait(left, timeout=1.0)
    assert not left
    gc.collect()
    return report


def check(report: Report) -> None:
    """Nothing confirmed is missing, and what was committed did not come again."""
    summary = report.summary()
    firsts = [times[0] for times in report.handled.values()]
    for what, times in (("confirmed", [*report.confirmed.values()]), ("handled", firsts)):
        assert min(times) < report.began, f"none {what} before: {summary}"
        assert max(times) > report.ended, f"none {what} after: {summary}"
    assert not report.confirmed.keys() - report.handled.keys(), summary
    again = [times for times in report.handled.values() if len(times) > 1]
    early = [times for times in again if times[0] < report.began - SETTLED]
    assert not early, f"{len(early)} came again though committed: {summary}"


def without_duplicates(report: Report) -> None:
    again = [times for times in report.handled.values() if len(times) > 1]
    assert not again, report.summary()


@pytest.mark.parametrize("grouped", [True, False])
async def test_a_killed_broker_costs_time_and_no_events(
    own_kafka: Kafka, unique_name: str, *, grouped: bool
) -> None:
    """Killed and started again, the consumer goes on by itself where it was."""

    def fault() -> None:
        own_kafka.kill()
        time.sleep(2)
        own_kafka.start()

    group = unique_name if grouped else None
    report = await receive_through(own_kafka, unique_name, own_kafka.url, fault, group)
    assert report.ping_failed
    if not grouped:
        without_duplicates(report)


async def test_an_orderly_restart_too(own_kafka: Kafka, unique_name: str) -> None:
    """The coordinator comes back as well."""
    await receive_through(own_kafka, unique_name, own_kafka.url, own_kafka.restart, unique_name)


async def test_a_broker_frozen_for_20_seconds_is_waited_for(
    own_kafka: Kafka, unique_name: str
) -> None:
    """Longer than the session: the membership ends, and begins anew."""

    def fault() -> None:
        own_kafka.freeze()
        time.sleep(20)
        own_kafka.thaw()

    report = await receive_through(own_kafka, unique_name, own_kafka.url, fault, unique_name)
    assert report.ping_failed


async def test_reset_connections_are_replaced(own_kafka: Kafka, unique_name: str) -> None:
    """Again and again, while others keep working."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            for _ in range(10):
                proxy.reset()
                time.sleep(0.3)

        await receive_through(own_kafka, unique_name, own_kafka.proxied_url, fault, unique_name)


async def test_a_black_hole_is_noticed_and_left(own_kafka: Kafka, unique_name: str) -> None:
    """Bytes vanish for longer than the session."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            proxy.black_hole()
            time.sleep(HOLD + 6.0)
            proxy.restore()

        report = await receive_through(
            own_kafka, unique_name, own_kafka.proxied_url, fault, unique_name
        )
    assert report.ping_failed


@pytest.mark.parametrize("harm", ["kill", "freeze"])
@pytest.mark.parametrize("grouped", [True, False])
async def test_stop_returns_and_leaves_nothing_with_the_broker_gone(
    own_kafka: Kafka, unique_name: str, harm: str, *, grouped: bool
) -> None:
    """With something left to commit, within seconds; no task and no socket stays."""
    own_kafka.create_topic(unique_name, 2)
    before = asyncio.all_tasks()
    consumer = consumer_at(own_kafka.url, "heartbeat_interval_ms=300&commit_interval_ms=60000")
    await consumer.start()
    await consumer.subscribe([Subscription(unique_name, unique_name if grouped else None)])
    async with EventEmitter.from_url(own_kafka.url) as emitter:

        class Held(EventBase):
            __topic__ = unique_name
            __event_type__ = "held"

        await emitter.emit(Held())
    for delivery in await consumer.receive(10):
        await delivery.ack()
    receiving = asyncio.create_task(consumer.receive(10))
    await asyncio.to_thread(getattr(own_kafka, harm))
    await asyncio.sleep(1.0)
    began = time.monotonic()
    await consumer.stop()
    assert time.monotonic() - began < 9
    with pytest.raises(ConnectError):
        await receiving
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=1.0)
    assert not left
    gc.collect()  # what was not closed would warn now, and a warning is an error


@pytest.mark.parametrize("harm", ["kill", "freeze"])
async def test_start_and_subscribe_tell_that_the_broker_is_gone(
    own_kafka: Kafka, unique_name: str, harm: str
) -> None:
    """Both are a ConnectError worth another try, and leave nothing."""
    options = "request_timeout_ms=1500"
    subscribing = consumer_at(own_kafka.url, options)
    await subscribing.start()
    await asyncio.to_thread(getattr(own_kafka, harm))
    for attempt in (
        consumer_at(own_kafka.url, options).start(),
        subscribing.subscribe([Subscription(unique_name, unique_name)]),
    ):
        began = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            await attempt
        assert caught.value.retriable
        assert time.monotonic() - began < 9
    await subscribing.stop()
    gc.collect()
