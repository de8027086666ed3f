"""Listeners on RabbitMQ that stop in order, and dead letters that do not get through."""

from pathlib import Path

import pytest

from brokers.rabbitmq import RabbitMQ
from chaos.handling import keep_what_cannot_be_buried, outlive_the_drain, terminate_workers

pytest.importorskip("aiormq")
pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]


async def test_a_stopped_listener_repeats_nothing(
    own_rabbitmq: RabbitMQ, unique_name: str, tmp_path: Path
) -> None:
    """SIGTERM during load: what was finished never comes again."""
    await terminate_workers(own_rabbitmq.url, unique_name, tmp_path, count=2_000)


async def test_what_outlives_the_drain_comes_again_alone(
    own_rabbitmq: RabbitMQ, unique_name: str, tmp_path: Path
) -> None:
    """A handler still running after `drain_timeout`: its event comes again, no other."""
    await outlive_the_drain(own_rabbitmq.url, unique_name, tmp_path)


async def test_an_unreachable_dead_letter_topic_loses_nothing(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """What can't be dead-lettered is not acknowledged, and tried again until it can."""
    with own_rabbitmq.proxy() as proxy:
        proxied = own_rabbitmq.url_for(port=proxy.port)
        await keep_what_cannot_be_buried(own_rabbitmq.url, proxied, unique_name, proxy)
