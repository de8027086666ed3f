"""Redis for Dispytch: durable events in Streams (`redis`), fleeting ones by Pub/Sub.

For each of the two there is a config that says how an event travels, a connection that a URL
becomes, a producer and a consumer. Producers and consumers are imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispytch_redis.config import RedisEventConfig, RedisPubSubEventConfig
    from dispytch_redis.connection import RedisConnection, RedisPubSubConnection
    from dispytch_redis.consumer import RedisConsumer
    from dispytch_redis.producer import RedisProducer
    from dispytch_redis.pubsub_consumer import RedisPubSubConsumer
    from dispytch_redis.pubsub_producer import RedisPubSubProducer

__all__ = [
    "RedisConnection",
    "RedisConsumer",
    "RedisEventConfig",
    "RedisProducer",
    "RedisPubSubConnection",
    "RedisPubSubConsumer",
    "RedisPubSubEventConfig",
    "RedisPubSubProducer",
]

_HOMES = {
    "RedisConnection": "dispytch_redis.connection",
    "RedisConsumer": "dispytch_redis.consumer",
    "RedisEventConfig": "dispytch_redis.config",
    "RedisProducer": "dispytch_redis.producer",
    "RedisPubSubConnection": "dispytch_redis.connection",
    "RedisPubSubConsumer": "dispytch_redis.pubsub_consumer",
    "RedisPubSubEventConfig": "dispytch_redis.config",
    "RedisPubSubProducer": "dispytch_redis.pubsub_producer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
