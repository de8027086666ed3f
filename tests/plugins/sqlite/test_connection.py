"""SQLiteConnection: what can be wrong with a URL is refused before a file is touched."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dispytch import ConfigError
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer, SQLiteProducer


def parse(url: str) -> SQLiteConnection:
    return connect(url, SQLiteConnection)


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///events.db", "events.db"),
        ("sqlite:///data/events.db", "data/events.db"),
        ("sqlite:///./events", "events"),
        ("sqlite:////var/lib/events.db", "/var/lib/events.db"),
        ("SQLite:///events.db", "events.db"),
        ("sqlite:///my%20events%3F%23%25.db", "my events?#%.db"),
        ("sqlite:///%C3%A9v%C3%A9nements.db", "événements.db"),
        ("sqlite:///a+b.db", "a+b.db"),
        ("sqlite:///C:/events.db", "C:/events.db"),
        ("sqlite:///file:events.db", "file:events.db"),
        ("sqlite:////data/~me/events.db", "/data/~me/events.db"),
    ],
)
def test_a_url_names_a_file(url: str, file: str) -> None:
    """Three slashes are relative, four absolute; a percent sign escapes what a URL reserves."""
    assert parse(url).file == Path(file)


def test_nothing_but_the_file_need_be_named() -> None:
    """The defaults are the careful ones: each receipt survives a power cut, nothing is deleted."""
    connection = parse("sqlite:///events.db")
    assert (connection.synchronous, connection.begin) == ("full", "first")
    assert (connection.max_age, connection.max_bytes) == (None, None)
    assert connection.delete_handled is False


def test_every_option_can_be_given_in_a_url() -> None:
    """As texts, which become what they mean."""
    connection = parse(
        "sqlite:///e.db?synchronous=normal&begin=latest&partitions=8&lease=2.5&lock_timeout=1"
        "&poll_interval=0.01&max_event_bytes=2048&max_age=3600&max_bytes=10485760"
        "&delete_handled=true"
    )
    options = connection.model_dump(exclude={"scheme", "user", "password", "hosts", "path"})
    assert options == {
        "synchronous": "normal",
        "begin": "latest",
        "partitions": 8,
        "lease": 2.5,
        "lock_timeout": 1.0,
        "poll_interval": 0.01,
        "max_event_bytes": 2048,
        "max_age": 3600.0,
        "max_bytes": 10485760,
        "delete_handled": True,
    }


def test_a_group_can_begin_at_a_time() -> None:
    """An aware time, in milliseconds since 1970 UTC for who compares it; words stay words."""
    at = parse("sqlite:///e.db?begin=2026-01-31T12:00:00Z")
    assert at.begin == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert at.begins_at() == 1769860800000
    assert parse("sqlite:///e.db?begin=first").begins_at() == "first"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("synchronous", "off", "'full' or 'normal'"),
        ("begin", "yesterday", "'first' or 'latest'"),
        ("begin", "2026-01-31T12:00:00", "timezone"),
        ("partitions", "0", "greater than or equal to 1"),
        ("partitions", "1025", "less than or equal to 1024"),
        ("partitions", "many", "integer"),
        ("lease", "0.1", "greater than or equal to 0.5"),
        ("lease", "nan", "finite"),
        ("lease", "inf", "finite"),
        ("lock_timeout", "0", "greater than 0"),
        ("lock_timeout", "-1", "greater than 0"),
        ("poll_interval", "0", "greater than or equal to 0.001"),
        ("poll_interval", "1h", "number"),
        ("max_event_bytes", "1", "greater than or equal to 1024"),
        ("max_age", "0", "greater than 0"),
        ("max_age", "inf", "less than or equal to"),
        ("max_age", "30d", "number"),
        ("max_bytes", "100", "greater than or equal to 1048576"),
        ("delete_handled", "maybe", "boolean"),
        ("delete_handled", "", "boolean"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(
    option: str, value: str, expected: str
) -> None:
    """Who reads the message knows what to write instead."""
    message = refusal(f"sqlite:///events.db?{option}={value}")
    assert option in message
    assert expected in message


def test_a_misspelt_option_is_told_which_there_are() -> None:
    """It is never ignored."""
    message = refusal("sqlite:///events.db?sync=full")
    assert "'sync'" in message
    assert "synchronous" in message


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://events.db", "three slashes"),
        ("sqlite://localhost/events.db", "three slashes"),
        ("sqlite://me@/events.db", "no user"),
        ("sqlite://me:secret7@/events.db", "no password"),
        ("sqlite://:secret7@/events.db", "no password"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////", "names no file"),
        ("sqlite:///data/", "names no file"),
        ("sqlite:///:memory:", "memory://name"),
        ("sqlite:///~/events.db", "whole path"),
        ("sqlite:///~me/events.db", "whole path"),
        ("sqlite:///events%00.db", "zero byte"),
        ("sqlite:///events.db#1", "%23"),
    ],
)
def test_what_names_no_file_is_refused(url: str, told: str) -> None:
    """With what to write instead, and without repeating a secret."""
    message = refusal(url)
    assert told in message
    assert "secret7" not in message


@pytest.mark.parametrize("kind", [SQLiteProducer, SQLiteConsumer])
def test_a_client_takes_a_connection_and_nothing_else(
    kind: type[SQLiteProducer | SQLiteConsumer],
) -> None:
    """Who gives it a path is told what it takes, before anything is opened."""
    with pytest.raises(ConfigError, match="SQLiteConnection"):
        kind("events.db")  # type: ignore[arg-type]
