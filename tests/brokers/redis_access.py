"""What tests do to any Redis, ours or one that was running before: commands, reading back.

Speaks the protocol itself, so that what the code under test claims is checked without its client.
"""

import contextlib
import socket
import ssl
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from brokers.errors import BrokerError


class ErrorReply(BrokerError):  # noqa: N818 - what the protocol calls it
    """Redis refused a command; the message starts with its code, such as `NOPERM`."""


@dataclass(frozen=True)
class Entry:
    """An entry of a stream."""

    id: str
    fields: dict[bytes, bytes]


class Connection:
    """A connection to Redis, for calls one after the other and for what is pushed on it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._replies = connection.makefile("rb")

    def call(self, *arguments: str | bytes | int) -> Any:
        """Run a command; see `read` for what it returns."""
        self.send(*arguments)
        return self.read()

    def send(self, *arguments: str | bytes | int) -> None:
        """Send a command without reading the reply."""
        parts = [one if isinstance(one, bytes) else str(one).encode() for one in arguments]
        request = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%b" % (len(parts), request))

    def read(self) -> Any:
        """The next reply or pushed message: bytes, int, None, or a list of these.

        Raises:
            ErrorReply: it is an error.
            OSError: the connection is lost (`ConnectionError`), or nothing came in time
                (`TimeoutError`).
        """
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise ErrorReply(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                size = int(rest)
                return None if size < 0 else self._replies.read(size + 2)[:-2]
            case b"*":
                size = int(rest)
                return None if size < 0 else [self.read() for _ in range(size)]
        raise ConnectionResetError(f"Redis hung up after {line!r}")

    def close(self) -> None:
        """Close the connection."""
        self._replies.close()
        self._socket.close()


class RedisAccess:
    """Blocking helpers; they may be called with an event loop running, which they hold up."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where to connect, as a user who may do all."""

    def call(self, *arguments: str | bytes | int) -> Any:
        """Run a command on a connection of its own, as in `call("XLEN", stream)`."""
        with connected(self.url) as connection:
            return connection.call(*arguments)

    def entries(self, stream: str) -> list[Entry]:
        """All that is in a stream, oldest first; nothing if there is no such stream."""
        return [
            Entry(name.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for name, fields in self.call("XRANGE", stream, "-", "+")
        ]


class RunningRedis(RedisAccess):
    """A Redis that somebody else started."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        return self._url


@contextlib.contextmanager
def connected(
    url: str, *, context: ssl.SSLContext | None = None, timeout: float = 10.0
) -> Iterator[Connection]:
    """Connect and log in as the URL says, `rediss` with the TLS settings given.

    The time-out, in seconds, is for connecting and for each reply.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    with contextlib.ExitStack() as opened:
        plain = opened.enter_context(socket.create_connection(address, timeout))
        if parts.scheme == "rediss":
            context = context or ssl.create_default_context()
            secure = context.wrap_socket(plain, server_hostname=parts.hostname)
            connection = Connection(opened.enter_context(secure))
        else:
            connection = Connection(plain)
        opened.callback(connection.close)
        _log_in(connection, parts)
        yield connection


def _log_in(connection: Connection, parts: SplitResult) -> None:
    if parts.password is not None:
        connection.call("AUTH", unquote(parts.username or "default"), unquote(parts.password))
    if database := parts.path.strip("/"):
        connection.call("SELECT", database)
