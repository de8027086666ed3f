"""From an event ready to be sent to a Kafka record: topic, key and headers in bytes."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dispytch import EmitRejected, Outgoing
from dispytch.template import key_text

__all__ = [
    "Record",
    "check_topic",
    "details_of",
    "effective_key",
    "encode_key",
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


def record_of(out: Outgoing) -> Record:
    """The record for an event; the config's headers first, nearer ones of a middleware win."""
    config = out.config
    partition = timestamp_ms = None
    headers: list[tuple[str, bytes]] = []
    if config is not None:
        partition, timestamp_ms = config.partition, config.timestamp_ms
        headers = [(name, _bytes(value)) for name, value in pairs(config.headers)]
    if out.headers:
        headers = [header for header in headers if header[0] not in out.headers]
        headers += [(name, _bytes(value)) for name, value in out.headers.items()]
    if timestamp_ms is None:
        timestamp_ms = time.time_ns() // 1_000_000
    return Record(out.topic, out.payload, effective_key(out), partition, timestamp_ms, headers)


def effective_key(out: Outgoing) -> bytes | None:
    """The record's key: the config's, else the event's `__key__`."""
    if out.config is not None and out.config.partition_key is not None:
        return encode_key(out.config.partition_key)
    # A key that came from Kafka may be any bytes: its text holds them as surrogates.
    return None if out.key is None else out.key.encode(errors="surrogateescape")


def encode_key(value: Any) -> bytes:
    """The bytes of a key: bytes as they are, else the UTF-8 of its one obvious text.

    Raises:
        ValueError: the value has no such text, or it can't be encoded.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bytes):
        return value
    text = key_text(value)
    if text is None:
        raise ValueError(
            f"can't be a {type(value).__name__}: use bytes, str, int, UUID, Decimal, date, "
            "datetime, or an Enum of these"
        )
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds characters that UTF-8 can't encode") from None


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


def pairs(headers: Any) -> Iterable[tuple[str, str | bytes]]:
    """The headers of a config as pairs, whichever of the two forms they were given in."""
    return headers.items() if isinstance(headers, Mapping) else headers


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
