"""From an event and its config to an AMQP message; everything wrong is refused here, before I/O."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from aiormq import spec

from dispytch import EmitRejected, Outgoing
from dispytch_rabbitmq.config import MAX_EXPIRATION, RabbitMQEventConfig, bad_exchange, too_long
from dispytch_rabbitmq.table import encode_table, plain_table

__all__ = ["KEY_HEADER", "Message", "Properties", "key_header", "make_message"]

KEY_HEADER = "x-dispytch-key"
"""The header that carries an event's key."""

_DEFAULTS = RabbitMQEventConfig()
_DELIVERY_MODES: dict[str | int, int] = {"transient": 1, "persistent": 2}


class Properties(spec.Basic.Properties):
    """AMQP properties whose `headers` are encoded already.

    Attributes:
        written: whether they were handed to the connection: until then, nothing can arrive.
    """

    written = False

    def encode_property(self, name: str, value: Any) -> bytes:
        """The bytes of one property."""
        return value if name == "headers" else super().encode_property(name, value)

    def marshal(self) -> bytes:
        """All bytes; called when the message is put into the connection's queue."""
        self.written = True
        return super().marshal()


@dataclass(frozen=True, slots=True)
class Message:
    """What is published.

    Attributes:
        exchange: where to.
        routing_key: the event's topic.
        body: the envelope's bytes.
        properties: the AMQP properties.
        mandatory: whether a message that no queue receives comes back.
        header_size: of the encoded headers, in bytes.
    """

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    mandatory: bool
    header_size: int

    @property
    def id(self) -> str:
        """The message id."""
        return str(self.properties.message_id)


def make_message(out: Outgoing, exchange: str, *, mandatory: bool = False) -> Message:
    """The message for an event.

    Args:
        out: the event.
        exchange: where to.
        mandatory: have it come back where no queue receives it, whatever its config says.

    Raises:
        EmitRejected: a value can't travel, naming it.
    """
    config: RabbitMQEventConfig = out.config or _DEFAULTS
    if problem := bad_exchange(exchange):
        raise EmitRejected(f"exchange {exchange!r} {problem}")
    _check("the topic, which is the routing key,", out.topic)
    message_id = config.message_id or out.event_id
    message_type = config.type or out.type
    _check("message_id, by default the event's id,", message_id)
    _check("type, by default the event's type,", message_type)
    table = encode_table(_headers(out, config))
    properties = Properties(
        content_type=config.content_type or "application/json",
        content_encoding=config.content_encoding,
        delivery_mode=_DELIVERY_MODES[config.delivery_mode],
        priority=config.priority,
        correlation_id=config.correlation_id,
        reply_to=config.reply_to,
        expiration=_expiration(config),
        message_id=message_id,
        timestamp=_timestamp(config),
        message_type=message_type,
        user_id=config.user_id,
        app_id=config.app_id,
    )
    if len(table) > 4:
        properties.headers = cast("Any", table)  # encoded, see Properties
    mandatory = mandatory or config.mandatory
    return Message(exchange, out.topic, out.payload, properties, mandatory, len(table))


def _check(what: str, text: str) -> None:
    if problem := too_long(text):
        raise EmitRejected(f"{what} {problem}")


def _headers(out: Outgoing, config: RabbitMQEventConfig) -> dict[str, Any]:
    """The config's headers, over them those of middleware, over them the key."""
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


def _timestamp(config: RabbitMQEventConfig) -> datetime:
    given = config.timestamp
    if given is None:
        return datetime.now(UTC)
    return given if isinstance(given, datetime) else datetime.fromtimestamp(given, UTC)
