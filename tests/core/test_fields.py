"""Fields that event configs share: one rule for keys, headers and durations on every backend."""

import math
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from dispytch import BackendConfig, Outgoing
from dispytch.fields import (
    CENTURY,
    ConfigHeaders,
    Duration,
    PartitionKey,
    aware,
    effective_key,
    encode_key,
    header_pairs,
    moment_of,
    seconds,
)
from dispytch.producer import HeaderPairs
from dispytch.template import key_text

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - on purpose
SURROGATE = chr(0xD800)  # no character: UTF-8 can't encode it


class Config(BackendConfig):
    partition_key: PartitionKey = None
    headers: ConfigHeaders = Field(default={})
    length: Annotated[Duration, seconds()] | None = None
    some: Annotated[Duration, seconds(above_zero=True, limit=60)] | None = None
    until: Annotated[Duration | datetime, seconds(moment=True)] | None = None


class Raw(Enum):
    BYTES = b"\xff"
    FLOAT = 1.5


class Number(IntEnum):
    FIVE = 5


def outgoing(config: Config | None = None, key: str | None = None) -> Outgoing:
    return Outgoing("id", "type", "topic", b"payload", key, config)


def refused(**settings: Any) -> str:
    """The message about the one field that is wrong."""
    with pytest.raises(ValidationError) as caught:
        Config(**settings)
    (error,) = caught.value.errors()
    assert error["loc"] == tuple(settings)
    return error["msg"]


TEXTS = st.text() | st.integers() | st.uuids() | st.decimals() | st.dates() | st.times()
VALUES = st.text() | st.binary()


@given(TEXTS)
def test_a_key_has_the_text_it_has_in_a_template(key: Any) -> None:
    """`partition_key=value` and `__key__ = "{value}"` keep the same events in order."""
    assert encode_key(key) == effective_key(outgoing(key=key_text(key)))


@given(st.binary())
def test_a_key_that_came_as_bytes_goes_out_as_the_same_bytes(key: bytes) -> None:
    """What a broker gave as a key, UTF-8 or not, survives its form as text."""
    assert encode_key(key) == key
    assert effective_key(outgoing(key=key.decode(errors="surrogateescape"))) == key


@pytest.mark.parametrize(
    ("key", "encoded"), [(None, b"far"), ("", b""), (0, b"0"), (b"", b""), (Raw.BYTES, b"\xff")]
)
def test_the_key_of_a_config_wins_even_when_it_is_empty(key: Any, encoded: bytes) -> None:
    """Only None leaves the event its own key."""
    config = Config(partition_key=key)
    assert config.partition_key is key
    assert effective_key(outgoing(config, key="far")) == encoded


def test_without_any_key_there_is_none() -> None:
    """Nothing is made up."""
    assert effective_key(outgoing()) is None
    assert effective_key(outgoing(Config())) is None


@pytest.mark.parametrize("key", [True, 1.5, [1], {"a": 1}, bytearray(b"k"), object(), Raw.FLOAT])
def test_a_key_without_one_obvious_text_is_refused(key: Any) -> None:
    """The message says what can be a key instead."""
    assert "use bytes, str, int, UUID, Decimal" in refused(partition_key=key)


def test_a_key_that_utf8_cant_encode_is_refused() -> None:
    """It would fail only when the event is sent."""
    assert "UTF-8" in refused(partition_key=SURROGATE)


@given(
    st.dictionaries(st.text("abc", max_size=1), VALUES)
    | st.lists(st.tuples(st.text("abc", max_size=1), VALUES)),
    st.lists(st.tuples(st.text("abc", max_size=1), VALUES)),
)
def test_headers_of_a_middleware_replace_those_of_the_config_by_name(far: Any, near: Any) -> None:
    """All others stay, in their order and with names that come twice; all values are bytes."""
    out = outgoing(Config(headers=far))
    out.headers = HeaderPairs(near)
    names = {name for name, _ in near}
    kept = [
        pair for pair in (far.items() if isinstance(far, dict) else far) if pair[0] not in names
    ]
    assert header_pairs(out) == [
        (name, value.encode() if isinstance(value, str) else value)
        for name, value in [*kept, *near]
    ]


def test_headers_need_no_config() -> None:
    """An event without a config has those of a middleware, or none."""
    out = outgoing()
    assert header_pairs(out) == []
    out.headers = {"a": "1"}
    assert header_pairs(out) == [("a", b"1")]


