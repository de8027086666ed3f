"""RabbitMQEventConfig and RabbitMQConnection: each field's unit, default and AMQP term."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    model_validator,
)

from dispytch import BackendConfig, Connection
from dispytch.fields import Duration, aware, seconds
from dispytch_rabbitmq.table import MAX_SECONDS, plain_table

__all__ = [
    "DEFAULT_EXCHANGE",
    "RabbitMQConnection",
    "RabbitMQEventConfig",
    "bad_exchange",
    "too_long",
]

DEFAULT_EXCHANGE = "dispytch"
"""Where emitters and listeners meet whose URLs name no exchange."""

MAX_EXPIRATION = 4_294_967.295
"""Seconds: RabbitMQ keeps milliseconds in 32 bits."""

_MAX_SHORT = 255
_DELIVERY_MODES: dict[object, str] = {
    1: "transient",
    "transient": "transient",
    2: "persistent",
    "persistent": "persistent",
}
_EXCHANGE = re.compile(r"[a-zA-Z0-9\-_.:@#,/ ]{0,127}")
_PORTS = {"amqp": 5672, "amqps": 5671}


def too_long(text: str) -> str | None:
    """What is wrong with a short string of AMQP, or None."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "is no valid Unicode text (a lone surrogate)"
    if size > _MAX_SHORT:
        return f"is {size} bytes long in UTF-8; AMQP allows {_MAX_SHORT}"
    return None


def bad_exchange(name: str) -> str | None:
    """What is wrong with the name of an exchange, or None."""
    if _EXCHANGE.fullmatch(name):
        return None
    return (
        "is no name of an exchange: at most 127 letters, digits, spaces and - _ . : @ # , /, "
        "as far as the client can send them"
    )


def _short(text: str) -> str:
    if problem := too_long(text):
        raise ValueError(problem)
    return text


def _exchange(text: str) -> str:
    # Braces may be placeholders of a class-level config; what they render is checked again.
    if problem := bad_exchange(re.sub(r"\{[^{}]*\}", "", text)):
        raise ValueError(problem)
    return text


def _reply_to(text: str) -> str:
    if text == "amq.rabbitmq.reply-to":
        raise ValueError("direct reply-to needs a consumer on the same channel; name a queue")
    return _short(text)


