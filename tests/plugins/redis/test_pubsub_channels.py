"""Channels: subscriptions as Redis knows them, and what a message is for."""

import pytest

from dispytch import ConfigError, Subscription
from dispytch_redis.channels import Channels, Route


def channels(*topics: str, prefix: str = "") -> Channels:
    return Channels([Subscription(topic) for topic in topics], prefix)


@pytest.mark.parametrize(
    ("topic", "glob"),
    [
        ("user.{id}.events", b"user.*.events"),
        ("orders.*", b"orders.*"),
        ("a-{x}.b", b"*.b"),
        ("*", b"*"),
        (r"w[h]at?\.^{{}}.{x}", rb"w\[h\]at\?\\.\^{}.*"),
    ],
)
def test_a_pattern_is_written_as_a_glob(topic: str, glob: bytes) -> None:
    """Placeholders become stars; what is special to Redis in a literal is escaped."""
    assert list(channels(topic).globs) == [glob]
    assert not channels(topic).literal


def test_the_prefix_is_literal() -> None:
    """It is put before channels as it is, and escaped in globs."""
    both = channels("a", "b.*", prefix="x*:")
    assert list(both.literal) == [b"x*:a"]
    assert list(both.globs) == [rb"x\*:b.*"]
    assert both.route(None, b"x*:a") == Route("a", None)
    assert both.route(rb"x\*:b.*", b"x*:b.c") == Route("b.c", None)


def test_our_pattern_decides() -> None:
    """A star of Redis matches several segments, and dead letters; ours does not."""
    one = channels("a.{x}.c")
    assert one.route(b"a.*.c", b"a.b.c") == Route("a.b.c", None)
    assert one.route(b"a.*.c", b"a.b.b.c") is None
    assert channels("a.*").route(b"a.*", b"a.b.dlq") is None
    assert channels("a.dlq").route(None, b"a.dlq") == Route("a.dlq", None)


def test_via_is_set_where_a_message_comes_several_times() -> None:
    """Each copy is for the handlers of its own subscriptions; one that comes once is for all."""
    several = channels("a.b", "a.{x}", "a.{y}", "{z}.b")
    assert set(several.globs) == {b"a.*", b"*.b"}
    assert several.route(None, b"a.b") == Route("a.b", ("a.b",))
    assert several.route(b"a.*", b"a.b") == Route("a.b", ("a.{x}", "a.{y}"))
    assert several.route(b"*.b", b"a.b") == Route("a.b", ("{z}.b",))
    assert several.route(b"a.*", b"a.c") == Route("a.c", None)
    assert several.route(b"*.b", b"c.b") == Route("c.b", None)


def test_a_channel_of_any_bytes_is_a_topic() -> None:
    """Others publish where they like."""
    assert channels("{x}").route(b"*", b"\xff") == Route("\udcff", None)


def test_a_topic_without_utf8_is_refused() -> None:
    """There is no channel of that name."""
    with pytest.raises(ConfigError, match="UTF-8"):
        channels("\ud800")


def test_routes_are_not_remembered_without_bound() -> None:
    """As many topics as there are keys do not fill the memory."""
    every = channels("{x}")
    for number in range(10_000):
        assert every.route(b"*", b"%d" % number) == Route(str(number), None)
    assert len(every._routes) < 5_000
