"""MemoryProducer: sends to a `MemoryBroker`."""

from typing import Any, Self

from dispytch.memory.broker import MemoryBroker, MemoryMessage
from dispytch.producer import Details, Outgoing, Producer
from dispytch.url import Connection

__all__ = ["MemoryConnection", "MemoryProducer"]


class MemoryConnection(Connection):
    """`memory://name`; names are case-sensitive, `memory://` is a broker with an empty name."""


class MemoryProducer(Producer):
    """Puts events into a `MemoryBroker`; an emit is confirmed at once.

    Args:
        broker: where to; None makes one of its own.
    """

    backend = "memory"
    carries_headers = True

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        """The producer of the broker a URL names."""
        return cls(MemoryBroker.named("".join(connection.hosts)))

    @property
    def messages(self) -> list[MemoryMessage]:
        """Everything emitted to this broker, in order."""
        return self.broker.messages

    async def send_message(self, out: Outgoing, /) -> Details:
        """Keep the message."""
        position = self.broker.append(
            MemoryMessage(
                out.topic, out.payload, out.key, out.headers, out.config, out.event_id, out.type
            )
        )
        return {"position": position}
