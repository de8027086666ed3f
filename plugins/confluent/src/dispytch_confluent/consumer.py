"""ConfluentConsumer: receives events from Kafka."""

from dispytch import ConfigError
from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import BACKEND
from dispytch_confluent.producer import ConfluentProducer
from dispytch_kafka.consumer import KafkaConsumer

__all__ = ["ConfluentConsumer"]


class ConfluentConsumer(KafkaConsumer):
    """Receives events from Kafka as dispytch-kafka does, through aiokafka.

    Only its dead letters go through librdkafka.

    Args:
        connection: where the brokers are, and how they are used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND

    def __init__(self, connection: ConfluentConnection) -> None:
        if not isinstance(connection, ConfluentConnection):
            raise ConfigError(
                f"ConfluentConsumer takes a ConfluentConnection, not a {type(connection).__name__};"
                " for an AIOKafkaConsumer of your own there is KafkaConsumer"
            )
        super().__init__(connection)

    def dead_letter_producer(self) -> ConfluentProducer | None:
        """A producer to the same brokers."""
        connection = self._dead_letter_connection()
        return (
            ConfluentProducer(connection) if isinstance(connection, ConfluentConnection) else None
        )