@pytest.mark.parametrize(
    "headers",
    [None, 5, "ab", b"ab", {"a"}, ["ab"], [("a",)], {"a": 1}, {1: "a"}, {"a": None},
     {"a": SURROGATE}, {SURROGATE: "a"}, [("a", "b", "c")], [("a", bytearray())]],
)  # fmt: skip
def test_headers_of_any_other_form_are_refused(headers: Any) -> None:
    """Nothing is converted, so nothing comes back different."""
    refused(headers=headers)


DURATIONS = st.one_of(
    st.integers(0, CENTURY),
    st.floats(0, CENTURY),
    st.timedeltas(timedelta(0), timedelta(seconds=CENTURY)),
)


@given(DURATIONS)
def test_a_duration_reads_as_it_was_given(duration: Any) -> None:
    """5 stays 5 and a timedelta a timedelta, also after a merge validates it again."""
    config = Config(length=duration, until=duration)
    assert config.length is duration
    assert Config.model_validate(config.model_dump()) == config
    assert config.model_dump_json()


@given(DURATIONS, st.floats(0, 4e9))
def test_a_duration_counts_from_now(duration: Any, now: float) -> None:
    """Whichever form it has, it is seconds."""
    length = duration.total_seconds() if isinstance(duration, timedelta) else duration
    assert moment_of(duration, now) == now + length


@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=-14)))))
def test_a_datetime_is_a_moment_whatever_the_time(when: datetime) -> None:
    """Any year and any zone: it is kept as given, and now does not matter."""
    until = Config(until=when).until
    assert until is when
    assert moment_of(when, 0) == moment_of(when, 1e9) == when.timestamp()


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, 10**400, timedelta(microseconds=-1), timedelta.max,
     CENTURY + 1, CENTURY + 0.5],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
@pytest.mark.parametrize("field", ["length", "until"])
def test_a_duration_out_of_bounds_is_refused_in_seconds(field: str, value: Any) -> None:
    """The message has the bounds and their unit; no number is too large to be refused."""
    assert "must be at least 0 and at most 3155760000 seconds" in refused(**{field: value})


@pytest.mark.parametrize("value", [0, 0.0, -0.0, timedelta(0), -1, 60.001, timedelta(minutes=2)])
def test_a_field_may_have_bounds_of_its_own(value: Any) -> None:
    """More than 0, or less than a century."""
    assert "must be more than 0 and at most 60 seconds" in refused(some=value)
    assert Config(some=60).some == 60
    assert Config(some=5e-324).some == 5e-324


@pytest.mark.parametrize("value", [True, False, "5", b"5", Decimal(5), date(2026, 1, 1), [5], 5j])
@pytest.mark.parametrize("field", ["length", "some", "until"])
def test_what_is_no_duration_is_refused(field: str, value: Any) -> None:
    """No coercion: the message says what it takes, and what it got."""
    message = refused(**{field: value})
    assert "must be seconds (a number or a timedelta)" in message
    assert message.endswith(f"not a {type(value).__name__}")


def test_a_number_of_a_derived_type_is_a_duration() -> None:
    """An IntEnum is a number."""
    assert Config(length=Number.FIVE).length == 5


def test_a_datetime_is_refused_where_only_durations_fit() -> None:
    """Whether it is aware or not."""
    for when in (NAIVE, datetime(2026, 1, 1, tzinfo=UTC)):
        assert refused(length=when).endswith("not a datetime")


def test_a_naive_datetime_is_refused() -> None:
    """Which moment it is depends on who reads it."""
    assert "naive" in refused(until=NAIVE)
    with pytest.raises(ValueError, match="time zone"):
        aware(NAIVE)


def test_the_schema_of_a_duration_has_its_bounds() -> None:
    """The JSON schema says what is taken of JSON: a number, within the limits of the field."""
    fields = Config.model_json_schema()["properties"]
    assert fields["some"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 60}
    for name in ("length", "until"):
        number = {"type": "number", "minimum": 0, "maximum": CENTURY}
        assert fields[name]["anyOf"] == [number, {"type": "null"}]


def test_a_config_needs_nothing_that_sends() -> None:
    """A module that only defines events and their configs imports no producer and no asyncio."""
    code = """
import sys
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
before = set(sys.modules)  # some versions of pydantic need asyncio themselves
import dispytch.fields
late = {"asyncio", "dispytch.producer"} & (set(sys.modules) - before)
sys.exit(repr(late) if late else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
