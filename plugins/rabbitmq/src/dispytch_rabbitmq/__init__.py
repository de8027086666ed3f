"""RabbitMQ backend of Dispytch.

Importing this package, or a config from it, does not import the broker's client; only
`RabbitMQProducer` and `RabbitMQConsumer` do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispytch_rabbitmq.config import RabbitMQConnection, RabbitMQEventConfig
    from dispytch_rabbitmq.consumer import RabbitMQConsumer
    from dispytch_rabbitmq.producer import RabbitMQProducer

__all__ = ["RabbitMQConnection", "RabbitMQConsumer", "RabbitMQEventConfig", "RabbitMQProducer"]

_MODULES = {
    "RabbitMQConnection": "dispytch_rabbitmq.config",
    "RabbitMQConsumer": "dispytch_rabbitmq.consumer",
    "RabbitMQEventConfig": "dispytch_rabbitmq.config",
    "RabbitMQProducer": "dispytch_rabbitmq.producer",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
