"""From an event ready to be sent to a Kafka record: topic, key and headers in bytes."""

import re
import time
from dataclasses import dataclass
from typing import Any

from dispytch import EmitRejected, Outgoing
from dispytch.fields import effective_key, header_pairs

__all__ = [
    "Record",
    "check_topic",
    "details_of",
    "is_topic",
    "record_of",
]

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(slots=True)
class Record:
    """What goes to the broker.

    Attributes:
        topic: where to.
        value: the envelope.
        key: decides the partition, unless that is given; None: any partition.
        partition: where exactly; None: by the key.
        timestamp_ms: milliseconds since 1970 UTC.
        headers: as the client takes them.
    """

    topic: str
    value: bytes
    key: bytes | None
    partition: int | None
    timestamp_ms: int
    headers: list[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Bytes of what it carries, at most; those that frame a record come on top."""
        size = len(self.value) + len(self.key or b"")
        if self.headers:
            size += sum(len(name.encode()) + len(value) + 10 for name, value in self.headers)
        return size


def record_of(out: Outgoing) -> Record:
    """The record for an event."""
    config = out.config
    partition = timestamp_ms = None
    if config is not None:
        partition, timestamp_ms = config.partition, config.timestamp_ms
    if timestamp_ms is None:
        timestamp_ms = time.time_ns() // 1_000_000
    key, headers = effective_key(out), header_pairs(out)
    return Record(out.topic, out.payload, key, partition, timestamp_ms, headers)


def details_of(stored: Any, record: Record, position: int | None = None) -> dict[str, Any]:
    """What the broker told, for the receipt.

    Args:
        stored: the client's metadata: of the record, or of the batch it was in.
        record: the record.
        position: its place in the batch; None where the metadata are its own.
    """
    offset = stored.offset + (position or 0)
    by_broker = stored.timestamp_type == 1
    return {
        "topic": record.topic,
        "partition": stored.partition,
        # A retry of what was stored long ago is confirmed without its offset.
        "offset": offset if stored.offset >= 0 else None,
        "timestamp_ms": stored.timestamp if by_broker else record.timestamp_ms,
    }


def is_topic(topic: str) -> bool:
    """Whether Kafka takes this as the name of a topic."""
    return bool(_TOPIC.fullmatch(topic)) and topic not in {".", ".."}


def check_topic(topic: str) -> None:
    """Refuse a name that Kafka refuses.

    Raises:
        EmitRejected: it is no legal name of a topic.
    """
    if not is_topic(topic):
        raise EmitRejected(
            f"{topic[:260]!r} is no legal Kafka topic: 1 to 249 characters of a-z, A-Z, 0-9, "
            "'.', '_' and '-', and neither '.' nor '..'"
        )
