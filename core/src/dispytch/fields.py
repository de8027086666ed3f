"""Fields that event configs of several backends share, as annotated types.

    class FolderEventConfig(BackendConfig):
        partition_key: PartitionKey = Field(default=None, description="...")
        headers: ConfigHeaders = Field(default={}, description="...")
        ttl: Annotated[Duration, seconds(above_zero=True)] | None = Field(default=None, ...)

Each keeps what it was given, so that a config reads as it was written; the functions beside them
give what is sent: `effective_key`, `header_pairs`, `moment_of`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from dispytch.template import key_text

if TYPE_CHECKING:  # a module that only defines events needs no asyncio, which producers do
    from dispytch.producer import Outgoing

__all__ = [
    "CENTURY",
    "ConfigHeaders",
    "Duration",
    "PartitionKey",
    "aware",
    "effective_key",
    "encode_key",
    "header_pairs",
    "moment_of",
    "seconds",
]


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


def effective_key(out: "Outgoing") -> bytes | None:
    """What keeps an event in order: the config's `partition_key`, else the event's `__key__`."""
    if out.config is not None and out.config.partition_key is not None:
        return encode_key(out.config.partition_key)
    # A key that came from a broker may be any bytes: its text holds them as surrogates.
    return None if out.key is None else out.key.encode(errors="surrogateescape")


def _key(value: object) -> object:
    if value is not None:
        encode_key(value)
    return value


PartitionKey: TypeAlias = Annotated[
    bytes | str | int | UUID | Decimal | date | Enum | None,
    PlainValidator(_key),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
]
"""What can be a key, see `encode_key`; None: the event's own."""


def header_pairs(out: "Outgoing") -> list[tuple[str, bytes]]:
    """The headers to send: the config's first; those of a middleware win, by name."""
    pairs: list[tuple[str, bytes]] = []
    if out.config is not None:
        pairs = _encoded(out.config.headers)
    if out.headers:
        pairs = [pair for pair in pairs if pair[0] not in out.headers]
        pairs += _encoded(out.headers)
    return pairs


def _encoded(headers: Any) -> list[tuple[str, bytes]]:
    pairs: Iterable[tuple[str, str | bytes]]
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]


def _headers(value: object) -> Mapping[str, str | bytes] | tuple[tuple[str, str | bytes], ...]:
    if isinstance(value, Mapping):
        return {name: _header(name, one) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        raise ValueError(f"must be a dict or a list of pairs, not a {kind}")  # noqa: TRY004 - the one error pydantic reports
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise ValueError("must be a dict, or pairs of a name and a value")
    return tuple((name, _header(name, one)) for name, one in value)


def _header(name: object, value: object) -> str | bytes:
    if not isinstance(name, str):
        raise ValueError("the name of a header must be a str")  # noqa: TRY004 - as above
    if not isinstance(value, str | bytes):
        kind = type(value).__name__
        raise ValueError(f"header {name!r} must be str or bytes, not {kind}")  # noqa: TRY004 - as above
    for text in (name, value):
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"header {name!r} holds characters that UTF-8 can't encode"
                ) from None
    return value


ConfigHeaders: TypeAlias = Annotated[
    Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]],
    PlainValidator(_headers),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
"""Headers as a config gives them: a dict, or pairs where a name may come twice; never None."""


Duration: TypeAlias = int | float | timedelta
"""A length of time: a number of seconds, or a timedelta. See `seconds`."""

CENTURY = 36_525 * 86_400
"""Seconds: the longest duration, unless a field says otherwise."""


def seconds(
    *, above_zero: bool = False, moment: bool = False, limit: float = CENTURY
) -> BeforeValidator:
    """What checks a `Duration`: an int, a finite float or a timedelta, from 0 and never a bool.

    Args:
        above_zero: refuse 0 as well.
        moment: take an aware datetime, too, of any time: the field is a `Duration | datetime`.
        limit: the most seconds a duration may have.
    """
    what = "seconds (a number or a timedelta)" + (" or an aware datetime" if moment else "")

    def check(value: object) -> object:
        if moment and isinstance(value, datetime):
            return aware(value)
        length = value.total_seconds() if isinstance(value, timedelta) else value
        if isinstance(length, bool) or not isinstance(length, int | float):
            raise ValueError(f"must be {what}, not a {type(value).__name__}")  # noqa: TRY004 - as above
        # Never true of NaN, and exact for an int too large for a float.
        if not 0 <= length <= limit or (above_zero and length == 0):
            least = "more than 0" if above_zero else "at least 0"
            raise ValueError(f"must be {least} and at most {limit} seconds")
        return value

    bounds = Field(gt=0, le=limit) if above_zero else Field(ge=0, le=limit)
    return BeforeValidator(check, json_schema_input_type=Annotated[float, bounds])


def aware(value: datetime) -> datetime:
    """The same datetime, proven to say its time zone.

    Raises:
        ValueError: it does not.
    """
    if value.utcoffset() is None:
        raise ValueError("a datetime must say its time zone; this one is naive")
    return value


def moment_of(value: Duration | datetime, now: float) -> float:
    """When that is, in seconds since 1970 UTC: a duration counts from `now`."""
    if isinstance(value, datetime):
        return value.timestamp()
    return now + (value.total_seconds() if isinstance(value, timedelta) else value)
