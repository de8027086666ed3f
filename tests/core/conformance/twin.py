"""A healthy backend, with a schema and a connection of its own: the in-memory broker."""

from pydantic import Field

from dispytch.backend import Backend, Capabilities
from dispytch.config import BackendConfig
from dispytch.errors import EmitRejected
from dispytch.memory import MemoryConsumer, MemoryProducer
from dispytch.producer import Details, Outgoing
from dispytch.url import Connection

__all__ = ["OVERSIZE", "TWIN", "TwinConfig", "TwinConnection", "TwinConsumer", "TwinProducer"]


class TwinConfig(BackendConfig):
    """How the twin carries an event."""

    label: str = ""


class TwinConnection(Connection):
    """`twin://name?patience=SECONDS`."""

    patience: float = Field(1.0, gt=0, description="seconds; nothing waits for them")


OVERSIZE = 2_000_000
"""Bytes of a payload that the twin refuses."""


class TwinProducer(MemoryProducer):
    """Sends to the broker a URL names."""

    carries_headers = False  # as declared: `Backend` sets it

    async def send_message(self, out: Outgoing, /) -> Details:
        """Keep the message, unless it is too large."""
        if len(out.payload) >= OVERSIZE:
            raise EmitRejected(f"{len(out.payload)} bytes are too large, the limit is {OVERSIZE}")
        return await super().send_message(out)


class TwinConsumer(MemoryConsumer):
    """Receives from the broker a URL names."""

    delays = False  # as declared: `Backend` sets it


TWIN = Backend(
    name="twin",
    event_config=TwinConfig,
    producer=TwinProducer,
    consumer=TwinConsumer,
    connection=TwinConnection,
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
