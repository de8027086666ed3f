"""The backend of Redis Pub/Sub passes the conformance kit, as far as at most once goes."""

import pytest

from brokers.redis import LIMITED, Redis
from dispytch.testing.conformance import BackendConformance

pytest.importorskip("redis")
pytestmark = [pytest.mark.redis, pytest.mark.chaos]


class TestRedisPubSub(BackendConformance):
    backend = "redis+pubsub"
    oversize = 17 * 1024 * 1024

    @pytest.fixture
    def url(self, own_redis: Redis) -> str:
        return own_redis.url_for(scheme="redis+pubsub")

    @pytest.fixture
    def broker(self, own_redis: Redis) -> Redis:
        return own_redis

    @pytest.fixture
    def refused_url(self, own_redis: Redis) -> str:
        return own_redis.url_for(user=LIMITED, scheme="redis+pubsub")
