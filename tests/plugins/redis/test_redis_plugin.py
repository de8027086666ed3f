"""What the plugin registers: two backends, four schemes, and no client before it is needed."""

import subprocess
import sys

import pytest

import dispytch_redis
from dispytch import plugins
from dispytch_redis import (
    RedisConnection,
    RedisEventConfig,
    RedisPubSubConnection,
    RedisPubSubEventConfig,
)

SCHEMES = {"redis": ("redis", "rediss"), "redis+pubsub": ("redis+pubsub", "rediss+pubsub")}


@pytest.mark.parametrize(("name", "schemes"), SCHEMES.items())
def test_each_backend_has_its_schemes(name: str, schemes: tuple[str, ...]) -> None:
    """Installed or asked for, the two are told apart."""
    (info,) = [info for info in plugins.backends() if info.name == name]
    assert (info.distribution, info.schemes) == ("dispytch-redis", schemes)
    backend = plugins.get_backend(name)
    for scheme in schemes:
        assert plugins.backend_for_url(f"{scheme}://h") is backend
    assert sorted(backend.schemes) == sorted(schemes)  # for who registers it by code


def test_each_backend_has_its_config_and_connection() -> None:
    """Their schemas are found by name."""
    assert plugins.event_config("redis") is RedisEventConfig
    assert plugins.connection_schema("redis") is RedisConnection
    assert plugins.event_config("redis+pubsub") is RedisPubSubEventConfig
    assert plugins.connection_schema("redis+pubsub") is RedisPubSubConnection


def test_pub_sub_promises_less() -> None:
    """Nothing is kept, nothing is shared and nothing comes again."""
    streams = plugins.get_backend("redis").capabilities
    pubsub = plugins.get_backend("redis+pubsub").capabilities
    for name in ("durable", "groups", "manual_ack", "delayed_redelivery", "ttl", "replay"):
        assert getattr(streams, name), name
        assert not getattr(pubsub, name), name
    assert (streams.ordering, pubsub.ordering) == ("key", "consumer")


def test_looking_up_schemas_imports_no_client() -> None:
    """Configs, connections and the backends themselves are there without redis-py."""
    code = (
        "import sys; from dispytch import plugins\n"
        "for name in ('redis', 'redis+pubsub'):\n"
        "    plugins.event_config(name); plugins.connection_schema(name)\n"
        "    plugins.backend_for_url(f'{name}://h')\n"
        "from dispytch_redis import RedisConnection, RedisEventConfig\n"
        "print(sorted({'redis', 'hiredis'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_public_names_are_listed() -> None:
    """What can be imported from the package is what it lists; else it is an AttributeError."""
    assert set(dispytch_redis.__all__) <= set(dir(dispytch_redis))
    assert dispytch_redis.RedisEventConfig is RedisEventConfig
    with pytest.raises(AttributeError, match="RedisEvents"):
        _ = getattr(dispytch_redis, "RedisEvents")  # noqa: B009 - type checkers know better
