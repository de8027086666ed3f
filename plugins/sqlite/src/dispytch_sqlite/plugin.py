"""The `sqlite` backend, registered for the scheme `sqlite`. Imports no database."""

from dispytch import Backend, Capabilities, hookimpl
from dispytch_sqlite.config import SQLiteEventConfig
from dispytch_sqlite.connection import SQLiteConnection

__all__ = ["dispytch_backend"]


@hookimpl
def dispytch_backend() -> Backend:
    """Describe the backend to Dispytch."""
    return Backend(
        name="sqlite",
        event_config=SQLiteEventConfig,
        connection=SQLiteConnection,
        producer="dispytch_sqlite.producer:SQLiteProducer",
        consumer="dispytch_sqlite.consumer:SQLiteConsumer",
        capabilities=Capabilities(
            durable=True,
            confirms=True,
            ordering="key",
            groups=True,
            manual_ack=True,
            delayed_redelivery=True,
            ttl=True,
            headers=True,
            keys=True,
            patterns=True,
            replay=True,
        ),
    )
