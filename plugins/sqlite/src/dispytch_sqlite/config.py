"""SQLiteEventConfig: how an event is kept in the file."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from dispytch import BackendConfig
from dispytch.fields import ConfigHeaders, Duration, PartitionKey, moment_of, seconds

__all__ = ["SQLiteEventConfig"]


class SQLiteEventConfig(BackendConfig):
    """How SQLite carries an event. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `SQLiteEventConfig(partition_key="{user.id}")`.

    Raises:
        pydantic.ValidationError: a value SQLite could not carry, naming the field.
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
        "years), after which the event is no longer delivered; it counts from the emit, a delay "
        "included. Default: unset, the event does not expire.",
    )
    delay: Annotated[Duration | datetime, seconds(moment=True)] | None = Field(
        default=None,
        description="How long the event is held back, in SECONDS (a number or a timedelta, 0 to "
        "100 years), or until when: an aware datetime; one that has passed holds nothing back. "
        "Default: unset, delivered at once.",
    )

    @field_validator("delay")
    @classmethod
    def _check_ttl(
        cls, delay: Duration | datetime | None, info: ValidationInfo
    ) -> Duration | datetime | None:
        """What expires while it is held back would never be delivered."""
        ttl = info.data.get("ttl")
        if delay is None or ttl is None or isinstance(delay, datetime):
            return delay
        if moment_of(delay, 0) >= moment_of(ttl, 0):
            raise ValueError("must be less than ttl, or the event expires while it is held back")
        return delay
