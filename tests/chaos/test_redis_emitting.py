"""Emitting to Redis while it dies, freezes, loads, or the network fails."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection

import pytest

from brokers.redis import Redis
from chaos.scenario import Report, run
from dispytch import EmitRejected, EmitUnknown, EventBase, EventEmitter, ProducerTimeout, Receipt
from plugins.redis.emitting import ids

pytest.importorskip("redis")
pytestmark = [pytest.mark.redis, pytest.mark.chaos]

TIMEOUT = 1.5
HOLD = TIMEOUT + 0.5
"""Seconds a fault lasts where its end is ours to choose: emits time out within it."""


async def emit_through(
    redis: Redis, topic: str, fault: Callable[[], object], *, port: int | None = None
) -> Report:
    """Under load; a hidden retry would store an event twice."""

    class Numbered(EventBase):
        __topic__ = topic
        __event_type__ = "numbered"
        __key__ = "{lane}"

        lane: int

    def read_back(_: int) -> Collection[str]:
        return ids(redis, topic)

    url = f"{redis.url_for(port=port)}?reply_timeout=1&reconnect_interval=0.1&connect_timeout=1"
    emitter = EventEmitter.from_url(url, timeout=TIMEOUT)
    report = await run(
        emitter, lambda number: Numbered(lane=number % 50), fault, read_back, timeout=TIMEOUT
    )
    twice = [id_ for id_, times in report.stored.items() if times > 1]
    assert not twice, f"{len(twice)} events are stored twice: {report.summary()}"
    return report


def outcomes(report: Report) -> Counter[type]:
    return Counter(type(emit.outcome) for emit in report.emits)


async def test_a_killed_server_loses_nothing_confirmed(own_redis: Redis, unique_name: str) -> None:
    """Killed and started again: receipts are kept, rejections are true, the emitter recovers."""

    def fault() -> None:
        own_redis.kill()
        own_redis.start()

    await emit_through(own_redis, unique_name, fault)


async def test_a_restarted_server_is_met_again(own_redis: Redis, unique_name: str) -> None:
    """An orderly restart costs time, not events: emits wait for it."""
    report = await emit_through(own_redis, unique_name, own_redis.restart)
    assert not any(isinstance(emit.outcome, ProducerTimeout) for emit in report.emits)


async def test_a_frozen_server_leaves_what_was_sent_unknown(
    own_redis: Redis, unique_name: str
) -> None:
    """It may get it once it thaws, on a connection that was given up, too; the rest is not sent."""

    def fault() -> None:
        own_redis.freeze()
        time.sleep(HOLD)
        own_redis.thaw()

    report = await emit_through(own_redis, unique_name, fault)
    assert outcomes(report)[EmitUnknown], report.summary()  # it was noticed before the deadlines


async def test_reset_connections_are_replaced(own_redis: Redis, unique_name: str) -> None:
    """Again and again, they lose nothing that was confirmed."""
    with own_redis.proxy() as proxy:

        def fault() -> None:
            for _ in range(15):
                proxy.reset()
                time.sleep(0.1)

        report = await emit_through(own_redis, unique_name, fault, port=proxy.port)
        assert proxy.connections > 10
    assert not outcomes(report)[ProducerTimeout], report.summary()


async def test_a_black_hole_leaves_what_was_sent_unknown(
    own_redis: Redis, unique_name: str
) -> None:
    """The rest is not sent, and the emitter finds back by itself."""
    with own_redis.proxy() as proxy:

        def fault() -> None:
            proxy.black_hole()
            time.sleep(HOLD)
            proxy.restore()

        report = await emit_through(own_redis, unique_name, fault, port=proxy.port)
    assert outcomes(report)[EmitUnknown], report.summary()


async def test_refused_connections_are_waited_for(own_redis: Redis, unique_name: str) -> None:
    """Emits that find no connection wait for one; in vain, they are rejected and tell why."""
    with own_redis.proxy() as proxy:

        def fault() -> None:
            proxy.refuse()
            time.sleep(HOLD)
            proxy.restore()

        report = await emit_through(own_redis, unique_name, fault, port=proxy.port)
    kinds = Counter(type(emit.outcome) for emit in report.within)
    assert kinds[EmitRejected] > kinds[EmitUnknown], report.summary()
    assert not kinds[ProducerTimeout], report.summary()


async def test_a_full_server_rejects(own_redis: Redis, unique_name: str) -> None:
    """While it has no memory, and only then; no emit waits for that."""

    def fault() -> None:
        with own_redis.out_of_memory():
            time.sleep(1)

    report = await emit_through(own_redis, unique_name, fault)
    assert not any(isinstance(emit.outcome, EmitUnknown) for emit in report.emits)
    assert all(not isinstance(emit.outcome, Receipt) for emit in report.within[5:-5])


@pytest.mark.parametrize("state", ["gone", "frozen", "unreachable"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_stop_returns_whatever_the_server_does(
    own_redis: Redis, unique_name: str, state: str, is_tls: bool
) -> None:
    """Stopping takes seconds with the server dead, frozen or cut off."""

    class Plain(EventBase):
        __topic__ = unique_name
        __event_type__ = "plain"

    scheme = "rediss" if is_tls else "redis"
    target = own_redis.tls_port if is_tls else own_redis.port
    from dispytch.testing.conformance import Proxy

    with Proxy(target) as proxy:
        url = own_redis.url_for(port=proxy.port, scheme=scheme)
        query = f"?cafile={own_redis.certificates.ca}" if is_tls else ""
        emitter = EventEmitter.from_url(f"{url}{query}", timeout=0.5)
        await emitter.start()
        await emitter.emit(Plain())
        {"gone": own_redis.kill, "frozen": own_redis.freeze, "unreachable": proxy.black_hole}[
            state
        ]()
        emits = [asyncio.create_task(emitter.emit(Plain())) for _ in range(5)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.gather(emitter.stop(), emitter.stop())
        assert time.monotonic() - began < 6
        results = await asyncio.gather(*emits, return_exceptions=True)
        assert all(isinstance(result, EmitUnknown) for result in results), results
