"""The `kafka` backend, registered for the schemes `kafka` and `kafka+ssl`. Imports no client."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_kafka.config import KafkaConnection, KafkaEventConfig

__all__ = ["dispytch_backend"]


@hookimpl
def dispytch_backend() -> Backend:
    """Describe the backend to Dispytch."""
    return Backend(
        name="kafka",
        event_config=KafkaEventConfig,
        connection=KafkaConnection,
        producer="dispytch_kafka.producer:KafkaProducer",
        capabilities=Capabilities(
            durable=True, confirms=True, ordering="key", headers=True, keys=True
        ),
        topic_delimiter=".",
        schemes=("kafka+ssl",),
    )
