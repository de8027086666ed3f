"""Handling events from Kafka while it dies, freezes, or is cut off, and while listeners die."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers.kafka import Kafka
from chaos.handling import (
    Handling,
    keep_what_cannot_be_buried,
    kill_workers,
    load_of,
    outlive_the_drain,
    survive,
    terminate_workers,
)
from dispytch import EventEmitter, EventListener

pytest.importorskip("aiokafka")
pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

FROZEN, CUT = 20.0, 12.0
"""Seconds that a broker is frozen, and that it is out of reach: long enough to be noticed."""

QUICK = "?session_timeout_ms=6000&heartbeat_interval_ms=1000"
"""A dead listener is replaced soon."""

COMMIT_BATCH = 500
"""Handled events that a killed Kafka listener may not have committed yet; see docs/kafka.md."""


async def handle_through(
    kafka: Kafka, topic: str, url: str, fault: Callable[[], object], *, notices: bool = True
) -> Handling:
    kafka.create_topic(topic, 5)
    emitter = EventEmitter.from_url(f"{url}?request_timeout_ms=2000", timeout=5)
    listener = EventListener.from_url(url, group=f"{topic}-group")
    return await survive(emitter, listener, topic, fault, notices=notices)


async def test_a_killed_broker_loses_nothing(own_kafka: Kafka, unique_name: str) -> None:
    """Killed and started again: all that was confirmed is handled, and what comes afterwards."""

    def fault() -> None:
        own_kafka.kill()
        time.sleep(10)
        own_kafka.start()

    await handle_through(own_kafka, unique_name, own_kafka.url, fault)


async def test_a_frozen_broker_loses_nothing(own_kafka: Kafka, unique_name: str) -> None:
    """Frozen for 20 seconds: health() tells, everything is handled, new events too."""

    def fault() -> None:
        own_kafka.freeze()
        time.sleep(FROZEN)
        own_kafka.thaw()

    await handle_through(own_kafka, unique_name, own_kafka.url, fault)


@pytest.mark.parametrize("kind", ["refuse", "black_hole"])
async def test_a_cut_connection_loses_nothing(
    own_kafka: Kafka, unique_name: str, kind: str
) -> None:
    """Connections reset and refused, or swallowed: the listener finds back by itself."""
    with own_kafka.proxy() as proxy:

        def fault() -> None:
            getattr(proxy, kind)()
            time.sleep(CUT)
            proxy.restore()

        await handle_through(own_kafka, unique_name, own_kafka.proxied_url, fault)


async def test_killed_listeners_lose_nothing(
    own_kafka: Kafka, unique_name: str, tmp_path: Path
) -> None:
    """Processes killed in the middle of handlers: all handled, in order, few of them twice."""
    own_kafka.create_topic(unique_name, 8)
    await kill_workers(
        own_kafka.url + QUICK,
        unique_name,
        tmp_path,
        slack=COMMIT_BATCH,
        kills=load_of(2, 5),
        count=load_of(4_000, 20_000),
        lanes=load_of(100, 500),
    )


async def test_a_stopped_listener_repeats_nothing(
    own_kafka: Kafka, unique_name: str, tmp_path: Path
) -> None:
    """SIGTERM during load: what was finished never comes again."""
    own_kafka.create_topic(unique_name, 4)
    await terminate_workers(own_kafka.url + QUICK, unique_name, tmp_path, count=2_000)


async def test_what_outlives_the_drain_comes_again_alone(
    own_kafka: Kafka, unique_name: str, tmp_path: Path
) -> None:
    """A handler still running after `drain_timeout`: its event comes again, no other."""
    own_kafka.create_topic(unique_name, 50)
    await outlive_the_drain(own_kafka.url + QUICK, unique_name, tmp_path)


async def test_an_unreachable_dead_letter_topic_loses_nothing(
    own_kafka: Kafka, unique_name: str
) -> None:
    """What can't be dead-lettered is not acknowledged, and tried again until it can."""
    own_kafka.create_topic(unique_name)
    with own_kafka.proxy() as proxy:
        proxied = own_kafka.proxied_url
        await keep_what_cannot_be_buried(own_kafka.url, proxied, unique_name, proxy)
