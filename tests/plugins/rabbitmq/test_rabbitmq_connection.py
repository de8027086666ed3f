"""URLs of RabbitMQ: what they mean, what is refused, and that nothing secret gets out."""

import logging
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from brokers.process import free_port
from brokers.rabbitmq import LIMITED_PASSWORD, RabbitMQ
from dispytch import ConfigError, ConnectError, EventBase, EventEmitter
from dispytch.plugins import backend_for_url
from dispytch.url import connect
from dispytch_rabbitmq import RabbitMQConnection

pytest.importorskip("aio_pika")

PASSWORD = "pa55-w0rd"
USER = "us3r-name"


class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"


def _connection(url: str) -> RabbitMQConnection:
    return connect(url, RabbitMQConnection)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("amqp://", [("localhost", 5672)]),
        ("amqps://", [("localhost", 5671)]),
        ("amqp://a,b:5673", [("a", 5672), ("b", 5673)]),
        ("amqp://[::1]:5673,[fe80::1]", [("::1", 5673), ("fe80::1", 5672)]),
        ("amqps://u:p@host/x", [("host", 5671)]),
    ],
)
def test_hosts_have_the_schemes_port(url: str, addresses: list[tuple[str, int]]) -> None:
    """Ports default by scheme, several hosts and IPv6 are understood."""
    assert _connection(url).addresses == addresses


@pytest.mark.parametrize(
    ("path", "vhost"),
    [
        ("", "/"),
        ("/", "/"),
        ("/%2F", "/"),
        ("//", "/"),
        ("/orders", "orders"),
        ("/my%2Fvhost", "my/vhost"),
        ("/a%20b%2525", "a b%25"),
        ("/%C3%A9", "é"),
    ],
)
def test_vhost_is_the_decoded_path(path: str, vhost: str) -> None:
    """A vhost may hold any character; none is the default one."""
    assert _connection(f"amqp://h{path}").vhost == vhost


def test_login_is_guest_only_where_none_is_given() -> None:
    """A user without a password has none."""
    assert (_connection("amqp://h").login, _connection("amqp://h").login_password) == (
        "guest",
        "guest",
    )
    named = _connection("amqp://me@h")
    assert (named.login, named.login_password) == ("me", "")
    escaped = _connection("amqp://a%40b:p%2F%25%3A@h")
    assert (escaped.login, escaped.login_password) == ("a@b", "p/%:")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("amqp://h?no_verify_ssl=1", "heartbeat"),
        ("amqps://h?verify=false", "cafile"),
        ("amqp://h?auth=external", "connection_name"),
        ("amqp://h?heartbeat=-1", "heartbeat"),
        ("amqp://h?heartbeat=soon", "heartbeat"),
        ("amqps://h?cafile=/no/such/file.pem", "cafile"),
        ("amqps://h?keyfile_password=x", "certfile"),
        ("amqp://h?exchange_type=quick", "exchange_type"),
        ("amqp://h?exchange=bad*name", "exchange"),
        ("amqp://h?connect_timeout=0", "connect_timeout"),
        ("amqp://h?reconnect_interval=nan", "reconnect_interval"),
        ("amqp://h?heartbeat=1&heartbeat=2", "heartbeat"),
    ],
)
def test_wrong_options_are_refused_by_name(url: str, named: str) -> None:
    """An option that is unknown or has a wrong value is refused before any I/O."""
    with pytest.raises(ConfigError, match=named):
        _connection(url)


def test_tls_files_need_tls(tmp_path: Path) -> None:
    """A certificate given to a plain connection would silently do nothing."""
    pem = tmp_path / "ca.pem"
    pem.write_text("")
    with pytest.raises(ConfigError, match="amqps"):
        _connection(f"amqp://h?cafile={pem}")


def test_every_option_describes_itself() -> None:
    """`connection_schema` tells each option's meaning and default."""
    parts = {"scheme", "user", "password", "hosts", "path"}
    for name, field in RabbitMQConnection.model_fields.items():
        assert name in parts or "Default" in (field.description or ""), name


