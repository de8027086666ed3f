"""The backends `redis` (Streams) and `redis+pubsub`, for four schemes. Imports no client."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_redis.config import RedisEventConfig, RedisPubSubEventConfig
from dispytch_redis.connection import RedisConnection, RedisPubSubConnection

__all__ = ["dispytch_backend", "pubsub", "streams"]

streams = Backend(
    name="redis",
    event_config=RedisEventConfig,
    connection=RedisConnection,
    producer="dispytch_redis.producer:RedisProducer",
    consumer="dispytch_redis.consumer:RedisConsumer",
    capabilities=Capabilities(
        durable=True,
        confirms=True,
        ordering="key",
        groups=True,
        manual_ack=True,
        delayed_redelivery=True,
        ttl=True,
        headers=True,
        keys=True,
        patterns=True,
        replay=True,
    ),
    schemes=("redis", "rediss"),
)
"""Durable events in Streams."""

pubsub = Backend(
    name="redis+pubsub",
    event_config=RedisPubSubEventConfig,
    connection=RedisPubSubConnection,
    producer="dispytch_redis.pubsub_producer:RedisPubSubProducer",
    consumer="dispytch_redis.pubsub_consumer:RedisPubSubConsumer",
    capabilities=Capabilities(
        confirms=True,
        ordering="consumer",  # not "total": consumers share nothing, each gets every event
        headers=True,
        keys=True,
        patterns=True,
    ),
    schemes=("redis+pubsub", "rediss+pubsub"),
)
"""Events for whoever listens now."""


@hookimpl
def dispytch_backend() -> list[Backend]:
    """Describe both backends to Dispytch."""
    return [streams, pubsub]
