"""AMQP field tables: the one place that knows which headers can travel, and how.

The client's own encoder is not used: it takes no bytes, cuts long keys and rounds floats to 32
bits.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

__all__ = ["MAX_SECONDS", "encode_table", "plain_table"]

MAX_SECONDS = 0xFFFF_FFFF
"""The last second (in 2106) that every reader takes for seconds: above, some see milliseconds."""

_MAX_DEPTH = 32
_MAX_KEY = 128
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain_table(table: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """A copy of headers in plain types, proven to be encodable.

    Takes str, bytes, int of 64 bits, bool, finite float, unsigned Decimal, aware datetime (its
    seconds travel), Enum (its value), None, and dicts and lists of them.

    Raises:
        ValueError: naming the header that can't travel.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested deeper than {_MAX_DEPTH}")
    plain: dict[str, Any] = {}
    for key, value in table.items():
        _check_key(key)
        plain[str(key)] = _plain(value, depth, f"{key!r}")
    return plain


def encode_table(table: Mapping[str, Any]) -> bytes:
    """The bytes of a table that `plain_table` returned."""
    body = b"".join(
        bytes((len(name := key.encode()),)) + name + _encode(value) for key, value in table.items()
    )
    return struct.pack(">I", len(body)) + body


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"a name must be a str, not {type(key).__name__}")  # noqa: TRY004 - pydantic wants ValueError
    if len(_utf8(key)) > _MAX_KEY:
        raise ValueError(f"the name {key[:20]!r}... is longer than {_MAX_KEY} bytes")


def _plain(value: Any, depth: int, name: str) -> Any:
    try:
        return _plain_value(value, depth)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _plain_value(value: Any, depth: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | bytes | bytearray):
        return bytes(value) if isinstance(value, bytearray) else value
    for kind, check in _CHECKS.items():
        if isinstance(value, kind):
            return check(value)
    if isinstance(value, Mapping):
        return plain_table(value, depth + 1)
    if isinstance(value, list):
        return _plain_list(value, depth + 1)
    raise ValueError(f"AMQP has no {type(value).__name__}; give a str, for example")


def _plain_list(values: Sequence[Any], depth: int) -> list[Any]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested deeper than {_MAX_DEPTH}")
    return [_plain(value, depth, f"[{index}]") for index, value in enumerate(values)]


def _plain_str(value: str) -> str:
    _utf8(value)
    return str.__str__(value)


def _plain_int(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("an int of AMQP has 64 bits; give a str")
    return int(value)


def _plain_float(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def _plain_decimal(value: Decimal) -> Decimal:
    if value.is_finite() and not value.is_signed():
        scale, digits = _scaled(value)
        if scale <= 255 and digits < 2**31:
            return value
    raise ValueError("a decimal of AMQP is unsigned, with 31 bits and a scale to 255; give a str")


def _plain_datetime(value: datetime) -> datetime:
    if value.utcoffset() is None:
        raise ValueError("a datetime needs a time zone")
    if not 0 <= (value - _EPOCH).total_seconds() <= MAX_SECONDS:
        raise ValueError("must lie between 1970 and 2106")
    return value


_CHECKS: Mapping[type, Callable[[Any], Any]] = {
    str: _plain_str,
    int: _plain_int,
    float: _plain_float,
    Decimal: _plain_decimal,
    datetime: _plain_datetime,
}


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("is no valid Unicode text (a lone surrogate)") from None


def _scaled(value: Decimal) -> tuple[int, int]:
    """Scale and digits: the value is digits / 10 ** scale."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or exponent > 10:  # NaN and infinity, or beyond 31 bits
        return 0, 0 if value == 0 else 2**31
    number = int("".join(map(str, digits)))
    return max(-exponent, 0), number * 10 ** max(exponent, 0)


def _encode(value: Any) -> bytes:  # noqa: PLR0911 - one line per type of AMQP
    match value:
        case None:
            return b"V"
        case bool():
            return b"t" + bytes((value,))
        case str():
            return b"S" + _sized(value.encode())
        case bytes():
            return b"x" + _sized(value)
        case int():
            small = -(2**31) <= value < 2**31
            return struct.pack(">ci", b"I", value) if small else struct.pack(">cq", b"l", value)
        case float():
            return struct.pack(">cd", b"d", value)
        case Decimal():
            return struct.pack(">cBI", b"D", *_scaled(value))
        case datetime():
            return struct.pack(">cQ", b"T", int((value - _EPOCH).total_seconds()))
        case dict():
            return b"F" + encode_table(value)
        case _:
            return b"A" + _sized(b"".join(map(_encode, value)))


def _sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
