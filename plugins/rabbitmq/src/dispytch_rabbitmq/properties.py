"""From an event and its config to an AMQP message; everything wrong is refused here, before I/O."""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aiormq import spec

from dispytch import EmitRejected, Outgoing
from dispytch_rabbitmq.config import MAX_EXPIRATION, RabbitMQEventConfig, bad_exchange, too_long
from dispytch_rabbitmq.table import encode_table, plain_table

__all__ = ["KEY_HEADER", "Forms", "Message", "encode_fields", "key_header"]

KEY_HEADER = "x-dispytch-key"
"""The header that carries an event's key."""

_DEFAULTS = RabbitMQEventConfig()
_MAX_FORMS = 1000
_EMPTY = 4
"""The size of a table without headers: it is the number that begins each."""
_KEY = bytes((len(KEY_HEADER),)) + KEY_HEADER.encode() + b"S"
_PROPERTIES = spec.Basic.Properties()
_FLAGS = spec.Basic.Properties.flags
_DELIVERY_MODES: dict[str | int, int] = {"transient": 1, "persistent": 2}


@dataclass(slots=True)
class Message:
    """What is published.

    Attributes:
        exchange: where to.
        routing_key: the event's topic.
        body: the envelope's bytes.
        id: the message id.
        user_id: who sends it, where it says so.
        properties: the AMQP properties, encoded.
        mandatory: whether a message that no queue receives comes back.
        header_size: of the encoded headers, in bytes.
    """

    exchange: str
    routing_key: str
    body: bytes
    id: str
    user_id: str | None
    properties: bytes
    mandatory: bool
    header_size: int


class Forms:
    """Makes messages; what those of one type and config have in common is encoded once."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, int], _Form] = {}
        self._exchanges: set[str] = set()

    def message(self, out: Outgoing, exchange: str, *, mandatory: bool = False) -> Message:
        """The message for an event.

        Args:
            out: the event.
            exchange: where to.
            mandatory: have it come back where no queue receives it, whatever its config says.

        Raises:
            EmitRejected: a value can't travel, naming it.
        """
        if exchange not in self._exchanges:
            if problem := bad_exchange(exchange):
                raise EmitRejected(f"exchange {exchange!r} {problem}")
            self._exchanges.add(exchange)
        _check("the topic, which is the routing key,", out.topic)
        form = self._form(out.type, out.config or _DEFAULTS)
        message_id, properties, header_size = form.fill(out)
        config = form.config
        return Message(
            exchange,
            out.topic,
            out.payload,
            message_id,
            config.user_id,
            properties,
            mandatory or config.mandatory,
            header_size,
        )

    def _form(self, event_type: str, config: RabbitMQEventConfig) -> "_Form":
        known = event_type, id(config)
        form = self._forms.get(known)
        if form is None:
            form = _Form(event_type, config)
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            if not isinstance(config.expiration, datetime):  # else it is another for each event
                self._forms[known] = form
        return form


class _Form:
    """All properties of a message but its id, its key and its time.

    Attributes:
        config: kept, for while it lives no other has its `id()`.

    Raises:
        EmitRejected: a value can't travel, naming it.
    """

    def __init__(self, event_type: str, config: RabbitMQEventConfig) -> None:
        self.config = config
        message_type = config.type or event_type
        _check("type, by default the event's type,", message_type)
        self._table = encode_table(config.headers)
        first, self._first = encode_fields(
            content_type=config.content_type or "application/json",
            content_encoding=config.content_encoding,
        )
        middle, self._middle = encode_fields(
            delivery_mode=_DELIVERY_MODES[config.delivery_mode],
            priority=config.priority,
            correlation_id=config.correlation_id,
            reply_to=config.reply_to,
            expiration=_expiration(config),
        )
        last, self._last = encode_fields(
            message_type=message_type, user_id=config.user_id, app_id=config.app_id
        )
        varying = _FLAGS["message_id"] | _FLAGS["timestamp"]
        self._flags = first | middle | last | varying

    def fill(self, out: Outgoing) -> tuple[str, bytes, int]:
        """The id and the properties of one event's message, and the size of its headers."""
        message_id = self.config.message_id or out.event_id
        _check("message_id, by default the event's id,", message_id)
        encoded_id, table = message_id.encode(), self._table_of(out)
        given = self.config.timestamp
        seconds = int(time.time()) if given is None else _seconds(given)
        with_headers = len(table) > _EMPTY
        properties = b"".join(
            (
                (self._flags | _FLAGS["headers"] if with_headers else self._flags).to_bytes(2),
                self._first,
                table if with_headers else b"",
                self._middle,
                len(encoded_id).to_bytes(),
                encoded_id,
                seconds.to_bytes(8),
                self._last,
            )
        )
        return message_id, properties, len(table)

    def _table_of(self, out: Outgoing) -> bytes:
        """The config's headers, over them those of middleware, over them the key."""
        if not out.headers:
            if out.key is None:
                return self._table
            if KEY_HEADER not in self.config.headers and out.key.isascii():
                key = b"".join((_KEY, len(out.key).to_bytes(4), out.key.encode()))
                body = self._table[_EMPTY:] + key
                return len(body).to_bytes(4) + body
        return encode_table(_headers(out, self.config))


def encode_fields(**values: Any) -> tuple[int, bytes]:
    """Some of the AMQP properties, in AMQP's order: their flags and their bytes.

    Args:
        values: each by its name; None and "" are left out, `headers` are encoded already.
    """
    flags, parts = 0, list[bytes]()
    for name in _PROPERTIES.attributes():
        value = values.get(name)
        if value is not None and value != "":
            flags |= _FLAGS[name]
            encoded = name == "headers"
            parts.append(value if encoded else _PROPERTIES.encode_property(name, value))
    return flags, b"".join(parts)


def _check(what: str, text: str) -> None:
    if problem := too_long(text):
        raise EmitRejected(f"{what} {problem}")


def _headers(out: Outgoing, config: RabbitMQEventConfig) -> dict[str, Any]:
    headers = config.headers
    if out.headers:
        for name in ("CC", "BCC"):
            if name in out.headers:
                raise EmitRejected(f"header {name!r} takes a list; set it in the event's config")
        try:
            headers = headers | plain_table(out.headers)
        except ValueError as error:
            raise EmitRejected(f"header of a middleware: {error}") from error
    if out.key is not None:
        try:
            headers = headers | plain_table({KEY_HEADER: key_header(out.key)})
        except ValueError as error:
            raise EmitRejected(f"the event's key can't travel: {error}") from error
    return headers


def key_header(key: str) -> str | bytes:
    """A key as a header: text, or the bytes that it was made from with `surrogateescape`.

    Raises:
        ValueError: it is neither.
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogateescape")
    return key


def _expiration(config: RabbitMQEventConfig) -> str | None:
    """Milliseconds as text, rounded up: AMQP's form."""
    given = config.expiration
    if given is None:
        return None
    if isinstance(given, datetime):
        given = given - datetime.now(UTC)
        if given < timedelta(0):
            raise EmitRejected("expiration: the deadline has passed")
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if seconds > MAX_EXPIRATION:
        raise EmitRejected(f"expiration: more than {MAX_EXPIRATION} seconds ahead")
    return str(min(math.ceil(seconds * 1000), int(MAX_EXPIRATION * 1000)))


def _seconds(given: int | datetime) -> int:
    """Since 1970, as AMQP has its timestamps."""
    return int(given.timestamp()) if isinstance(given, datetime) else given
