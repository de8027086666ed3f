"""Frames of Pub/Sub: payload, key and headers come back as they were; all else is a payload."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispytch_redis.frame import MARKER, framed, unframed

names = st.text(st.characters(exclude_categories=["Cs"]))
payloads = st.one_of(st.binary(), st.binary().map(lambda rest: MARKER + rest))


def key_of(key: bytes | None) -> str | None:
    return None if key is None else key.decode("utf-8", "surrogateescape")


@given(payloads, st.none() | st.binary(), st.lists(st.tuples(names, st.binary())))
@example(b"", b"", [])
@example(MARKER, None, [])
@example(b"a\nb", b"\xff\n", [("twice", b"1"), ("twice", b"\xff\x00"), ("größe ✓", b"")])
def test_what_was_framed_comes_back(
    payload: bytes, key: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    """Any bytes as payload, key and values, and names that come twice."""
    message = framed(payload, key, headers)
    assert unframed(message) == (payload, key_of(key), tuple(headers))


@given(st.binary().filter(lambda payload: not payload.startswith(MARKER)))
def test_a_payload_alone_is_published_bare(payload: bytes) -> None:
    """Any subscriber can read it, and whatever is published by others is a payload."""
    assert framed(payload, None, ()) == payload
    assert unframed(payload) == (payload, None, ())


def test_no_json_begins_like_a_frame() -> None:
    """What others publish is not mistaken for one."""
    with pytest.raises(json.JSONDecodeError):
        json.loads(MARKER + b"{}")


@given(st.binary())
@example(b"")
@example(b"{}")  # no payload
@example(b"[]\n")
@example(b"null\n")
@example(b'{"key": 1}\n')
@example(b'{"key": "\\ud800"}\n')
@example(b'{"headers": null}\n')
@example(b'{"headers": {"ab": "c"}}\n')
@example(b'{"headers": ["ab"]}\n')
@example(b'{"headers": [["a", "b", "c"]]}\n')
@example(b'{"headers": [["a", 1]]}\n')
@example(b'{"headers": [[1, "a"]]}\n')
@example(b'{"headers": [["\\udcff", "a"]]}\n')
@example(b"[" * 100_000 + b"\n")
@example(b"\xff\n")
def test_a_malformed_frame_is_a_payload(rest: bytes) -> None:
    """Nothing that is published can break a subscriber, or lose bytes."""
    assert unframed(MARKER + rest) == (MARKER + rest, None, ())


def test_unknown_parts_of_a_header_line_are_ignored() -> None:
    """A later version may tell more."""
    assert unframed(MARKER + b'{"later": 1, "key": "k"}\nbody') == (b"body", "k", ())


def test_a_header_name_that_is_no_text_is_refused() -> None:
    """It could not be read again."""
    with pytest.raises(UnicodeEncodeError):
        framed(b"", None, [("\udcff", b"")])
