"""Frames: what is published of an event that has a key or headers; without them, its payload.

A frame is `MARKER`, a line of JSON, and the payload:
`{"key": "k", "headers": [["name", "value"], ...]}`, where either may be left out. Bytes that are no
UTF-8 are kept by `surrogateescape`.
"""

import json
from collections.abc import Sequence
from typing import Any

from dispytch.consumer import Headers

__all__ = ["MARKER", "framed", "unframed"]

MARKER = b"\0dispytch "
"""What a frame begins with, and no JSON does."""


def framed(payload: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]]) -> bytes:
    """What to publish: the bare payload where there is nothing else to tell.

    Raises:
        UnicodeEncodeError: the name of a header is no text that UTF-8 can encode.
    """
    if key is None and not headers and not payload.startswith(MARKER):
        return payload
    head: dict[str, Any] = {}
    if key is not None:
        head["key"] = _text(key)
    if headers:
        for name, _ in headers:
            name.encode()
        head["headers"] = [(name, _text(value)) for name, value in headers]
    return b"%b%b\n%b" % (MARKER, json.dumps(head, separators=(",", ":")).encode(), payload)


def unframed(message: bytes) -> tuple[bytes, str | None, Headers]:
    """Payload, key and headers of what was published, by whomever.

    What is no frame, or a malformed one, is a payload.
    """
    if not message.startswith(MARKER):
        return message, None, ()
    line, newline, payload = message[len(MARKER) :].partition(b"\n")
    try:
        head: Any = json.loads(line)
        key, headers = head.get("key"), tuple(map(_header, head.get("headers", ())))
        if key is not None:
            _bytes(key)
    # RecursionError: brackets without end
    except (ValueError, TypeError, AttributeError, RecursionError):
        return message, None, ()
    return (payload, key, headers) if newline else (message, None, ())


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _header(pair: Any) -> tuple[str, bytes]:
    if not isinstance(pair, list):
        raise TypeError("not a pair")
    name, value = pair
    name.encode()
    return name, _bytes(value)
