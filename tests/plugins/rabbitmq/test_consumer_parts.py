"""The pure parts of consuming: tiers, names, headers."""

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispytch import ConfigError, Subscription

pytest.importorskip("aio_pika")

from aiormq import spec
from aiormq.abc import DeliveredMessage

from dispytch_rabbitmq.received import Envelope, again, dead_letter_facts, to_bytes
from dispytch_rabbitmq.topology import delay_queue, group_of, plan, tier

_WORDS = st.text(st.characters(exclude_characters=".{}*#", exclude_categories=["Cs"]), min_size=1)
_NAMES = st.text(min_size=1, max_size=20).filter(
    lambda name: not name.lower().startswith("x-") and name not in {"CC", "BCC"}
)
_VALUES = st.one_of(
    st.text(), st.binary(), st.booleans(), st.none(), st.integers(-(2**63), 2**63 - 1)
)


@given(st.floats(0.001, 10**9))
def test_tier_is_never_shorter_than_asked(delay: float) -> None:
    """A delay is rounded up, at most threefold above a second, up to 49 days."""
    seconds = tier(delay)
    longest = 49 * 86_400
    assert seconds >= min(delay, longest)
    assert seconds <= max(3 * delay, 1)
    assert tier(seconds) == seconds
    _, arguments = delay_queue("q", seconds)
    assert arguments["x-message-ttl"] < 2**32


def test_few_tiers_serve_all_delays() -> None:
    """There are so many queues at most, however many different delays are asked for."""
    tiers = {tier(delay / 10) for delay in range(1, 49 * 864_000, 997)}
    assert len(tiers) <= 11 + 23 + 48


@given(_WORDS, st.text(min_size=1, max_size=20), _WORDS, st.text(min_size=1, max_size=20))
def test_two_groups_never_share_a_queue(topic: str, group: str, other: str, rival: str) -> None:
    """Dots in the name of a group can't make it another's, and the name tells the group."""
    try:
        (mine,) = plan([Subscription(topic, group)])
        (theirs,) = plan([Subscription(f"{other}.{topic}", rival)])
    except (ConfigError, UnicodeEncodeError):
        return
    assert mine.name != theirs.name
    assert group_of(mine.name) == group


@given(st.dictionaries(_NAMES, _VALUES, max_size=5))
def test_headers_survive_a_delay(raw: dict[str, Any]) -> None:
    """What came comes again: the same bytes for the listener, the same types on the wire."""
    try:
        [name.encode() for name in raw]
        message = _message(raw)
        first = Envelope(raw)
        copy = again(message, first.headers, "q", attempt=3, topic="t")
    except (UnicodeEncodeError, ValueError):  # no such text can come from a broker
        return
    came = spec.Basic.Properties()
    came.unmarshal(int.from_bytes(copy.properties[:2]), copy.properties[2:])
    assert came.headers is not None
    second = Envelope(came.headers)
    assert second.headers == first.headers
    assert (second.attempt, second.topic) == (4, "t")


def _message(headers: dict[str, Any]) -> DeliveredMessage:
    names = "content_type content_encoding priority correlation_id reply_to timestamp"
    empty = dict.fromkeys([*names.split(), "message_type", "app_id", "message_id"])
    properties = SimpleNamespace(headers=headers, **empty)
    header: Any = SimpleNamespace(properties=properties)
    nothing: Any = None
    return DeliveredMessage(delivery=nothing, header=header, body=b"{}", channel=nothing)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("é", "é".encode()),
        (b"\xff", b"\xff"),
        (bytearray(b"\x00"), b"\x00"),
        (None, b""),
        (True, b"true"),
        (-5, b"-5"),
        (0.5, b"0.5"),
        (Decimal("12.50"), b"12.50"),
        (datetime(2026, 1, 2, tzinfo=UTC), b"2026-01-02T00:00:00+00:00"),
        ({"a": [b"\xff", None]}, b'{"a": ["/w==", null]}'),
    ],
    ids=repr,
)
def test_header_values_become_bytes(value: Any, text: bytes) -> None:
    """Every type of AMQP has a form that a listener can read."""
    assert to_bytes(value) == text


def test_headers_of_the_broker_are_left_out() -> None:
    """Counters and histories are the broker's; so is where copies go."""
    raw: dict[str, Any] = {
        "x-delivery-count": 2,
        "x-dispytch-attempt": 3,
        "x-dispytch-topic": "t",
        "x-dispytch-key": b"\xff",
        "x-death": [{"reason": "expired"}],
        "x-first-death-reason": "expired",
        "CC": ["a"],
        "mine": "1",
    }
    envelope = Envelope(raw)
    assert envelope.headers == (("mine", b"1"),)
    assert (envelope.attempt, envelope.key, envelope.topic) == (6, "\udcff", "t")


@pytest.mark.parametrize("attempt", ["x", -1, None, b"3", [1]])
def test_nonsense_in_our_headers_counts_nothing(attempt: Any) -> None:
    """Anybody may send any header."""
    assert Envelope({"x-dispytch-attempt": attempt}).attempt == 1


@pytest.mark.parametrize("deaths", [None, [], "x", [1], [{}], [{"routing-keys": 5}]])
def test_nonsense_in_the_brokers_history_does_no_harm(deaths: Any) -> None:
    """Anybody may send any header."""
    assert isinstance(dead_letter_facts({"x-death": deaths}, ()), tuple)
