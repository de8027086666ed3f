"""KafkaEventConfig: what can be wrong is refused while it is built."""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dispytch import Outgoing, plugins
from dispytch.fields import encode_key
from dispytch_kafka import KafkaConnection, KafkaEventConfig
from dispytch_kafka.record import record_of

SURROGATE = chr(0xD800)  # no character: UTF-8 can't encode it


class Colour(Enum):
    RED = "red"
    RAW = b"\x01"
    NUMBER = 7
    FLAG = True


class Level(IntEnum):
    LOW = 3


def outgoing(config: Any = None, key: str | None = None) -> Outgoing:
    return Outgoing("id", "type", "topic", b"payload", key, config)


UUID_ = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        (b"\xff\x00", b"\xff\x00"),
        (b"", b""),
        ("", b""),
        ("ключ", "ключ".encode()),
        (7, b"7"),
        (-(2**70), str(-(2**70)).encode()),
        (UUID_, str(UUID_).encode()),
        (Decimal("1.50"), b"1.50"),
        (date(2026, 1, 2), b"2026-01-02"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), b"2026-01-02 03:00:00+00:00"),
        (Colour.RED, b"red"),
        (Colour.RAW, b"\x01"),
        (Colour.NUMBER, b"7"),
        (Level.LOW, b"3"),
    ],
)
def test_a_key_is_kept_as_given_and_encoded_by_one_rule(key: Any, encoded: bytes) -> None:
    """Reading the config gives what was given; the wire gets its one obvious text, or the bytes."""
    config = KafkaEventConfig(partition_key=key)
    assert config.partition_key is key or config.partition_key == key
    assert record_of(outgoing(config)).key == encoded


@pytest.mark.parametrize(
    "key",
    [
        True,
        1.5,
        bytearray(b"k"),
        memoryview(b"k"),
        [1],
        ("a",),
        {"a": 1},
        object(),
        1j,
        Colour.FLAG,
        SURROGATE,
        int,
    ],
)
def test_a_key_without_one_obvious_text_is_refused(key: Any) -> None:
    """Its text would differ from what people expect, so it is refused, naming the field."""
    with pytest.raises(ValidationError, match="partition_key") as caught:
        KafkaEventConfig(partition_key=key)
    assert caught.value.errors()[0]["loc"] == ("partition_key",)


@given(st.one_of(st.text(), st.integers(), st.uuids(), st.decimals(), st.dates(), st.datetimes()))
def test_every_key_of_a_legal_type_is_its_text(key: Any) -> None:
    """The bytes of a key are the UTF-8 of `str()`."""
    assert encode_key(key) == str(key).encode()


@given(st.binary())
def test_bytes_are_a_key_as_they_are(key: bytes) -> None:
    """Nothing is done to bytes."""
    assert encode_key(key) == key


@pytest.mark.parametrize("partition", [-1, True, 1.0, "1", 2**31, Decimal(1), Level.LOW])
def test_a_partition_is_a_plain_number(partition: Any) -> None:
    """No coercion: what is not an int from 0 to 2**31 - 1 is refused."""
    with pytest.raises(ValidationError, match="partition"):
        KafkaEventConfig(partition=partition)


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        (0, 0),
        (1783000000000, 1783000000000),
        (datetime(1970, 1, 1, 0, 0, 1, 500_999, UTC), 1500),
        (datetime(1970, 1, 1, 2, 0, 1, tzinfo=timezone(timedelta(hours=2))), 1000),
        (datetime(2026, 7, 2, 13, 46, 40, 123_000, UTC), 1783000000123),
    ],
)
def test_a_timestamp_is_milliseconds_or_an_aware_datetime(
    given_: int | datetime, stored: int
) -> None:
    """A datetime is converted exactly, whole milliseconds, whatever its zone."""
    assert KafkaEventConfig(timestamp_ms=given_).timestamp_ms == stored


@pytest.mark.parametrize(
    "timestamp",
    [
        -1,
        True,
        1.5,
        "5",
        datetime(2026, 1, 1),  # noqa: DTZ001 - naive on purpose
        date(2026, 1, 1),
        2**63,
        datetime(1969, 12, 31, tzinfo=UTC),
    ],
)
def test_any_other_timestamp_is_refused(timestamp: Any) -> None:
    """No coercion, no naive datetime, nothing before 1970."""
    with pytest.raises(ValidationError, match="timestamp_ms"):
        KafkaEventConfig(timestamp_ms=timestamp)


