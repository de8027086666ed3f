"""What the plugin registers; imports no client."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_rabbitmq.config import RabbitMQConnection, RabbitMQEventConfig

__all__ = ["dispytch_backend"]


@hookimpl
def dispytch_backend() -> Backend:
    """The `rabbitmq` backend."""
    return Backend(
        name="rabbitmq",
        event_config=RabbitMQEventConfig,
        connection=RabbitMQConnection,
        producer="dispytch_rabbitmq.producer:RabbitMQProducer",
        consumer="dispytch_rabbitmq.consumer:RabbitMQConsumer",
        capabilities=Capabilities(
            durable=True,
            confirms=True,
            ordering="key",
            groups=True,
            manual_ack=True,
            delayed_redelivery=True,
            headers=True,
            keys=True,
            patterns=True,
            ttl=True,
        ),
        topic_delimiter=".",
        schemes=("amqp", "amqps"),
    )
