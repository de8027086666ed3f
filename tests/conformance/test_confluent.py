"""The Kafka backend on librdkafka passes the conformance kit."""

import asyncio
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from brokers.kafka import LIMITED, PASSWORD, Kafka
from brokers.kafka_access import RunningKafka
from dispytch.testing.conformance import BackendConformance, Network

pytest.importorskip("confluent_kafka")
pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

OPTIONS = "?session_timeout_ms=6000&heartbeat_interval_ms=1000"
"""A dead consumer is replaced soon."""


def _confluent(url: str) -> str:
    return url.replace("kafka:", "kafka+confluent:")


class TestConfluent(BackendConformance):
    backend = "kafka+confluent"
    oversize = 2_000_000
    unroutable = True
    stop_within = 15.0
    quiet = 2.0
    uncommitted = 500 + 100
    """What `commit_every` allows, and what is finished behind an unfinished event."""

    @pytest.fixture
    def url(self, own_kafka: Kafka) -> str:
        return _confluent(own_kafka.url) + OPTIONS

    @pytest.fixture
    def broker(self, own_kafka: Kafka) -> Kafka:
        return own_kafka

    @pytest.fixture
    def network(self, own_kafka: Kafka) -> Iterator[Network]:
        with own_kafka.proxy() as proxy:
            yield Network(_confluent(own_kafka.proxied_url) + OPTIONS, proxy)

    @pytest.fixture
    def refused_url(self, own_kafka: Kafka) -> str:
        login = f"{LIMITED}:{quote(PASSWORD, safe='')}"
        return f"kafka+confluent://{login}@127.0.0.1:{own_kafka.sasl_plaintext_port}"

    async def make_topic(self, url: str, topic: str) -> None:
        plain = url.replace("kafka+confluent:", "kafka:")
        await asyncio.to_thread(RunningKafka(plain).create_topic, topic, 4)
