"""The Redis Streams backend passes the conformance kit."""

from collections.abc import Iterator
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.redis import Redis
from dispytch.testing.conformance import BackendConformance, Network

pytest.importorskip("redis")
pytestmark = [pytest.mark.redis, pytest.mark.chaos]


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """One that refuses texts of more than 2 MB; its default are 512 MB."""
    with started(lambda: Redis(config={"proto-max-bulk-len": "2mb"})) as broker:
        yield broker


class TestRedis(BackendConformance):
    backend = "redis"
    oversize = 3_000_000

    @pytest.fixture
    def url(self, own_redis: Redis) -> str:
        return own_redis.url

    @pytest.fixture
    def broker(self, own_redis: Redis) -> Redis:
        return own_redis

    @pytest.fixture
    def network(self, own_redis: Redis) -> Iterator[Network]:
        with own_redis.proxy() as proxy:
            yield Network(own_redis.url_for(port=proxy.port), proxy)

    @pytest.fixture
    def refused_url(self, own_redis: Redis) -> str:
        return own_redis.limited_url

    def ttl(self, seconds: float) -> Any:
        from dispytch_redis import RedisEventConfig

        return RedisEventConfig(ttl=seconds)
