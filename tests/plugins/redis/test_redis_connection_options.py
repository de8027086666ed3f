"""URLs of Redis: what they mean, what is refused, and that nothing secret gets out."""

import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from dispytch import ConfigError
from dispytch.plugins import backend_for_url
from dispytch.url import connect
from dispytch_redis import RedisConnection, RedisPubSubConnection
from dispytch_redis.connection import RedisServer

SECRET = "p@ss/w:rd #1 %41ü"
PASSWORD = "pa55-w0rd"
SCHEMES = ["redis", "rediss", "redis+pubsub", "rediss+pubsub"]


def parse(url: str) -> RedisServer:
    schema = backend_for_url(url).connection
    assert schema is not None
    connection = connect(url, schema)
    assert isinstance(connection, RedisServer)
    return connection


def streams(url: str) -> RedisConnection:
    return connect(url, RedisConnection)


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    return str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_says_which_backend_and_whether_tls(scheme: str) -> None:
    """Four schemes: Streams or Pub/Sub, each with TLS or without."""
    connection = parse(f"{scheme}://h")
    assert isinstance(connection, RedisPubSubConnection) == ("pubsub" in scheme)
    assert isinstance(connection, RedisConnection) == ("pubsub" not in scheme)
    assert connection.is_tls == scheme.startswith("rediss")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("", ("localhost", 6379)),
        ("h", ("h", 6379)),
        ("h:7000", ("h", 7000)),
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("[::1]", ("::1", 6379)),
        ("[fe80::1]:7000", ("fe80::1", 7000)),
        ("u:p@h:7000/3", ("h", 7000)),
    ],
)
def test_host_and_port_are_those_of_the_url(
    scheme: str, server: str, address: tuple[str, int]
) -> None:
    """Without them it is the server of this machine; an IPv6 address loses its brackets."""
    connection = parse(f"{scheme}://{server}")
    assert (connection.host, connection.port) == address


@pytest.mark.parametrize(
    ("path", "database"), [("", 0), ("/", 0), ("/0", 0), ("/3", 3), ("/15", 15), ("/%33", 3)]
)
def test_the_path_is_the_number_of_the_database(path: str, database: int) -> None:
    """As redis-cli has it; none is 0."""
    assert parse(f"redis://h{path}").database == database


@pytest.mark.parametrize("path", ["/orders", "/-1", "/1/2", "/1.0", "/%20", "/%0A", "//", "/٣"])
def test_a_path_that_is_no_number_is_refused(path: str) -> None:
    """With an example of what is one."""
    assert "redis://localhost/3" in refusal(f"redis://h{path}")


@pytest.mark.parametrize(
    ("login", "user", "password"),
    [
        ("", None, None),
        ("me:secret@", "me", "secret"),
        (":secret@", None, "secret"),
        ("me:@", "me", None),
        (":@", None, None),
        (f"team%2Forders:{quote(SECRET, safe='')}@", "team/orders", SECRET),
    ],
)
def test_a_password_may_be_without_a_user(
    login: str, user: str | None, password: str | None
) -> None:
    """It is the default user's then; both are percent-decoded."""
    connection = parse(f"redis://{login}h")
    assert (connection.login, connection.login_password) == (user, password)


def test_a_user_without_a_password_is_refused() -> None:
    """It often is a password in the wrong place, and is not repeated."""
    message = refusal("redis://secret7@h")
    assert "redis://:secret@host" in message
    assert "secret7" not in message


@pytest.mark.parametrize("scheme", SCHEMES)
def test_several_servers_are_refused(scheme: str) -> None:
    """Who names them expects a Cluster or Sentinel."""
    message = refusal(f"{scheme}://a,b:7000")
    assert "Cluster" in message
    assert "Sentinel" in message


def test_nothing_need_be_named() -> None:
    """The defaults reach a server of this machine and begin with its first event."""
    options = streams("redis://").model_dump(exclude={"scheme"}, exclude_none=True)
    assert options == {
        "hosts": (),
        "path": "",
        "connect_timeout": 5.0,
        "reply_timeout": 10.0,
        "reconnect_interval": 0.5,
        "prefix": "dispytch",
        "shards": 16,
        "begin": "first",
        "lease": 10.0,
        "max_event_bytes": 16 * 1024 * 1024,
    }


