"""The pytest fixtures that hand brokers to tests.

Nothing here is imported before a test asks for a broker: the core's tests run where no client
library and no `cryptography` is installed.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from brokers.process import BrokerMissing, BrokerProcess

if TYPE_CHECKING:
    from brokers.kafka import Kafka
    from brokers.kafka_access import KafkaAccess
    from brokers.rabbitmq import RabbitMQ
    from brokers.rabbitmq_access import RabbitMQAccess
    from brokers.redis import Redis
    from brokers.redis_access import RedisAccess

B = TypeVar("B", bound=BrokerProcess)

KAFKA_URL = "DISPYTCH_TEST_KAFKA_URL"
RABBITMQ_URL = "DISPYTCH_TEST_RABBITMQ_URL"
REDIS_URL = "DISPYTCH_TEST_REDIS_URL"
REQUIRE = "DISPYTCH_REQUIRE_BROKERS"


@pytest.fixture(scope="session")
def kafka_broker() -> "Iterator[KafkaAccess]":
    """A Kafka for tests that do it no harm: at `DISPYTCH_TEST_KAFKA_URL`, or ours."""
    if url := os.environ.get(KAFKA_URL):
        from brokers.kafka_access import RunningKafka

        yield RunningKafka(url)
    else:
        with started(_kafka) as broker:
            yield broker


@pytest.fixture(scope="module")
def own_kafka() -> "Iterator[Kafka]":
    """A Kafka that the tests of a module may stop, kill, freeze and cut off."""
    with started(_kafka) as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbitmq_broker() -> "Iterator[RabbitMQAccess]":
    """A RabbitMQ for tests that do it no harm: at `DISPYTCH_TEST_RABBITMQ_URL`, or ours."""
    if url := os.environ.get(RABBITMQ_URL):
        from brokers.rabbitmq_access import RunningRabbitMQ

        yield RunningRabbitMQ(url)
    else:
        with started(_rabbitmq) as broker:
            yield broker


@pytest.fixture(scope="module")
def own_rabbitmq() -> "Iterator[RabbitMQ]":
    """A RabbitMQ that the tests of a module may stop, kill, freeze and cut off."""
    with started(_rabbitmq) as broker:
        yield broker


@pytest.fixture(scope="session")
def redis_broker() -> "Iterator[RedisAccess]":
    """A Redis for tests that do it no harm: at `DISPYTCH_TEST_REDIS_URL`, or ours."""
    if url := os.environ.get(REDIS_URL):
        from brokers.redis_access import RunningRedis

        yield RunningRedis(url)
    else:
        with started(_redis) as broker:
            yield broker


@pytest.fixture(scope="module")
def own_redis() -> "Iterator[Redis]":
    """A Redis that the tests of a module may stop, kill, freeze and cut off."""
    with started(_redis) as broker:
        yield broker


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A name for topics, queues, streams and groups that no other test has, telling whose it is."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{test[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def topic(kafka_broker: "KafkaAccess", unique_name: str) -> str:
    """An empty topic with one partition on the shared Kafka."""
    kafka_broker.create_topic(unique_name)
    return unique_name


@pytest.fixture(autouse=True)
def _healthy_brokers(request: pytest.FixtureRequest) -> None:
    """Bring a module's own broker back to work, whatever the last test did to it."""
    for name in ("own_kafka", "own_rabbitmq", "own_redis"):
        if name in request.fixturenames:
            request.getfixturevalue(name).heal()


def _kafka() -> "Kafka":
    from brokers.kafka import Kafka

    return Kafka()


def _rabbitmq() -> "RabbitMQ":
    from brokers.rabbitmq import RabbitMQ

    return RabbitMQ()


def _redis() -> "Redis":
    from brokers.redis import Redis

    return Redis()


def started(make: Callable[[], B]) -> B:
    """Start a broker, which `with` closes; without its software the test that asks is skipped.

    For a broker with options, as in `with started(lambda: Kafka(message_max_bytes=2000)) as kafka`.
    """
    try:
        broker = make()
        broker.start()
    except (BrokerMissing, ImportError) as error:
        _do_without(str(error))
    return broker


def _do_without(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE, "0") not in {"", "0"}:
        pytest.fail(f"{reason}, and {REQUIRE} is set", pytrace=False)
    pytest.skip(reason)
