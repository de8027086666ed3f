"""RedisEventConfig and RedisPubSubEventConfig: how an event travels through Redis."""

from typing import Annotated

from pydantic import Field

from dispytch import BackendConfig
from dispytch.fields import ConfigHeaders, Duration, PartitionKey, seconds

__all__ = ["RedisEventConfig", "RedisPubSubEventConfig"]

_MOST = 2**53
"""The largest count that Lua, in which Redis' scripts are written, keeps exactly."""


class RedisEventConfig(BackendConfig):
    """How Redis keeps an event in its stream. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `RedisEventConfig(partition_key="{user.id}")`.

    Raises:
        pydantic.ValidationError: a value Redis could not carry, naming the field.
    """

    partition_key: PartitionKey = Field(
        default=None,
        description="The event's key; events of one key stay in order. bytes as they are; str, "
        "int, UUID, Decimal, date and datetime as the UTF-8 of their text; an Enum by its value. "
        "Default: the event's __key__, and without one no key.",
    )
    headers: ConfigHeaders = Field(
        default={},
        description="Headers of the event: a dict, or pairs where a name may come twice, of str "
        "to str (kept as UTF-8) or bytes. Merged by name with those of farther layers. "
        "Default: none.",
    )
    ttl: Annotated[Duration, seconds(above_zero=True)] | None = Field(
        default=None,
        description="Time to live in SECONDS (a number or a timedelta, more than 0, at most 100 "
        "years), after which the event is no longer delivered; it counts from the emit. "
        "Default: unset, the event does not expire.",
    )
    maxlen: Annotated[int, Field(strict=True, ge=1, le=_MOST)] | None = Field(
        default=None,
        description="About how many events of the topic are kept: each of its shards keeps an "
        "equal part, so that it is fewer where a few keys have most events; older ones that every "
        "group has settled are deleted. Default: unset, none is deleted for their number.",
    )
    max_age: Annotated[Duration, seconds(above_zero=True)] | None = Field(
        default=None,
        description="How long events of the topic are kept at least, in SECONDS (a number or a "
        "timedelta, more than 0, at most 100 years) from the emit; older ones that every group "
        "has settled are deleted. Default: unset, none is deleted for its age.",
    )
    trim_unsettled: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="Whether maxlen and max_age also delete what a group has not settled: it may "
        "lose events. Default: false.",
    )


class RedisPubSubEventConfig(BackendConfig):
    """How an event is published to whoever listens at that moment. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `RedisPubSubEventConfig(headers={"tenant": "{tenant}"})`.

    Raises:
        pydantic.ValidationError: a value Redis could not carry, naming the field.
    """

    partition_key: PartitionKey = Field(
        default=None,
        description="The event's key, which travels with it; a listener handles events of one key "
        "in order. bytes as they are; str, int, UUID, Decimal, date and datetime as the UTF-8 of "
        "their text; an Enum by its value. Default: the event's __key__, and without one no key.",
    )
    headers: ConfigHeaders = Field(
        default={},
        description="Headers of the event: a dict, or pairs where a name may come twice, of str "
        "to str (sent as UTF-8) or bytes. Merged by name with those of farther layers. "
        "Default: none.",
    )
