"""The built-in `memory` backend: an in-process broker, registered like any other."""

from dispytch.backend import Backend, Capabilities
from dispytch.hooks import hookimpl
from dispytch.memory.broker import MemoryBroker, MemoryMessage
from dispytch.memory.consumer import MemoryConsumer, MemoryDelivery
from dispytch.memory.producer import MemoryConnection, MemoryProducer

__all__ = [
    "MemoryBroker",
    "MemoryConnection",
    "MemoryConsumer",
    "MemoryDelivery",
    "MemoryMessage",
    "MemoryProducer",
    "dispytch_backend",
]


@hookimpl
def dispytch_backend() -> Backend:
    """The `memory` backend."""
    return Backend(
        name="memory",
        event_config=None,
        producer=MemoryProducer,
        consumer=MemoryConsumer,
        connection=MemoryConnection,
        capabilities=Capabilities(
            confirms=True,
            ordering="key",
            groups=True,
            manual_ack=True,
            delayed_redelivery=True,
            headers=True,
            keys=True,
            patterns=True,
            replay=True,
        ),
    )
