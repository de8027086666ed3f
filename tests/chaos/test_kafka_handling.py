"""Listeners on Kafka that stop in order, and dead letters that do not get through."""

from pathlib import Path

import pytest

from brokers.kafka import Kafka
from chaos.handling import keep_what_cannot_be_buried, outlive_the_drain, terminate_workers

pytest.importorskip("aiokafka")
pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

QUICK = "?session_timeout_ms=6000&heartbeat_interval_ms=1000"
"""A dead listener is replaced soon."""


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
