"""The backend `kafka+confluent`, registered for it and `kafka+confluent+ssl`. Imports no client."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_confluent.connection import ConfluentConnection
from dispytch_kafka import KafkaEventConfig

__all__ = ["dispytch_backend"]


@hookimpl
def dispytch_backend() -> Backend:
    """Describe the backend to Dispytch."""
    return Backend(
        name="kafka+confluent",
        event_config=KafkaEventConfig,
        connection=ConfluentConnection,
        producer="dispytch_confluent.producer:ConfluentProducer",
        consumer="dispytch_confluent.consumer:ConfluentConsumer",
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
        schemes=("kafka+confluent+ssl",),
    )