@given(st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.timezones()))  # noqa: DTZ001 - hypothesis adds the zone
def test_a_datetime_is_never_rounded_up(moment: datetime) -> None:
    """What is stored is the moment, less the part below a millisecond."""
    stored = KafkaEventConfig(timestamp_ms=moment).timestamp_ms
    assert isinstance(stored, int)
    back = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=stored)
    assert timedelta(0) <= moment - back < timedelta(milliseconds=1)


def test_headers_keep_the_form_they_were_given_in() -> None:
    """A dict stays a dict, and a copy; pairs become a tuple of pairs, where a name may repeat."""
    given_: dict[str, str | bytes] = {"a": "1", "b": b"\xff"}
    config = KafkaEventConfig(headers=given_)
    given_["c"] = "later"
    assert config.headers == {"a": "1", "b": b"\xff"}
    assert KafkaEventConfig(headers=[("a", "1"), ("a", b"2")]).headers == (("a", "1"), ("a", b"2"))
    assert KafkaEventConfig(headers=(("a", "1"),)).headers == (("a", "1"),)
    assert KafkaEventConfig().headers == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"a": 1},
        {1: "a"},
        {"a": None},
        {"a": bytearray()},
        ["ab"],
        [("a",)],
        [("a", "b", "c")],
        "ab",
        {"a": SURROGATE},
        {SURROGATE: "a"},
        5,
        {"a"},
        b"ab",
        [{"a": "b"}],
        None,
    ],
)
def test_any_other_headers_are_refused(headers: Any) -> None:
    """Names are str, values str or bytes, nothing is converted."""
    with pytest.raises(ValidationError, match="headers"):
        KafkaEventConfig(headers=headers)


_PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.text() | st.binary()))


@given(_PAIRS, st.dictionaries(st.sampled_from("abc"), st.text() | st.binary()))
def test_the_nearer_headers_win_by_name(
    far: list[tuple[str, str | bytes]], near: dict[str, str | bytes]
) -> None:
    """A middleware's header replaces all of its name, the others stay, in their order."""
    out = outgoing(KafkaEventConfig(headers=far))
    out.headers = near
    sent = record_of(out).headers

    def encoded(value: str | bytes) -> bytes:
        return value.encode() if isinstance(value, str) else value

    expected = [(name, encoded(value)) for name, value in far if name not in near]
    assert sent == expected + [(name, encoded(value)) for name, value in near.items()]


def test_unknown_settings_are_refused() -> None:
    """A misspelt setting is not silently dropped."""
    with pytest.raises(ValidationError, match="partition_kee"):
        KafkaEventConfig(partition_kee="x")  # type: ignore[call-arg]


def test_the_key_of_the_config_wins_over_the_events() -> None:
    """`partition_key` is nearer to Kafka than `__key__`, even when it is empty."""
    assert record_of(outgoing(key="far")).key == b"far"
    assert record_of(outgoing(KafkaEventConfig(partition=0), key="far")).key == b"far"
    assert record_of(outgoing(KafkaEventConfig(partition_key=0), key="far")).key == b"0"
    assert record_of(outgoing(KafkaEventConfig(partition_key=b""), key="far")).key == b""
    assert record_of(outgoing()).key is None


@pytest.mark.parametrize("model", [KafkaEventConfig, KafkaConnection])
def test_every_field_describes_itself(model: type[BaseModel]) -> None:
    """`dispytch schema kafka` has something to say of every field."""
    schema = model.model_json_schema()
    assert set(schema["properties"]) == set(model.model_fields)
    for name, field in schema["properties"].items():
        assert len(field.get("description", "")) > 15, name


def test_looking_up_the_schema_leaves_aiokafka_unimported() -> None:
    """Only the producer needs the client."""
    code = """
import sys
from dispytch import plugins
from dispytch_kafka import KafkaConnection, KafkaEventConfig
assert plugins.event_config("kafka") is KafkaEventConfig
assert plugins.connection_schema("kafka") is KafkaConnection
assert plugins.backend_for_url("kafka+ssl://h").connection is KafkaConnection
assert "KafkaProducer" in dir(sys.modules["dispytch_kafka"])
assert not [name for name in sys.modules if name.startswith("aiokafka")]
from dispytch_kafka import KafkaProducer
assert "aiokafka" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_has_no_other_names() -> None:
    """A misspelt name is an AttributeError as from any module."""
    import dispytch_kafka

    with pytest.raises(AttributeError, match="KafkaProducr"):
        _ = dispytch_kafka.KafkaProducr


def test_the_backend_says_what_it_can() -> None:
    """What emitting needs is promised: durable, confirmed, in order per key."""
    capabilities = plugins.get_backend("kafka").capabilities
    assert (capabilities.durable, capabilities.confirms) == (True, True)
    assert (capabilities.headers, capabilities.keys) == (True, True)
    assert capabilities.ordering == "key"
