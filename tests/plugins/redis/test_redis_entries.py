"""Entries of streams: what is written of an event is read again, whoever wrote it."""

import time
import zlib
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispytch import EmitRejected, Outgoing
from dispytch.producer import HeaderPairs
from dispytch_redis import RedisEventConfig
from dispytch_redis.entry import fields_of, key_of, message_of, shard_of
from plugins.redis.emitting import out

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts | st.sampled_from(["payload", "key", "expires_ms", "header:", "header:a", ""])
pairs = st.lists(st.tuples(names, st.binary()))


def stored(event: Outgoing) -> tuple[bytes | None, list[bytes]]:
    """The key of an event, and the fields of its entry."""
    key = key_of(event)
    return key, fields_of(event, key)


@given(st.binary(), st.none() | st.binary(), pairs)
def test_what_is_written_is_read_again(
    payload: bytes, key: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    """Any bytes; headers in their order, with names that come twice and names of our fields."""
    config = RedisEventConfig(partition_key=key, headers=headers)
    kept, fields = stored(out("t", payload, config=config))
    message = message_of(fields)
    assert kept == key
    assert message.payload == payload
    assert message.key == (None if key is None else key.decode("utf-8", "surrogateescape"))
    assert message.headers == tuple(headers)
    assert message.expires_ms is None


@given(st.binary())
def test_a_key_that_was_read_can_be_written_again(key: bytes) -> None:
    """A dead letter has the key of its event, also where that is no UTF-8."""
    read = message_of([b"payload", b"", b"key", key]).key
    assert stored(out("t", b"", read))[0] == key


@given(st.lists(st.tuples(st.binary(), st.binary())))
def test_whatever_somebody_else_wrote_can_be_read(entry: list[tuple[bytes, bytes]]) -> None:
    """One entry that nobody can read would stop all that come after it."""
    message = message_of([text for pair in entry for text in pair])
    known = (b"payload", b"key", b"expires_ms")
    assert [value for _, value in message.headers] == [
        value for name, value in entry if name not in known or _no_number(name, value)
    ]


def _no_number(name: bytes, value: bytes) -> bool:
    return name == b"expires_ms" and not (value.isdigit() and len(value) < 20)


@pytest.mark.parametrize(
    "value", [b"", b"soon", b"-1", b"1.5", b"9" * 20, b"9" * 5000, "٣".encode()]
)
def test_an_expiry_that_is_none_is_a_header(value: bytes) -> None:
    """It is not ours, then."""
    message = message_of([b"payload", b"p", b"expires_ms", value])
    assert (message.expires_ms, message.headers) == (None, (("expires_ms", value),))


def test_fields_of_others_are_headers() -> None:
    """An entry that was added by hand arrives, even without any field of ours."""
    message = message_of([b"user", b"7", b"\xff", b"\x00", b"header:", b"h"])
    assert (message.payload, message.key) == (b"", None)
    assert message.headers == (("user", b"7"), ("\ufffd", b"\x00"), ("", b"h"))


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(seconds=90)])
def test_a_time_to_live_counts_from_the_emit(ttl: Any) -> None:
    """It is stored as the moment when it is over."""
    before = int(time.time() * 1000)
    _, fields = stored(out("t", config=RedisEventConfig(ttl=ttl)))
    moment = message_of(fields).expires_ms
    assert moment is not None
    assert before <= moment - 90_000 <= time.time() * 1000


def test_the_longest_time_to_live_fits() -> None:
    """A hundred years."""
    _, fields = stored(out("t", config=RedisEventConfig(ttl=36_525 * 86_400)))
    assert message_of(fields).expires_ms is not None


def test_a_config_wins_over_the_event_and_a_middleware_over_the_config() -> None:
    """The key of the config; of each name all headers of the nearest."""
    config = RedisEventConfig(partition_key=b"\xff", headers=[("a", "1"), ("a", "2"), ("b", "3")])
    headers = HeaderPairs([("a", b"4"), ("a", "5")])
    key, fields = stored(out("t", key="k", config=config, headers=headers))
    assert key == b"\xff"
    assert message_of(fields).headers == (("b", b"3"), ("a", b"4"), ("a", b"5"))


@pytest.mark.parametrize(
    "event",
    [
        out("t", key="\ud800"),
        out("t", headers={"\ud800": "v"}),
        out("t", headers={"n": "\udc80"}),
    ],
    ids=["key", "name", "value"],
)
def test_what_utf8_can_not_encode_is_rejected(event: Any) -> None:
    """The message repeats none of it."""
    with pytest.raises(EmitRejected, match="UTF-8") as caught:
        stored(event)
    assert str(caught.value).isascii()
    assert not caught.value.retriable


@given(st.binary(), st.integers(1, 256))
def test_a_key_has_one_shard_for_ever(key: bytes, shards: int) -> None:
    """That of the CRC-32 of its bytes, which other languages have, too."""
    assert shard_of(key, shards) == zlib.crc32(key) % shards
    assert [shard_of(each, 16) for each in (b"", b"a", b"user-1")] == [0, 3, 4]
