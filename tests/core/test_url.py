"""URLs: what they become, and that a wrong one gives nothing away."""

import copy
import logging
import traceback
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ImportString, SecretStr, field_validator

from dispytch import Backend, ConfigError, Connection, EventEmitter, PluginError, plugins
from dispytch.memory import MemoryBroker, MemoryProducer
from dispytch.url import connect, scheme_of

SECRET = "s3cret"


class Options(Connection):
    linger_ms: int = Field(5, ge=0)
    verify: bool = True
    serializer: ImportString[Any] | None = None
    hooks: list[ImportString[Any]] = Field(default_factory=list)
    factory: Annotated[Any, ImportString()] = None
    token: SecretStr | None = None

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if "forbidden" in hosts:
            raise ValueError("this host is not allowed")
        return hosts


def parse(url: str) -> Options:
    return connect(url, Options)


@pytest.mark.parametrize(
    ("url", "hosts", "path"),
    [
        ("x://", (), ""),
        ("x://a", ("a",), ""),
        ("x://a:1,b:2,c", ("a:1", "b:2", "c"), ""),
        ("X://Host:65535/", ("Host:65535",), "/"),
        ("x://[::1]", ("[::1]",), ""),
        ("x://[::1]:9092,[fe80::1%25eth0]:9093", ("[::1]:9092", "[fe80::1%eth0]:9093"), ""),
        ("x://10.0.0.1:5672/a%2Fb", ("10.0.0.1:5672",), "/a/b"),
        ("x:///var/lib/events.db", (), "/var/lib/events.db"),
        ("x://a/%E2%82%AC", ("a",), "/€"),
    ],
)
def test_hosts_and_path_are_split(url: str, hosts: tuple[str, ...], path: str):
    """Several hosts, IPv6 addresses, percent-encoded paths, and none of them."""
    connection = parse(url)
    assert (connection.scheme, connection.hosts, connection.path) == ("x", hosts, path)
    assert connection.user is None
    assert connection.password is None


@given(user=st.text(min_size=1), password=st.text(), vhost=st.text())
def test_percent_encoded_parts_come_back(user: str, password: str, vhost: str):
    """Any user, password and path, percent-encoded, arrive as they were; repr shows neither."""
    url = f"x://{quote(user, safe='')}:{quote(password, safe='')}@h/{quote(vhost, safe='')}"
    connection = parse(url)
    assert connection.user is not None
    assert connection.password is not None
    assert connection.user.get_secret_value() == user
    assert connection.password.get_secret_value() == password
    assert connection.path == "/" + vhost


def test_user_without_password_and_the_reverse():
    """Either may be missing; an empty password is one."""
    assert parse("x://me@h").password is None
    empty = parse("x://me:@h").password
    assert empty is not None
    assert empty.get_secret_value() == ""
    nobody = parse(f"x://:{SECRET}@h")
    assert nobody.user is not None
    assert nobody.user.get_secret_value() == ""


def test_connection_hides_its_secrets():
    """Neither repr, str, JSON nor a copy shows user or password."""
    connection = parse(f"x://{SECRET}:{SECRET}@h?token={SECRET}")
    for text in (
        repr(connection),
        str(connection),
        connection.model_dump_json(),
        repr(copy.copy(connection)),
        repr(connection.model_dump()),
    ):
        assert SECRET not in text


def test_options_are_validated_by_field():
    """Query parameters are options by field name, with their types."""
    connection = parse("x://h?linger_ms=10&verify=false")
    assert connection.linger_ms == 10
    assert connection.verify is False


