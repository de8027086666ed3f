"""What URLs become: RedisConnection for Streams, RedisPubSubConnection for Pub/Sub.

`redis://user:password@host:6379/0`, with TLS `rediss://`; for Pub/Sub `redis+pubsub://` and
`rediss+pubsub://`.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    FilePath,
    SecretStr,
    field_validator,
    model_validator,
)

from dispytch import Connection

__all__ = ["RedisConnection", "RedisPubSubConnection", "RedisServer"]

_LAST = 2**64 - 1
"""The highest number that ids of one millisecond end in."""


def _client_name(name: str) -> str:
    if not re.fullmatch("[!-~]+", name):
        raise ValueError("must be ASCII letters, digits and signs, without spaces")
    return name


def _printable(text: str) -> str:
    if not text.isprintable() or " " in text:
        raise ValueError("must be printable characters, without spaces")
    return text


def _prefix(text: str) -> str:
    if not text or "{" in text or "}" in text:
        raise ValueError("must be at least one character, and no braces")
    return _printable(text)


class RedisServer(Connection):
    """A server of Redis, and how it is reached. Certificates and host names are always verified."""

    user: SecretStr | None = Field(
        default=None,
        description="The user. Left out before a password (redis://:secret@host) it is Redis' "
        "default user.",
    )
    password: SecretStr | None = Field(
        default=None, description="The user's password. Default: no login."
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="The server, host or host:port. Default: localhost:6379."
    )
    path: str = Field(
        default="", description="The number of the database, as in redis://host/3. Default: 0."
    )
    cafile: FilePath | None = Field(
        default=None,
        description="PEM file of the authorities to trust, TLS only. Default: the system's.",
    )
    certfile: FilePath | None = Field(
        default=None, description="PEM file of a client certificate, TLS only. Default: none."
    )
    keyfile: FilePath | None = Field(
        default=None, description="PEM file of its key. Default: the key is in certfile."
    )
    keyfile_password: SecretStr | None = Field(
        default=None, description="Password of the key file. Default: none."
    )
    connect_timeout: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds until an attempt to connect, login included, is given up. Default: 5.",
    )
    reply_timeout: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds without a reply after which the connection is given up; what the "
        "commands under way did is unknown then. Default: 10.",
    )
    reconnect_interval: float = Field(
        default=0.5,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds between attempts to reconnect; the first is made at once. "
        "Default: 0.5.",
    )
    client_name: Annotated[str, AfterValidator(_client_name)] | None = Field(
        default=None,
        description="Name of the connections in Redis' CLIENT LIST, without spaces. Default: none.",
    )
    max_event_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=512 * 1024 * 1024,
        description="The largest event that is taken, in bytes. A server that takes less "
        "(proto-max-bulk-len) hangs up on a larger one. Default: 16 MiB.",
    )

    @field_validator("hosts")
    @classmethod
    def _one_host(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if len(hosts) > 1:
            raise ValueError("name one server: neither Redis Cluster nor Sentinel is supported")
        return hosts

    @field_validator("path")
    @classmethod
    def _names_a_database(cls, path: str) -> str:
        if not re.fullmatch("(/[0-9]{0,9})?", path):
            raise ValueError("must be the number of a database, as in redis://localhost/3")
        return path

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        """A user needs a password."""
        if self.login is not None and self.password is None:
            raise ValueError(
                "there is a user, but no password; write redis://:secret@host if it is one"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        """Files for TLS need TLS."""
        files = self.cafile or self.certfile or self.keyfile or self.keyfile_password
        if files and not self.is_tls:
            secure = self.scheme.replace("redis", "rediss", 1)
            raise ValueError(f"cafile, certfile and keyfile need TLS: write {secure}://")
        if (self.keyfile or self.keyfile_password) and not self.certfile:
            raise ValueError("keyfile and keyfile_password need certfile")
        return self

    @property
    def host(self) -> str:
        """The server's name or address, an IPv6 address without brackets."""
        return self._address[0]

    @property
    def port(self) -> int:
        """The server's port."""
        return self._address[1]

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self.path[1:] or 0)

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def login(self) -> str | None:
        """The user's name; None for the default user."""
        return (self.user.get_secret_value() or None) if self.user else None

    @property
    def login_password(self) -> str | None:
        """The user's password; None where there is no login."""
        return (self.password.get_secret_value() or None) if self.password else None

    @property
    def _address(self) -> tuple[str, int]:
        """Host and port; core has checked how they are written."""
        text = self.hosts[0] if self.hosts else "localhost"
        bracketed, _, rest = text.rpartition("]")
        host, _, port = (bracketed[1:], "", rest[1:]) if bracketed else text.partition(":")
        return host, int(port or 6379)


class RedisConnection(RedisServer):
    """Durable events in Streams: `redis://host:6379/0`; `rediss` for TLS."""

    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="dispytch",
        description="What the names of all keys in Redis begin with. Who is to meet uses the "
        "same. Default: dispytch.",
    )
    shards: int = Field(
        default=16,
        ge=1,
        le=256,
        description="For a topic that is used for the first time: over how many streams its keys "
        "are spread, and so how many members of a group can work on it at once. Default: 16.",
    )
    begin: Literal["first", "latest"] | AwareDatetime = Field(
        default="first",
        description="Where a group begins that is new, or new to a topic: first, with the first "
        "event there is; latest, with the next one; or a time (2026-01-31T12:00:00Z), with the "
        "first event stored then or later. Default: first.",
    )
    lease: float = Field(
        default=10.0,
        ge=0.5,
        le=3600,
        allow_inf_nan=False,
        description="Seconds after which the others of a group take over what a process that died "
        "or stands still had. Default: 10.",
    )

    def begins_at(self) -> str:
        """`begin` as the id that XGROUP CREATE takes: a group gets what comes after it."""
        begin: Any = self.begin
        if isinstance(begin, datetime):
            before = int(begin.timestamp() * 1000) - 1
            return f"{before}-{_LAST}" if before >= 0 else "0"
        return "0" if begin == "first" else "$"


class RedisPubSubConnection(RedisServer):
    """Events for whoever listens now: `redis+pubsub://host:6379`; `rediss+pubsub` for TLS.

    The database makes no difference: channels belong to the whole server.
    """

    channel_prefix: Annotated[str, AfterValidator(_printable)] = Field(
        default="",
        description="Put before each topic to make the name of its channel. Who is to meet uses "
        "the same. Default: none.",
    )
