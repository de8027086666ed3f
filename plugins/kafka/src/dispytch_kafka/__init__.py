"""Apache Kafka for Dispytch, on aiokafka.

`KafkaEventConfig` says how an event becomes a record, `KafkaConnection` is what a URL becomes,
`KafkaProducer` sends and `KafkaConsumer` receives. Only these two need the client: they are
imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispytch_kafka.config import KafkaEventConfig
    from dispytch_kafka.connection import KafkaConnection
    from dispytch_kafka.consumer import KafkaConsumer
    from dispytch_kafka.producer import KafkaProducer

__all__ = ["KafkaConnection", "KafkaConsumer", "KafkaEventConfig", "KafkaProducer"]

_HOMES = {
    "KafkaConnection": "dispytch_kafka.connection",
    "KafkaConsumer": "dispytch_kafka.consumer",
    "KafkaEventConfig": "dispytch_kafka.config",
    "KafkaProducer": "dispytch_kafka.producer",
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