WRONG = {
    "no scheme": f"user:{SECRET}@host",
    "no URL at all": SECRET,
    "unescaped @": f"x://user:pa@{SECRET}@host",
    "unescaped /": f"x://user:{SECRET}/more@host",
    "unescaped #": f"x://user:pass#{SECRET}@host",
    "unescaped ?": f"x://user:pass?{SECRET}@host",
    "unescaped @ and /": f"x://user:p@rt/{SECRET}@host",
    "unescaped @ and ?": f"x://user:p@rt?{SECRET}=1@host",
    "unescaped [": f"x://user:pass@[{SECRET}",
    "no port": f"x://user:{SECRET}@host:port",
    "port too large": f"x://user:{SECRET}@host:65536",
    "password as port": f"x://user:{SECRET}",
    "empty host": f"x://user:{SECRET}@a,,b",
    "space": f"x://user:{SECRET}@ho st",
    "unknown option": f"x://user:{SECRET}@host?no_such={SECRET}",
    "twice": f"x://h?linger_ms=1&token={SECRET}&linger_ms=2",
    "wrong value": f"x://user:{SECRET}@host?linger_ms={SECRET}",
    "value out of range": f"x://user:{SECRET}@host?linger_ms=-1",
    "refused by the schema": f"x://user:{SECRET}@forbidden",
    "part as option": f"x://host?password={SECRET}",
    "host as option": f"x://host?hosts={SECRET}",
    "names code": f"x://user:{SECRET}@host?serializer=os.system",
    "names code in a list": f"x://user:{SECRET}@host?hooks=os.system",
    "names code by annotation": f"x://user:{SECRET}@host?factory=os.system",
}


@pytest.mark.parametrize("url", WRONG.values(), ids=WRONG.keys())
def test_wrong_url_gives_no_secret_away(url: str, caplog: pytest.LogCaptureFixture):
    """A wrong URL is a ConfigError that repeats no secret: not in text, chain, or log."""
    plugins.register(
        Backend(name="x", event_config=None, producer=MemoryProducer, connection=Options)
    )
    caplog.set_level(logging.DEBUG)
    try:
        with pytest.raises(ConfigError) as caught:
            EventEmitter.from_url(url)
    finally:
        plugins.unregister("x")
    error: BaseException | None = caught.value
    seen: list[BaseException] = []
    while error is not None:
        seen.append(error)
        errors = getattr(error, "errors", list)()
        assert SECRET not in f"{error} {error!r} {error.args} {errors} {vars(error)}"
        assert error.__cause__ is None
        error = error.__context__
    assert len(seen) == 1
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("x://h?lingerms=1", "unknown option 'lingerms'; options: linger_ms, token, verify"),
        ("x://h?linger_ms=a", "linger_ms"),
        ("x://h?linger_ms=1&linger_ms=1", "'linger_ms' is given twice"),
        ("x://a,b:0", "host 2 of 2"),
        ("x://u:p@q@h", "%40"),
        ("x://h#f", "%23"),
        ("h:1", "scheme://host"),
    ],
)
def test_wrong_url_names_what_is_wrong(url: str, named: str):
    """The message names the part or the option at fault, and what there is."""
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert named in str(caught.value)


def test_unknown_scheme_repeats_nothing_but_the_scheme():
    """A scheme nobody serves is named; the rest of the URL is not."""
    with pytest.raises(PluginError) as caught:
        EventEmitter.from_url(f"nobody://user:{SECRET}@host/{SECRET}")
    assert "'nobody'" in str(caught.value)
    assert SECRET not in f"{caught.value!r} {vars(caught.value)}"


@pytest.mark.parametrize("value", [None, 3, b"x://h", "", "x:/h", "1x://h", "://h"])
def test_scheme_of_what_is_no_url_is_refused(value: object):
    """Anything that is not scheme://... is no URL."""
    with pytest.raises(ConfigError, match="not a URL"):
        scheme_of(value)


def test_memory_names_are_case_sensitive():
    """memory://Orders and memory://orders are two brokers; the same name is the same broker."""
    first, second, other = (
        EventEmitter.from_url(f"memory://{name}").producer
        for name in ("UrlTest", "UrlTest", "urltest")
    )
    assert isinstance(first, MemoryProducer)
    assert isinstance(second, MemoryProducer)
    assert isinstance(other, MemoryProducer)
    assert first.broker is second.broker is MemoryBroker.named("UrlTest")
    assert other.broker is not first.broker
