"""The `kafka` backend, registered for the schemes `kafka` and `kafka+ssl`. Imports no client."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_kafka.config import KafkaEventConfig
from dispytch_kafka.connection import KafkaConnection

__all__ = ["dispytch_backend"]


@hookimpl
def dispytch_backend() -> Backend:
    """Describe the backend to Dispytch."""
    return Backend(
        name="kafka",
        event_config=KafkaEventConfig,
        connection=KafkaConnection,
        producer="dispytch_kafka.producer:KafkaProducer",
        consumer="dispytch_kafka.consumer:KafkaConsumer",
        capabilities=Capabilities(
            durable=True,
            confirms=True,
            ordering="key",
            groups=True,
            manual_ack=True,
            headers=True,
            keys=True,
            patterns=True,
            replay=True,
        ),
        topic_delimiter=".",
        schemes=("kafka+ssl",),
    )