def test_every_option_can_be_given_in_a_url(tmp_path: Path) -> None:
    """As texts, which become what they mean."""
    pem = tmp_path / "all.pem"
    pem.touch()
    server: dict[str, Any] = {
        "cafile": pem,
        "certfile": pem,
        "keyfile": pem,
        "keyfile_password": "x",
        "connect_timeout": 1.5,
        "reply_timeout": 2.5,
        "reconnect_interval": 0.1,
        "client_name": "orders-1",
        "max_event_bytes": 1024,
    }
    log = {
        "prefix": "shop:é",
        "shards": 256,
        "begin": "latest",
        "lease": 0.5,
    }
    for scheme, given in (
        ("rediss", {**server, **log}),
        ("rediss+pubsub", {**server, "channel_prefix": "shop."}),
    ):
        query = "&".join(f"{name}={quote(str(value))}" for name, value in given.items())
        connection = parse(f"{scheme}://h?{query}")
        assert connection.keyfile_password is not None
        assert connection.keyfile_password.get_secret_value() == given.pop("keyfile_password")
        assert {name: getattr(connection, name) for name in given} == given
        parts = {"scheme", "user", "password", "hosts", "path", "keyfile_password"}
        assert set(type(connection).model_fields) - parts == set(given), scheme


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("connect_timeout", "0", "greater than 0"),
        ("connect_timeout", "inf", "finite"),
        ("reply_timeout", "-1", "greater than 0"),
        ("reply_timeout", "nan", "finite"),
        ("reconnect_interval", "0", "greater than 0"),
        ("reconnect_interval", "1s", "number"),
        ("client_name", "", "without spaces"),
        ("client_name", "my%20service", "without spaces"),
        ("client_name", "a%0Ab", "without spaces"),
        ("client_name", "%C3%A9", "ASCII"),
        ("cafile", "/no/such.pem", "file"),
        ("prefix", "", "at least one character"),
        ("prefix", "a%20b", "without spaces"),
        ("prefix", "a%0A", "printable"),
        ("prefix", "%7Btag%7D", "no braces"),
        ("shards", "0", "greater than or equal to 1"),
        ("shards", "257", "less than or equal to 256"),
        ("shards", "many", "integer"),
        ("begin", "yesterday", "'first' or 'latest'"),
        ("begin", "2026-01-31T12:00:00", "timezone"),
        ("lease", "0.4", "greater than or equal to 0.5"),
        ("lease", "3601", "less than or equal to 3600"),
        ("lease", "nan", "finite"),
        ("max_event_bytes", "1023", "greater than or equal to 1024"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(
    option: str, value: str, expected: str
) -> None:
    """Who reads the message knows what to write instead."""
    message = refusal(f"rediss://h?{option}={value}")
    assert option in message
    assert expected in message


@pytest.mark.parametrize("value", ["a%20b", "a%09", "%00"])
def test_a_channel_prefix_is_printable(value: str) -> None:
    """It stands in what people type and read."""
    assert "printable" in refusal(f"redis+pubsub://h?channel_prefix={value}")


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("redis://h?channel_prefix=x", "channel_prefix"),
        ("redis+pubsub://h?shards=4", "shards"),
        ("redis://h?socket_timeout=1", "socket_timeout"),
        ("redis://h?retry_on_timeout=yes", "retry_on_timeout"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("redis://h?protocol=2", "protocol"),
    ],
)
def test_an_unknown_option_is_told_which_there_are(url: str, option: str) -> None:
    """Options of redis-py are no options of ours: some would send twice or weaken TLS."""
    message = refusal(url)
    assert f"unknown option '{option}'" in message
    assert "reply_timeout" in message


@pytest.mark.parametrize("scheme", ["redis", "redis+pubsub"])
def test_files_for_tls_need_tls(scheme: str, tmp_path: Path) -> None:
    """The message names the scheme that has it; a key needs its certificate."""
    pem = tmp_path / "x.pem"
    pem.touch()
    secure = scheme.replace("redis", "rediss")
    for option in ("cafile", "certfile", "keyfile"):
        assert f"write {secure}://" in refusal(f"{scheme}://h?{option}={pem}")
    assert f"write {secure}://" in refusal(f"{scheme}://h?keyfile_password=secret7")
    assert "need certfile" in refusal(f"{secure}://h?keyfile={pem}")
    assert parse(f"{secure}://h?certfile={pem}&keyfile={pem}").is_tls


@pytest.mark.parametrize(
    ("begin", "start"),
    [
        ("first", "0"),
        ("latest", "$"),
        ("2026-01-31T12:00:00Z", "1769860799999-18446744073709551615"),
        ("2026-01-31T13:00:00.5%2B01:00", "1769860800499-18446744073709551615"),
        ("1970-01-01T00:00:00Z", "0"),
        ("1969-01-01T00:00:00Z", "0"),
    ],
)
def test_a_group_begins_after_an_id(begin: str, start: str) -> None:
    """A time is the last id there can be before its millisecond."""
    assert streams(f"redis://h?begin={begin}").begins_at() == start


def test_a_time_to_begin_at_may_be_a_datetime() -> None:
    """In code it need not be a text."""
    connection = RedisConnection(scheme="redis", begin=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert connection.begins_at() == "1769860799999-18446744073709551615"


@pytest.mark.parametrize(
    "url",
    [
        "redis://{}@h",
        "redis://me:{}@h/orders",
        "redis://me:{}@a,b",
        "redis://me:{}@h?shards=0",
        "redis://h?keyfile_password={}",
        "redis://h?cafile=/no/{}",
        "redis://me:{}@@h",
    ],
)
def test_a_wrong_url_repeats_no_secret(url: str) -> None:
    """Neither the message nor what is chained to it, nor any value they hold."""
    with pytest.raises(ConfigError) as caught:
        parse(url.format(PASSWORD))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in f"{error!r} {error.args} {vars(error)}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_secret_is_shown(scheme: str, tmp_path: Path) -> None:
    """repr, str and dump hide user and passwords."""
    (tmp_path / "x.pem").touch()
    tls = f"?certfile={tmp_path}/x.pem&keyfile_password={PASSWORD}" if "rediss" in scheme else ""
    connection = parse(f"{scheme}://us3r:{PASSWORD}@h{tls}")
    shown = f"{connection!r} {connection} {connection.model_dump()} {connection.model_dump_json()}"
    assert PASSWORD not in shown
    assert "us3r" not in shown


@pytest.mark.parametrize("schema", [RedisConnection, RedisPubSubConnection])
def test_every_option_describes_itself(schema: type[RedisServer]) -> None:
    """`dispytch schema redis --connection` tells each option's meaning and default."""
    for name, field in schema.model_fields.items():
        known = name in {"scheme", "user"}
        assert known or "Default: " in (field.description or ""), name


def test_a_connection_does_not_change() -> None:
    """What was validated stays as it is."""
    with pytest.raises(ValidationError):
        streams("redis://h").shards = 4