def test_schema_lookup_imports_no_client() -> None:
    """Config, connection and the backend itself are there without aio-pika and aiormq."""
    code = (
        "import sys; from dispytch import plugins; plugins.event_config('rabbitmq');"
        "plugins.connection_schema('rabbitmq'); plugins.backend_for_url('amqp://h');"
        "from dispytch_rabbitmq import RabbitMQEventConfig, RabbitMQConnection;"
        "print(sorted({'aio_pika', 'aiormq', 'pamqp'} & set(sys.modules)));"
        "backend = plugins.get_backend('rabbitmq'); assert backend.load_consumer();"
        "from dispytch_rabbitmq import RabbitMQProducer; print('aio_pika' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_both_schemes_belong_to_the_backend() -> None:
    """URLs of amqp and amqps are served."""
    assert backend_for_url("amqp://h").name == backend_for_url("amqps://h").name == "rabbitmq"


def _leaks(error: BaseException, log: str) -> list[str]:
    """Where a secret shows: in the error, its whole chain with its values, or the log."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        waiting += [one.__cause__, one.__context__]
    texts = [log, "".join(traceback.format_exception(error))]
    for one in seen:
        texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        if callable(errors := getattr(one, "errors", None)):
            texts.append(repr(errors()))
    return [text for text in texts if PASSWORD in text or USER in text]


def _wrong_urls(broker: RabbitMQ) -> dict[str, str]:
    login, here = f"{USER}:{PASSWORD}", f"127.0.0.1:{broker.port}"
    return {
        "unknown user": f"amqp://{login}@{here}/",
        "unreachable": f"amqp://{login}@127.0.0.1:{free_port()}/",
        "no such host": f"amqp://{login}@no-such-host.invalid/",
        "unknown vhost": f"amqp://{login}@{here}/nowhere",
        "unknown option": f"amqp://{login}@{here}/?nonsense={PASSWORD}",
        "wrong option": f"amqp://{login}@{here}/?heartbeat={PASSWORD}",
        "not encoded": f"amqp://{USER}:{PASSWORD}@@{here}/",
        "bad port": f"amqp://{login}@127.0.0.1:99999/",
        "no TLS there": f"amqps://{login}@{here}/",
        "unknown authority": f"amqps://{login}@127.0.0.1:{broker.tls_port}/",
        "missing file": f"amqps://{login}@{here}/?cafile=/no/{PASSWORD}.pem",
        "fragment": f"amqp://{login}#{PASSWORD}@{here}/",
    }


@pytest.mark.rabbitmq
async def test_wrong_urls_leak_nothing(
    own_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """User and password show in no message, chain, value or log line, whatever is wrong."""
    caplog.set_level(logging.DEBUG)
    for kind, url in _wrong_urls(own_rabbitmq).items():
        caplog.clear()
        with pytest.raises((ConfigError, ConnectError)) as caught:
            await EventEmitter.from_url(url, timeout=10).start()
        assert not _leaks(caught.value, caplog.text), kind


@pytest.mark.rabbitmq
async def test_wrong_urls_leak_nothing_when_listening(
    own_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """The same holds for a consumer's connection."""
    caplog.set_level(logging.DEBUG)
    for kind, url in _wrong_urls(own_rabbitmq).items():
        caplog.clear()
        backend = backend_for_url(url)
        with pytest.raises((ConfigError, ConnectError)) as caught:
            await backend.make_consumer(_connection(url)).start()
        assert not _leaks(caught.value, caplog.text), kind


@pytest.mark.rabbitmq
async def test_wrong_vhost_leaks_nothing(
    own_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the login is right and the broker repeats it."""
    caplog.set_level(logging.DEBUG)
    own_rabbitmq.add_user(USER, PASSWORD)
    for vhost in ("nowhere", "/"):
        url = own_rabbitmq.url_for(user=USER, password=PASSWORD, vhost=vhost)
        with pytest.raises(ConnectError, match="virtual host") as caught:
            await EventEmitter.from_url(url, timeout=10).start()
        assert not caught.value.retriable
        assert not _leaks(caught.value, caplog.text), vhost


@pytest.mark.rabbitmq
async def test_wrong_password_is_told_quickly(own_rabbitmq: RabbitMQ) -> None:
    """It is no use to try again, and the error says so."""
    with pytest.raises(ConnectError, match="password") as caught:
        await EventEmitter.from_url(own_rabbitmq.url_for(password="wrong"), timeout=10).start()
    assert not caught.value.retriable
    assert caught.value.backend == "rabbitmq"


def test_repr_shows_no_secret() -> None:
    """A connection can be logged."""
    url = f"amqps://{USER}:{PASSWORD}@h"
    assert not [text for text in (repr(_connection(url)), str(_connection(url))) if USER in text]
    assert PASSWORD not in repr(_connection(url))


async def _emit_one(url: str) -> None:
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(Ping())
        await emitter.ping()


@pytest.mark.rabbitmq
async def test_tls_with_the_right_authority_works(own_rabbitmq: RabbitMQ) -> None:
    """TLS verifies the broker, and a client certificate can be presented."""
    own_rabbitmq.declare_queue("pings")
    files = own_rabbitmq.certificates
    url = f"{own_rabbitmq.tls_url}?cafile={files.ca}"
    await _emit_one(url)
    await _emit_one(f"{url}&certfile={files.client.cert}&keyfile={files.client.key}")


@pytest.mark.rabbitmq
async def test_tls_with_an_unknown_authority_is_refused(own_rabbitmq: RabbitMQ) -> None:
    """A certificate nobody vouches for ends the connection, and trying again is no use."""
    with pytest.raises(ConnectError, match="certificate verify failed") as caught:
        await _emit_one(own_rabbitmq.tls_url)
    assert not caught.value.retriable


@pytest.mark.rabbitmq
async def test_broken_authority_file_is_told(own_rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A file that holds no certificate is named as the problem."""
    pem = tmp_path / "ca.pem"
    pem.write_text("nothing")
    with pytest.raises(ConnectError, match="cafile"):
        await _emit_one(f"{own_rabbitmq.tls_url}?cafile={pem}")


@pytest.mark.rabbitmq
async def test_vhost_and_password_with_special_characters_work(own_rabbitmq: RabbitMQ) -> None:
    """What must be percent-encoded arrives as it is."""
    own_rabbitmq.set_permissions("limited", vhost="team a/orders")
    url = own_rabbitmq.url_for(user="limited", password=LIMITED_PASSWORD, vhost="team a/orders")
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.ping()
        assert "team a/orders" in own_rabbitmq.ctl("list_connections", "vhost")


@pytest.mark.rabbitmq
async def test_hosts_are_tried_in_turn(own_rabbitmq: RabbitMQ) -> None:
    """One reachable host is enough."""
    own_rabbitmq.declare_queue("pings")
    await _emit_one(f"amqp://127.0.0.1:{free_port()},127.0.0.1:{own_rabbitmq.port}/")


@pytest.mark.rabbitmq
async def test_connection_name_is_shown_by_the_broker(own_rabbitmq: RabbitMQ) -> None:
    """Operators see whose connection it is."""
    async with EventEmitter.from_url(f"{own_rabbitmq.url}?connection_name=billing"):
        assert "billing" in own_rabbitmq.ctl("list_connections", "client_properties")


@pytest.mark.rabbitmq
async def test_exchange_of_the_url_is_declared(own_rabbitmq: RabbitMQ) -> None:
    """A named exchange is made, durable, and one that exists is used as it is."""
    own_rabbitmq.declare_exchange("there", "fanout")
    for options in ("exchange=made", "exchange=there"):
        async with EventEmitter.from_url(f"{own_rabbitmq.url}?{options}"):
            pass
    listed = own_rabbitmq.ctl("list_exchanges", "name", "type", "durable").split("\n")
    assert "made\ttopic\ttrue" in listed
    assert "there\tfanout\ttrue" in listed


@pytest.mark.rabbitmq
@pytest.mark.parametrize("options", ["exchange=absent&declare=false", "exchange=amq.mine"])
async def test_exchange_that_can_not_be_had_fails_the_start(
    own_rabbitmq: RabbitMQ, options: str
) -> None:
    """Starting tells what every event would meet."""
    with pytest.raises(ConnectError, match="exchange") as caught:
        await EventEmitter.from_url(f"{own_rabbitmq.url}?{options}").start()
    assert not caught.value.retriable


def test_connection_is_frozen() -> None:
    """Nobody changes where an emitter connects."""
    connection: Any = _connection("amqp://h")
    with pytest.raises(ValueError, match="frozen"):
        connection.hosts = ("other",)
