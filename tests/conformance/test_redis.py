"""The Redis Streams backend passes the conformance kit."""

from collections.abc import Iterator
from typing import Any

import pytest

from brokers.redis import Redis
from dispytch.testing.conformance import BackendConformance, Network

pytest.importorskip("redis")
pytestmark = [pytest.mark.redis, pytest.mark.chaos]


class TestRedis(BackendConformance):
    backend = "redis"
    oversize = 17 * 1024 * 1024

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
