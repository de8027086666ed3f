"""From what the broker delivered to a delivery, and back to a message for another round."""

import json
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from aiormq.abc import DeliveredMessage

from dispytch.consumer import Headers
from dispytch_rabbitmq.properties import KEY_HEADER, Message, encode_fields, key_header
from dispytch_rabbitmq.table import encode_table, plain_table
from dispytch_rabbitmq.topology import group_of

__all__ = ["ATTEMPT_HEADER", "TOPIC_HEADER", "Envelope", "again", "dead_letter_facts", "to_bytes"]

ATTEMPT_HEADER = "x-dispytch-attempt"
"""How often a message was delivered before its last delay: the broker then counts anew."""

TOPIC_HEADER = "x-dispytch-topic"
"""The topic of a message that a delay sends to its queue by the queue's name."""

_INTERNAL = frozenset(
    {
        KEY_HEADER,
        ATTEMPT_HEADER,
        TOPIC_HEADER,
        "CC",  # instructions to the broker: sent again, they would make further copies
        "BCC",
        "x-death",
        "x-delivery-count",
        "x-acquired-count",
    }
)
_DEATH = ("x-first-death-", "x-last-death-")
_KEPT = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "timestamp",
    "message_type",
    "app_id",
)


class Envelope:
    """What a message says of itself.

    Attributes:
        key: the event's key, or None.
        headers: for the listener, without those of the broker and of this plugin.
        attempt: 1 for the first delivery.
        topic: the topic kept over a delay, or None.
    """

    __slots__ = ("attempt", "headers", "key", "topic")

    def __init__(self, raw: Mapping[str, Any]) -> None:
        key, topic = raw.get(KEY_HEADER), raw.get(TOPIC_HEADER)
        self.key = None if key is None else to_bytes(key).decode(errors="surrogateescape")
        self.topic = None if topic is None else to_bytes(topic).decode(errors="replace")
        self.attempt = 1 + _count(raw.get(ATTEMPT_HEADER)) + _count(raw.get("x-delivery-count"))
        self.headers: Headers = tuple(
            (name, to_bytes(value))
            for name, value in raw.items()
            if name not in _INTERNAL and not name.startswith(_DEATH)
        )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def to_bytes(value: Any) -> bytes:
    """A header's value: text as UTF-8, bytes as they are, others as JSON would write them.

    None is empty; datetimes are in ISO form, decimals as text, bytes within a list in base64.
    """
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if value is None:
        return b""
    text = _text(value)
    return (text if isinstance(text, str) else json.dumps(value, default=_text)).encode()


def _text(value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return b64encode(value).decode()
    return None if isinstance(value, bool | int | float | dict | list) else str(value)


def again(
    message: DeliveredMessage, headers: Headers, queue: str, *, attempt: int, topic: str
) -> Message:
    """The message for another round through a queue that delays it.

    Its expiration is left out, which would end the delay; and the user id, which may be another's.

    Args:
        message: as delivered.
        headers: what it shall have; where a name comes twice, the last counts.
        queue: the queue that delays.
        attempt: how often it was delivered.
        topic: the event's.

    Raises:
        ValueError: a header can't travel.
    """
    given: Any = message.header.properties
    raw = given.headers or {}
    plain = plain_table({name: _as_it_was(raw, name, value) for name, value in headers})
    if KEY_HEADER in raw:
        plain[KEY_HEADER] = key_header(to_bytes(raw[KEY_HEADER]).decode(errors="surrogateescape"))
    plain |= {ATTEMPT_HEADER: attempt, TOPIC_HEADER: topic}
    table = encode_table(plain)
    message_id = given.message_id or uuid4().hex
    kept = {name: getattr(given, name) for name in _KEPT}
    flags, fields = encode_fields(delivery_mode=2, message_id=message_id, headers=table, **kept)
    properties = flags.to_bytes(2) + fields
    return Message(
        "",
        queue,
        message.body,
        message_id,
        None,
        properties,
        mandatory=True,
        header_size=len(table),
    )


def _as_it_was(raw: Mapping[str, Any], name: str, value: bytes) -> Any:
    """A header with the type it came with, unless the listener changed it."""
    if name in raw and to_bytes(raw[name]) == value:
        return raw[name]
    return value


def dead_letter_facts(raw: Mapping[str, Any], headers: Headers) -> Headers:
    """For what the broker itself dead-lettered: why, from which topic and from which group."""
    deaths = raw.get("x-death")
    if not (isinstance(deaths, list) and deaths and isinstance(deaths[0], dict)):
        return ()
    if any(name == "x-dispytch-dlq-reason" for name, _ in headers):
        return ()
    death: dict[str, Any] = deaths[0]  # the latest
    keys = death.get("routing-keys")
    topic = raw.get(TOPIC_HEADER) or (keys[0] if isinstance(keys, list) and keys else "")
    facts = {
        "reason": f"the broker gave it up: {death.get('reason')}",
        "topic": topic,
        "group": group_of(str(death.get("queue", ""))),
    }
    return tuple((f"x-dispytch-dlq-{name}", to_bytes(value)) for name, value in facts.items())
