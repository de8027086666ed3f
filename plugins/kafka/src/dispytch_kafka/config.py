"""KafkaEventConfig: how an event becomes a record."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, TypeAlias
from uuid import UUID

from pydantic import Field, PlainValidator, WithJsonSchema

from dispytch import BackendConfig
from dispytch_kafka.record import encode_key

__all__ = ["Headers", "KafkaEventConfig", "PartitionKey"]

PartitionKey: TypeAlias = bytes | str | int | UUID | Decimal | date | Enum
"""What can be a key: bytes as they are, the others as the UTF-8 of their text."""

Headers: TypeAlias = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]
"""Headers of a record: a dict, or pairs where a name may come twice."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_INT32, _INT64 = 2**31, 2**63


def _key(value: object) -> object:
    if value is not None:
        encode_key(value)
    return value


def _integer(limit: int, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise ValueError(f"must be an int, not a {type(value).__name__}")
    if not 0 <= value < limit:
        raise ValueError(f"must be at least 0 and less than {limit}")
    return value


def _partition(value: object) -> int | None:
    return _integer(_INT32, value)


def _timestamp(value: object) -> int | None:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError("a datetime must say its time zone; this one is naive")
        value = (value - _EPOCH) // _MILLISECOND
    return _integer(_INT64, value)


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


class KafkaEventConfig(BackendConfig):
    """How Kafka carries an event. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `KafkaEventConfig(partition_key="{user.id}")`.

    Raises:
        pydantic.ValidationError: a value Kafka could not carry, naming the field.
    """

    partition_key: Annotated[
        PartitionKey | None,
        PlainValidator(_key),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The record's key; records of one key go to one partition and stay in order. "
        "bytes as they are; str, int, UUID, Decimal, date and datetime as the UTF-8 of their "
        "text; an Enum by its value. Default: the event's __key__, and without one no key.",
    )
    partition: Annotated[
        int | None,
        PlainValidator(_partition),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The number of the partition, from 0. Default: chosen by the key as Java's "
        "default partitioner does (murmur2); without a key, at random.",
    )
    timestamp_ms: Annotated[
        int | datetime | None,
        PlainValidator(_timestamp),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The record's timestamp in milliseconds since 1970 UTC; a datetime with a "
        "time zone is converted. A topic with message.timestamp.type=LogAppendTime replaces it. "
        "Default: now.",
    )
    headers: Annotated[
        Headers,
        PlainValidator(_headers),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    ] = Field(
        default={},
        description="Headers of the record: a dict, or pairs where a name may come twice, of str "
        "to str (sent as UTF-8) or bytes. Merged by name with those of farther layers. "
        "Default: none.",
    )
