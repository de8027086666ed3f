"""Apache Kafka for Dispytch, emitting on librdkafka: the backend `kafka+confluent`.

`ConfluentConnection` is what a URL becomes, `ConfluentProducer` sends and `ConfluentConsumer`
receives. How an event becomes a record says dispytch-kafka's `KafkaEventConfig`. Producer and
consumer are imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispytch_confluent.connection import ConfluentConnection
    from dispytch_confluent.consumer import ConfluentConsumer
    from dispytch_confluent.producer import ConfluentProducer

__all__ = ["ConfluentConnection", "ConfluentConsumer", "ConfluentProducer"]

_HOMES = {
    "ConfluentConnection": "dispytch_confluent.connection",
    "ConfluentConsumer": "dispytch_confluent.consumer",
    "ConfluentProducer": "dispytch_confluent.producer",
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
