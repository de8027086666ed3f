"""Emitting to Kafka, through either client, while it dies, freezes, or the network fails."""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Collection

import pytest

from brokers.kafka import Kafka
from chaos.scenario import Report, run
from dispytch import ConnectError, EmitRejected, EmitUnknown, EventBase, EventEmitter

pytest.importorskip("aiokafka")
pytest.importorskip("confluent_kafka")
pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

TIMEOUT = 4.0
HOLD = TIMEOUT + 2.0
"""Seconds a fault lasts where its end is ours to choose: emits time out within it."""


@pytest.fixture(params=["kafka", "kafka+confluent"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Of either backend."""
    return str(request.param)


def of(url: str, scheme: str) -> str:
    return url.replace("kafka:", f"{scheme}:")


async def emit_through(
    kafka: Kafka, topic: str, url: str, fault: Callable[[], object], options: str = ""
) -> Report:
    class Numbered(EventBase):
        __topic__ = topic
        __event_type__ = "numbered"
        __key__ = "{lane}"

        lane: int

    def read_back(count: int) -> Collection[str]:
        records = kafka.read_all(topic, count)
        return [json.loads(record.value or b"")["id"] for record in records]

    kafka.create_topic(topic, 5)
    emitter = EventEmitter.from_url(f"{url}?request_timeout_ms=2000{options}", timeout=TIMEOUT)
    return await run(
        emitter, lambda number: Numbered(lane=number % 50), fault, read_back, timeout=TIMEOUT
    )


@pytest.mark.parametrize("options", ["", "&idempotent=false"])
async def test_a_killed_broker_loses_nothing_confirmed(
    own_kafka: Kafka, unique_name: str, scheme: str, options: str
) -> None:
    """Killed and started again: receipts are kept, rejections are true, the emitter recovers."""

    def fault() -> None:
        own_kafka.kill()
        own_kafka.start()

    await emit_through(own_kafka, unique_name, of(own_kafka.url, scheme), fault, options)


async def test_a_frozen_broker_makes_emits_time_out_and_nothing_else(
    own_kafka: Kafka, unique_name: str, scheme: str
) -> None:
    """Frozen, it may get what was sent once it thaws: those outcomes are unknown."""

    def fault() -> None:
        own_kafka.freeze()
        time.sleep(HOLD)
        own_kafka.thaw()

    report = await emit_through(own_kafka, unique_name, of(own_kafka.url, scheme), fault)
    assert any(isinstance(emit.outcome, EmitUnknown) for emit in report.emits), report.summary()


async def test_a_restarted_broker_is_met_again(
    own_kafka: Kafka, unique_name: str, scheme: str
) -> None:
    """An orderly restart costs time, not events."""
    await emit_through(own_kafka, unique_name, of(own_kafka.url, scheme), own_kafka.restart)


async def test_reset_connections_are_replaced(
    own_kafka: Kafka, unique_name: str, scheme: str
) -> None:
    """Connections reset again and again lose nothing that was confirmed."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            for _ in range(10):
                proxy.reset()
                time.sleep(0.3)

        await emit_through(own_kafka, unique_name, of(own_kafka.proxied_url, scheme), fault)


async def test_a_black_hole_makes_emits_time_out_and_nothing_else(
    own_kafka: Kafka, unique_name: str, scheme: str
) -> None:
    """What vanished in the network is unknown, and the emitter finds back by itself."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            proxy.black_hole()
            time.sleep(HOLD)
            proxy.restore()

        report = await emit_through(
            own_kafka, unique_name, of(own_kafka.proxied_url, scheme), fault
        )
    assert any(isinstance(emit.outcome, EmitUnknown) for emit in report.emits), report.summary()


async def test_a_refusing_network_is_waited_for(
    own_kafka: Kafka, unique_name: str, scheme: str
) -> None:
    """Refused connections are tried again until they work."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            proxy.refuse()
            time.sleep(HOLD)
            proxy.restore()

        await emit_through(own_kafka, unique_name, of(own_kafka.proxied_url, scheme), fault)


@pytest.mark.parametrize("harm", ["kill", "freeze"])
@pytest.mark.parametrize("timeout", [1.5, 8.0])
async def test_stop_returns_and_leaves_nothing_with_the_broker_gone(
    own_kafka: Kafka, unique_name: str, scheme: str, harm: str, timeout: float
) -> None:
    """The client would wait for the broker for ever: it is dropped with all its tasks."""

    class Pending(EventBase):
        __topic__ = unique_name
        __event_type__ = "pending"

    own_kafka.create_topic(unique_name)
    before = asyncio.all_tasks()
    emitter = EventEmitter.from_url(of(own_kafka.url, scheme), timeout=timeout)
    await emitter.start()
    await emitter.emit(Pending())
    await asyncio.to_thread(getattr(own_kafka, harm))
    emits = [asyncio.create_task(emitter.emit(Pending())) for _ in range(20)]
    await asyncio.wait(emits, timeout=1.0)
    began = time.monotonic()
    await emitter.stop()
    assert time.monotonic() - began < 8
    outcomes = await asyncio.gather(*emits, return_exceptions=True)
    assert all(isinstance(outcome, EmitUnknown) for outcome in outcomes), outcomes
    assert time.monotonic() - began < 8
    left = asyncio.all_tasks() - before
    if left:  # dropping may still be at its end
        _, left = await asyncio.wait(left, timeout=2.0)
    assert not left
    gc.collect()  # what was not closed would warn now, and a warning is an error
    with pytest.raises(EmitRejected):
        await emitter.emit(Pending())


@pytest.mark.parametrize("harm", ["kill", "freeze"])
async def test_ping_and_start_tell_that_the_broker_is_gone(
    own_kafka: Kafka, harm: str, scheme: str
) -> None:
    """Both are ConnectError, within the emitter's time."""
    async with EventEmitter.from_url(of(own_kafka.url, scheme), timeout=2.0) as emitter:
        await emitter.ping()
        await asyncio.to_thread(getattr(own_kafka, harm))
        began = time.monotonic()
        with pytest.raises(ConnectError):
            await emitter.ping()
        with pytest.raises(ConnectError):
            await EventEmitter.from_url(of(own_kafka.url, scheme), timeout=2.0).start()
        assert time.monotonic() - began < 7
