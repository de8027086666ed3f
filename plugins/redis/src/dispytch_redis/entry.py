"""Entries of a stream: what is stored of an event, and what is read again."""

import time
import zlib
from collections.abc import Sequence

from dispytch import EmitRejected, Outgoing
from dispytch.consumer import Headers
from dispytch.fields import effective_key, header_pairs, moment_of

__all__ = ["Message", "fields_of", "key_of", "message_of", "shard_of"]

_HEADER = b"header:"
_DIGITS = 20  # more are no time, and Python refuses to read very many


class Message:
    """What an entry holds.

    Attributes:
        payload, key, headers: as `Delivery` has them.
        expires_ms: when it is worth nothing any more, ms since 1970 UTC; None: never.
    """

    __slots__ = ("expires_ms", "headers", "key", "payload")

    def __init__(
        self, payload: bytes, key: str | None, headers: Headers, expires_ms: int | None
    ) -> None:
        self.payload, self.key, self.headers = payload, key, headers
        self.expires_ms = expires_ms


def shard_of(key: bytes, shards: int) -> int:
    """Which shard the events of a key are in: the same for every version of this package."""
    return zlib.crc32(key) % shards


def key_of(out: Outgoing) -> bytes | None:
    """The key of an event.

    Raises:
        EmitRejected: it can't be stored.
    """
    try:
        return effective_key(out)
    except UnicodeEncodeError as error:
        raise EmitRejected("the key holds what UTF-8 can't encode") from error


def fields_of(out: Outgoing, key: bytes | None) -> list[bytes]:
    """The fields of an event's entry, names and values; its key is known, see `key_of`.

    Raises:
        EmitRejected: it can't be stored.
    """
    try:
        fields = [b"payload", out.payload]
        if key is not None:
            fields += (b"key", key)
        if out.config is not None and out.config.ttl is not None:
            fields += (b"expires_ms", b"%d" % (moment_of(out.config.ttl, time.time()) * 1000))
        if out.headers or (out.config is not None and out.config.headers):
            for name, value in header_pairs(out):
                fields += (_HEADER + name.encode(), value)
    except UnicodeEncodeError as error:
        raise EmitRejected("a header holds what UTF-8 can't encode") from error
    return fields


def message_of(fields: Sequence[bytes]) -> Message:
    """What the fields of an entry say; those we don't know are headers by their names."""
    match fields:  # the most frequent ones, quickly
        case [b"payload", body]:
            return Message(body, None, (), None)
        case [b"payload", body, b"key", named]:
            return Message(body, _text(named), (), None)
        case _:
            return _message_of(fields)


def _message_of(fields: Sequence[bytes]) -> Message:
    payload, key, expires_ms = b"", None, None
    headers: list[tuple[str, bytes]] = []
    pairs = iter(fields)
    for name, value in zip(pairs, pairs, strict=True):
        if name == b"payload":
            payload = value
        elif name == b"key":
            key = _text(value)
        elif name == b"expires_ms" and value.isdigit() and len(value) < _DIGITS:
            expires_ms = int(value)
        else:
            headers.append((name.removeprefix(_HEADER).decode("utf-8", "replace"), value))
    return Message(payload, key, tuple(headers), expires_ms)


def _text(key: bytes) -> str:
    """A key as `Delivery` has it."""
    return key.decode("utf-8", "surrogateescape")
