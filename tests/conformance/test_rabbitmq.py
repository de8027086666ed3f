"""The RabbitMQ backend passes the conformance kit."""

from collections.abc import Iterator
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.rabbitmq import RabbitMQ
from dispytch.testing.conformance import BackendConformance, Network

pytest.importorskip("aiormq")
pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]


class Broker:
    """The broker, as an operator would have it who declares before he pulls the plug."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self._rabbitmq = rabbitmq
        self.start, self.restart = rabbitmq.start, rabbitmq.restart
        self.freeze, self.thaw = rabbitmq.freeze, rabbitmq.thaw

    def kill(self) -> None:
        self._rabbitmq.write_declarations()  # or a queue declared a moment ago is gone
        self._rabbitmq.kill()


@pytest.fixture(scope="module")
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """One that refuses messages of more than 2 MB; its default are 128 MB."""
    with started(lambda: RabbitMQ(config={"max_message_size": "2000000"})) as broker:
        yield broker


class TestRabbitMQ(BackendConformance):
    backend = "rabbitmq"
    oversize = 3_000_000
    unroutable = True
    stop_within = 15.0

    @pytest.fixture
    def url(self, own_rabbitmq: RabbitMQ) -> str:
        return own_rabbitmq.url

    @pytest.fixture
    def broker(self, own_rabbitmq: RabbitMQ) -> Broker:
        return Broker(own_rabbitmq)

    @pytest.fixture
    def network(self, own_rabbitmq: RabbitMQ) -> Iterator[Network]:
        with own_rabbitmq.proxy() as proxy:
            yield Network(own_rabbitmq.url_for(port=proxy.port), proxy)

    @pytest.fixture
    def refused_url(self, own_rabbitmq: RabbitMQ) -> str:
        return own_rabbitmq.limited_url

    def ttl(self, seconds: float) -> Any:
        from dispytch_rabbitmq import RabbitMQEventConfig

        return RabbitMQEventConfig(expiration=seconds)
