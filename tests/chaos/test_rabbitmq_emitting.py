"""Emitting to RabbitMQ while it dies, freezes, restarts, or the network fails."""

import asyncio
import time
from collections.abc import Callable, Collection

import pytest

from brokers.rabbitmq import RabbitMQ
from chaos.scenario import Report, run
from dispytch import EmitUnknown, EventBase, EventEmitter, Receipt

pytest.importorskip("aio_pika")
pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]

TIMEOUT = 4.0
HOLD = TIMEOUT + 2.0
"""Seconds a fault lasts where its end is ours to choose: emits time out within it."""


async def emit_through(
    rabbitmq: RabbitMQ, queue: str, url: str, fault: Callable[[], object]
) -> Report:
    class Numbered(EventBase):
        __topic__ = queue
        __event_type__ = "numbered"
        __key__ = "{lane}"

        lane: int

    def read_back(count: int) -> Collection[str]:
        found = rabbitmq.read_queue(queue, count)
        return [delivery.properties["message_id"] for delivery in found]

    rabbitmq.declare_queue(queue)
    await asyncio.to_thread(rabbitmq.write_declarations)
    emitter = EventEmitter.from_url(url, timeout=TIMEOUT)
    return await run(
        emitter, lambda number: Numbered(lane=number % 50), fault, read_back, timeout=TIMEOUT
    )


async def test_a_killed_broker_loses_nothing_confirmed(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """Killed and started again: receipts are kept, rejections are true, the emitter recovers."""

    def fault() -> None:
        own_rabbitmq.kill()
        own_rabbitmq.start()

    await emit_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)


async def test_a_restarted_broker_is_met_again(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """An orderly restart costs time, not events."""
    await emit_through(own_rabbitmq, unique_name, own_rabbitmq.url, own_rabbitmq.restart)


async def test_a_frozen_broker_makes_emits_time_out_and_nothing_else(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """Frozen, it may get what was sent once it thaws: those outcomes are unknown."""

    def fault() -> None:
        own_rabbitmq.freeze()
        time.sleep(HOLD)
        own_rabbitmq.thaw()

    report = await emit_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)
    kinds = {type(emit.outcome) for emit in report.emits}
    assert all(issubclass(kind, Receipt | EmitUnknown) for kind in kinds), report.summary()


async def test_closed_connections_are_replaced(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """An operator closing all connections, again and again, loses nothing confirmed."""

    def fault() -> None:
        for _ in range(3):
            own_rabbitmq.close_all_connections()
            time.sleep(0.5)

    await emit_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)


async def test_reset_connections_are_replaced(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """Connections reset again and again lose nothing that was confirmed."""
    with own_rabbitmq.proxy() as proxy:

        def fault() -> None:
            for _ in range(10):
                proxy.reset()
                time.sleep(0.3)

        url = own_rabbitmq.url_for(port=proxy.port)
        await emit_through(own_rabbitmq, unique_name, url, fault)


async def test_a_black_hole_makes_emits_time_out_and_nothing_else(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """What vanished in the network is unknown, and the emitter finds back by itself."""
    with own_rabbitmq.proxy() as proxy:

        def fault() -> None:
            proxy.black_hole()
            time.sleep(HOLD)
            proxy.restore()

        url = own_rabbitmq.url_for(port=proxy.port)
        report = await emit_through(own_rabbitmq, unique_name, url, fault)
    assert any(isinstance(emit.outcome, EmitUnknown) for emit in report.emits), report.summary()


async def test_a_memory_alarm_is_waited_for(own_rabbitmq: RabbitMQ, unique_name: str) -> None:
    """While the broker blocks publishers, emits time out; what they sent may arrive later."""

    def fault() -> None:
        with own_rabbitmq.memory_alarm():
            time.sleep(HOLD)

    report = await emit_through(own_rabbitmq, unique_name, own_rabbitmq.url, fault)
    kinds = {type(emit.outcome) for emit in report.emits}
    assert all(issubclass(kind, Receipt | EmitUnknown) for kind in kinds), report.summary()


@pytest.mark.parametrize("state", ["gone", "frozen", "unreachable"])
async def test_stop_returns_whatever_the_broker_does(
    own_rabbitmq: RabbitMQ, unique_name: str, state: str
) -> None:
    """Stopping takes seconds with the broker dead, frozen or cut off."""

    class Plain(EventBase):
        __topic__ = unique_name
        __event_type__ = "plain"

    own_rabbitmq.declare_queue(unique_name)
    with own_rabbitmq.proxy() as proxy:
        emitter = EventEmitter.from_url(own_rabbitmq.url_for(port=proxy.port), timeout=1)
        await emitter.start()
        await emitter.emit(Plain())
        {"gone": own_rabbitmq.kill, "frozen": own_rabbitmq.freeze, "unreachable": proxy.black_hole}[
            state
        ]()
        with pytest.raises(EmitUnknown):
            await emitter.emit(Plain())
        began = time.monotonic()
        await emitter.stop()
        assert time.monotonic() - began < 6