def _delivery_mode(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in _DELIVERY_MODES:
        raise ValueError("must be 'persistent' (or 2) or 'transient' (or 1)")
    return _DELIVERY_MODES[value]


def _timestamp(value: Any) -> Any:
    if isinstance(value, datetime):
        value = int(aware(value).timestamp())
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("whole seconds since 1970 UTC, or an aware datetime")  # noqa: TRY004 - pydantic wants ValueError
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(
            f"seconds since 1970 UTC, 0 to {MAX_SECONDS}; are these milliseconds? AMQP has seconds"
        )
    return value


def _headers(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("a dict of headers")  # noqa: TRY004 - pydantic wants ValueError
    plain = plain_table(value)
    for name in ("CC", "BCC"):
        copies = plain.get(name, [])
        if not (isinstance(copies, list) and all(isinstance(copy, str) for copy in copies)):
            raise ValueError(f"{name!r} names further routing keys: RabbitMQ wants a list of str")
    return plain


ShortText = Annotated[str, AfterValidator(_short)]


class RabbitMQEventConfig(BackendConfig):
    """How RabbitMQ carries an event: the AMQP properties of its message, and where it goes.

    Everything is optional. Texts are at most 255 bytes in UTF-8. In a class-level config texts and
    header values may name the event's fields: `"{user.id}"`.
    """

    exchange: Annotated[str, AfterValidator(_exchange)] | None = Field(
        default=None,
        description="Exchange the event is published to; the topic is the routing key. An empty "
        "text is the default exchange, where the routing key is the name of a queue. "
        "Default: the connection's exchange, or the one the producer was given.",
    )
    delivery_mode: Annotated[
        Literal["persistent", "transient"] | int, BeforeValidator(_delivery_mode)
    ] = Field(
        default="persistent",
        description="Whether the message survives a restart of the broker in a durable queue: "
        "'persistent' (also 2) or 'transient' (also 1). Default: persistent.",
    )
    priority: Annotated[int, Field(strict=True, ge=0, le=255)] | None = Field(
        default=None,
        description="Priority in queues declared with x-max-priority, 0 to 255, higher first; "
        "those that groups listen on are quorum queues, which have none. "
        "Default: unset, which such queues take for 0.",
    )
    expiration: (
        Annotated[Duration | datetime, seconds(moment=True, limit=MAX_EXPIRATION)] | None
    ) = Field(
        default=None,
        description="Time to live in SECONDS (a number or a timedelta, 0 to 4294967.295), after "
        "which a queue drops or dead-letters the message; an aware datetime is a deadline, and "
        "emitting after it is rejected. Default: unset, the message does not expire.",
    )
    headers: Annotated[dict[str, Any], BeforeValidator(_headers)] = Field(
        default_factory=dict,
        description="Headers, by name of at most 128 bytes: str, bytes, int of 64 bits, bool, "
        "finite float, unsigned Decimal, aware datetime (in seconds), None, dicts and lists of "
        "them. Headers set by middleware win. Default: none; a key of the event is added as "
        "x-dispytch-key.",
    )
    content_type: ShortText | None = Field(
        default=None,
        description="MIME type of the body. Default: application/json; set it with a serializer "
        "of your own.",
    )
    content_encoding: ShortText | None = Field(
        default=None, description="Encoding of the body, for example gzip. Default: unset."
    )
    correlation_id: ShortText | None = Field(
        default=None, description="What the event belongs to or answers. Default: unset."
    )
    reply_to: Annotated[str, AfterValidator(_reply_to)] | None = Field(
        default=None, description="Queue that answers go to. Default: unset."
    )
    message_id: ShortText | None = Field(
        default=None, description="Identity of the message. Default: the id of the event."
    )
    timestamp: Annotated[int | datetime, BeforeValidator(_timestamp)] | None = Field(
        default=None,
        description="Time of the message: whole SECONDS since 1970 UTC (not milliseconds), or an "
        "aware datetime. Default: the second it is emitted.",
    )
    type: ShortText | None = Field(
        default=None, description="Type of the message. Default: the type of the event."
    )
    user_id: ShortText | None = Field(
        default=None,
        description="User who publishes, verified by the broker: must be the login of the "
        "connection. Default: unset.",
    )
    app_id: ShortText | None = Field(
        default=None, description="Application that publishes. Default: unset."
    )
    mandatory: Annotated[bool, Field(strict=True)] = Field(
        default=True,
        description="Whether an event that no queue receives is rejected; if not, the broker drops "
        "it and confirms. Default: true.",
    )


class RabbitMQConnection(Connection):
    """`amqp://user:password@host:port/vhost?option=value`; `amqps` for TLS.

    Without a port 5672, or 5671 with TLS; without a user guest/guest; without a vhost `/`. Several
    hosts, separated by commas, are tried in turn. Certificates and host names are always verified.
    """

    exchange: Annotated[str, AfterValidator(_exchange)] = Field(
        default=DEFAULT_EXCHANGE,
        description="Exchange for events that name none, and that queues of groups are bound to. "
        "Default: dispytch; what no queue receives there then goes to the queue that has the "
        "topic's name. An empty text is AMQP's default exchange: such queues only.",
    )
    exchange_type: Literal["topic", "direct", "fanout", "headers"] = Field(
        default="topic", description="Type the exchange gets if it is declared. Default: topic."
    )
    declare: bool = Field(
        default=True,
        description="Whether to declare what is missing: that exchange, and the queues that "
        "listening needs, all durable; if not, they must be there. An exchange that exists is "
        "used as it is. Default: true.",
    )
    delivery_limit: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="How often a message may come back unsettled to the queue of a group (with a "
        "consumer that died or stopped, or given back) before the broker dead-letters it. A "
        "queue keeps the limit it was declared with. Default: 20.",
    )
    heartbeat: int = Field(
        default=10,
        ge=0,
        le=65534,
        description="Seconds between signs of life; a dead peer is noticed after 3 * (heartbeat + "
        "1). 0 turns them off. Default: 10.",
    )
    connection_name: ShortText | None = Field(
        default=None, description="Name of the connection in RabbitMQ's management. Default: none."
    )
    cafile: FilePath | None = Field(
        default=None,
        description="PEM file of the authorities to trust, amqps only. Default: the system's.",
    )
    certfile: FilePath | None = Field(
        default=None, description="PEM file of a client certificate, amqps only. Default: none."
    )
    keyfile: FilePath | None = Field(
        default=None, description="PEM file of its key. Default: the key is in certfile."
    )
    keyfile_password: SecretStr | None = Field(
        default=None, description="Password of the key file. Default: none."
    )
    connect_timeout: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds until an attempt to connect to one host is given up. Default: 10.",
    )
    reconnect_interval: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between attempts to reconnect; the first is made at once. Default: 1.",
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        """Files for TLS need TLS."""
        if self.scheme == "amqp" and (self.cafile or self.certfile or self.keyfile):
            raise ValueError("cafile, certfile and keyfile need TLS: write amqps://")
        if (self.keyfile or self.keyfile_password) and not self.certfile:
            raise ValueError("keyfile and keyfile_password need certfile")
        return self

    @property
    def meets_by_default(self) -> bool:
        """Whether no exchange was named, so that `DEFAULT_EXCHANGE` is a meeting point only."""
        return "exchange" not in self.model_fields_set

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each broker to try, in order."""
        port = _PORTS.get(self.scheme, 5672)
        return [_address(host, port) for host in self.hosts or ("localhost",)]

    @property
    def vhost(self) -> str:
        """The virtual host: the path without its first slash; `/` where that leaves nothing."""
        return self.path[1:] or "/"

    @property
    def login(self) -> str:
        """The user's name."""
        return "guest" if self.user is None else self.user.get_secret_value()

    @property
    def login_password(self) -> str:
        """The user's password."""
        if self.password is not None:
            return self.password.get_secret_value()
        return "guest" if self.user is None else ""


def _address(text: str, default_port: int) -> tuple[str, int]:
    bracketed, _, rest = text.rpartition("]")
    if bracketed:
        return bracketed[1:], int(rest[1:]) if rest else default_port
    host, _, port = text.partition(":")
    return host, int(port) if port else default_port
