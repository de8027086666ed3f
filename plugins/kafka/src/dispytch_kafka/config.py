"""KafkaEventConfig: how an event becomes a record."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema

from dispytch import BackendConfig
from dispytch.fields import ConfigHeaders, PartitionKey, aware

__all__ = ["KafkaEventConfig"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_INT32, _INT64 = 2**31, 2**63


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
        value = (aware(value) - _EPOCH) // _MILLISECOND
    return _integer(_INT64, value)


class KafkaEventConfig(BackendConfig):
    """How Kafka carries an event. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `KafkaEventConfig(partition_key="{user.id}")`.

    Raises:
        pydantic.ValidationError: a value Kafka could not carry, naming the field.
    """

    partition_key: PartitionKey = Field(
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
    headers: ConfigHeaders = Field(
        default={},
        description="Headers of the record: a dict, or pairs where a name may come twice, of str "
        "to str (sent as UTF-8) or bytes. Merged by name with those of farther layers. "
        "Default: none.",
    )
