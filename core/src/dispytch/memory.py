"""The built-in `memory` backend: an in-process broker, registered like any other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dispytch.backend import Backend, Capabilities
from dispytch.hooks import hookimpl
from dispytch.producer import Details, Outgoing, Producer
from dispytch.url import Connection

__all__ = ["MemoryBroker", "MemoryConnection", "MemoryMessage", "MemoryProducer"]


@dataclass(frozen=True, slots=True)
class MemoryMessage:
    """What was emitted, as a broker would have it.

    Attributes:
        topic: where it went.
        payload: the envelope's bytes.
        key: the event's key, or None.
        headers: set by middleware.
        config: the merged config, or None; several in a tuple where the event has several.
        event_id: the event's id.
        type: the event's type.
    """

    topic: str
    payload: bytes
    key: str | None
    headers: Mapping[str, str | bytes]
    config: Any
    event_id: str
    type: str


class MemoryBroker:
    """Keeps what was emitted, in order; `named` gives the same one for the same name.

    Attributes:
        messages: everything emitted since it was made or cleared.
    """

    _named: ClassVar[dict[str, "MemoryBroker"]] = {}

    def __init__(self) -> None:
        self.messages: list[MemoryMessage] = []

    @classmethod
    def named(cls, name: str) -> "MemoryBroker":
        """The broker of `memory://name` in this process."""
        return cls._named.setdefault(name, cls())

    def on(self, topic: str) -> list[MemoryMessage]:
        """The messages of one topic, in order."""
        return [message for message in self.messages if message.topic == topic]

    def clear(self) -> None:
        """Forget all messages."""
        self.messages.clear()


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
        self.broker.messages.append(
            MemoryMessage(
                out.topic, out.payload, out.key, out.headers, out.config, out.event_id, out.type
            )
        )
        return {"position": len(self.broker.messages) - 1}


@hookimpl
def dispytch_backend() -> Backend:
    """The `memory` backend."""
    return Backend(
        name="memory",
        event_config=None,
        producer=MemoryProducer,
        connection=MemoryConnection,
        capabilities=Capabilities(confirms=True, headers=True, keys=True),
    )
