"""KafkaConnection: from a URL to settings, without ever repeating a secret."""

import logging
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from brokers.kafka import LIMITED, PASSWORD, USER, Kafka
from dispytch import ConfigError, ConnectError, EmitRejected, EventBase, EventEmitter
from dispytch.url import connect
from dispytch_kafka import KafkaConnection

pytest.importorskip("aiokafka")

SECRET = "hunter2secret"
NAME = "topsecretuser"


class Logged(EventBase):
    __topic__ = "logins"
    __event_type__ = "logged"


def parse(url: str) -> KafkaConnection:
    return connect(url, KafkaConnection)


def chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def texts(error: BaseException) -> str:
    told = []
    for link in chain(error):
        told += [str(link), repr(link), repr(link.args)]
        if hasattr(link, "errors"):
            told.append(repr(link.errors()))
    return "\n".join(told)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("kafka://a", ("a:9092",)),
        ("kafka://a:1,b:2", ("a:1", "b:2")),
        ("kafka://a,b:2/", ("a:9092", "b:2")),
        ("kafka://[::1]", ("[::1]:9092",)),
        ("kafka://[fe80::1]:7,10.0.0.1", ("[fe80::1]:7", "10.0.0.1:9092")),
    ],
)
def test_hosts_are_a_list_with_the_default_port(url: str, hosts: tuple[str, ...]) -> None:
    """One host or several, names or addresses of both families, each ends with a port."""
    from aiokafka.conn import collect_hosts  # type: ignore[import-untyped]

    settings = parse(url).producer_settings()
    assert settings["bootstrap_servers"] == list(hosts)
    ports = sorted(port for _, port, _ in collect_hosts(list(hosts)))
    assert ports == sorted(int(host.rpartition(":")[2]) for host in hosts)


def test_defaults_are_the_safe_ones() -> None:
    """All replicas confirm, the client's retries make no copies, nothing is compressed."""
    settings = parse("kafka://a").producer_settings()
    assert settings["acks"] == "all"
    assert settings["enable_idempotence"] is True
    assert settings["compression_type"] is None
    assert settings["security_protocol"] == "PLAINTEXT"


def test_options_are_typed(tmp_path: Path) -> None:
    """Query parameters arrive as what they mean."""
    connection = parse(
        "kafka://a?acks=1&idempotent=false&compression=gzip&linger_ms=5&max_batch_bytes=1000"
        "&max_request_bytes=2000&request_timeout_ms=3000&client_id=shop"
    )
    settings = connection.producer_settings()
    assert settings["acks"] == 1
    assert settings["enable_idempotence"] is False
    assert settings["compression_type"] == "gzip"
    assert (settings["linger_ms"], settings["max_batch_size"]) == (5, 1000)
    assert (settings["max_request_size"], settings["request_timeout_ms"]) == (2000, 3000)
    assert settings["client_id"] == "shop"


def test_a_member_gets_more_time_to_join_than_handlers_to_finish() -> None:
    """60 s, or the drain and 30 s; what a URL says wins."""
    connection = parse("kafka://a")
    assert connection.consumer_settings("g", 10)["rebalance_timeout_ms"] == 60_000
    assert connection.consumer_settings("g", 120)["rebalance_timeout_ms"] == 150_000
    own = parse("kafka://a?rebalance_timeout_ms=70000").consumer_settings("g", 120)
    assert own["rebalance_timeout_ms"] == 70_000


def test_a_consumer_never_commits_by_itself() -> None:
    """It begins at the oldest record, and sees what transactions have committed."""
    settings = parse(
        "kafka://a?group_instance_id=one&session_timeout_ms=9000&discovery_interval_ms=700"
    ).consumer_settings("g", 30)
    assert settings["enable_auto_commit"] is False
    assert settings["auto_offset_reset"] == "earliest"
    assert settings["isolation_level"] == "read_committed"
    assert (settings["group_id"], settings["group_instance_id"]) == ("g", "one")
    assert settings["session_timeout_ms"] == 9000
    assert settings["metadata_max_age_ms"] == 700
    alone = parse("kafka://a?auto_offset_reset=latest").consumer_settings(None, 30)
    assert "group_id" not in alone
    assert alone["auto_offset_reset"] == "earliest"


def test_a_login_is_percent_decoded_and_hidden() -> None:
    """The client gets user and password as they are; the connection's repr does not."""
    connection = parse(f"kafka+ssl://{NAME}:{quote('p@/:#?%', safe='')}@a")
    settings = connection.client_settings()
    assert settings["sasl_plain_username"] == NAME
    assert settings["sasl_plain_password"] == "p@/:#?%"
    assert settings["security_protocol"] == "SASL_SSL"
    assert settings["sasl_mechanism"] == "SCRAM-SHA-256"
    assert NAME not in f"{connection!r} {connection}"
    assert "p@/" not in f"{connection!r} {connection}"


def test_tls_always_checks_certificates_and_names() -> None:
    """There is nothing a URL could say against it."""
    context = parse("kafka+ssl://a").ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert parse("kafka://a").ssl_context() is None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("kafka://", "hosts"),
        ("kafka://a?acks=0", "acks"),
        ("kafka://a?acks=1", "idempotent"),
        ("kafka://a?compression=brotli", "compression"),
        ("kafka://a?linger_ms=-1", "linger_ms"),
        ("kafka://a?request_timeout_ms=soon", "request_timeout_ms"),
        ("kafka://a?auto_offset_reset=none", "auto_offset_reset"),
        ("kafka://a?isolation_level=dirty", "isolation_level"),
        ("kafka://a?session_timeout_ms=5000", "heartbeat_interval_ms"),
        ("kafka://a?commit_every=0", "commit_every"),
        ("kafka://a?enable_auto_commit=true", "enable_auto_commit"),
        ("kafka://a?group_id=other", "group_id"),
        ("kafka://a?max_request_bytes=0", "max_request_bytes"),
        ("kafka://a/topic", "path"),
        ("kafka://a?sasl_mechanism=PLAIN", "sasl_mechanism"),
        ("kafka://user@a", "password"),
        ("kafka+ssl://a?cafile=/does/not/exist.pem", "cafile"),
        ("kafka://a?cafile=/etc/hostname", "cafile"),
        ("kafka+ssl://a?keyfile=/etc/hostname", "certfile"),
        ("kafka+ssl://a?verify=false", "verify"),
        ("kafka+ssl://a?check_hostname=false", "check_hostname"),
        ("kafka+ssl://a?ssl_context=x", "ssl_context"),
        ("kafka+ssl://a?partitioner=os:system", "partitioner"),
    ],
)
def test_what_can_not_work_is_refused_by_name(url: str, named: str) -> None:
    """Nothing weakens TLS, names code, or is ignored."""
    with pytest.raises(ConfigError, match=named):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        f"kafka://{NAME}:{SECRET}@a?sasl_mechanism=PLAIN",
        f"kafka://{NAME}:{SECRET}@a:port",
        f"kafka://{NAME}:{SECRET}@a:99999",
        f"kafka://{NAME}:{SECRET}@a?acks=0",
        f"kafka://{NAME}:{SECRET}@a?acks={SECRET}",
        f"kafka://{NAME}:{SECRET}@a?{SECRET}=1",
        f"kafka://{NAME}:{SECRET}/x@a",
        f"kafka://{NAME}:{SECRET}#x@a",
        f"kafka://{NAME}:{SECRET}@@a",
        f"kafka://{NAME}:{SECRET}@",
        f"kafka://{NAME}:{SECRET}@a/{SECRET}",
        f"kafka+ssl://{NAME}:{SECRET}@a?cafile=/{SECRET}",
        f"kafka+ssl://{NAME}:{SECRET}@a?keyfile_password={SECRET}",
        f"kafka+ssl://{NAME}:{SECRET}@a?certfile=/etc/hostname&keyfile_password={SECRET}",
        f"kafka://:{SECRET}@a?client_id=",
    ],
)
def test_a_wrong_url_repeats_no_secret(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not in the message, its cause or context, `.errors()`, or a log line."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError) as caught:
        EventEmitter.from_url(url)
    told = texts(caught.value) + caplog.text
    # An option's name may be told, as it is what is wrong; its value may not.
    told = told.replace(f"unknown option '{SECRET}'", "")
    assert SECRET not in told
    assert NAME not in told


def test_a_missing_compression_library_is_noticed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the first batch is compressed."""
    monkeypatch.setattr("dispytch_kafka.connection.find_spec", lambda name: None)
    assert parse("kafka://a?compression=gzip").compression == "gzip"
    with pytest.raises(ConfigError, match=r"dispytch-kafka\[compression\]"):
        parse("kafka://a?compression=zstd")


def test_a_tls_file_that_is_none_is_refused_early(tmp_path: Path) -> None:
    """Making the emitter tells, not the first connection."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError, match="cafile"):
        EventEmitter.from_url(f"kafka+ssl://a?cafile={wrong}")
    with pytest.raises(ConfigError, match="certfile"):
        EventEmitter.from_url(f"kafka+ssl://a?certfile={wrong}")


@pytest.fixture(scope="module")
def secure(own_kafka: Kafka) -> Kafka:
    own_kafka.create_topic("logins")
    return own_kafka


def url_of(
    kafka: Kafka, *, tls: bool, user: str = USER, password: str = PASSWORD, **options: Any
) -> str:
    port = kafka.sasl_ssl_port if tls else kafka.sasl_plaintext_port
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    if tls:
        options.setdefault("cafile", kafka.certificates.ca)
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"kafka{'+ssl' if tls else ''}://{login}@127.0.0.1:{port}?{query}"


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("tls", "mechanism"),
    [
        (False, "SCRAM-SHA-256"),
        (False, "SCRAM-SHA-512"),
        (True, "SCRAM-SHA-256"),
        (True, "PLAIN"),
    ],
)
async def test_every_login_works_and_no_log_line_has_it(
    secure: Kafka, tls: bool, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Aiokafka logs requests for debugging, and who logged in: neither reaches a log."""
    caplog.set_level(logging.DEBUG)
    url = url_of(secure, tls=tls, sasl_mechanism=mechanism)
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(Logged())
        assert PASSWORD not in repr(emitter) + repr(emitter.producer)
    assert PASSWORD not in caplog.text
    assert f"{USER} via" not in caplog.text
    assert "Sasl" not in caplog.text


@pytest.mark.kafka
@pytest.mark.parametrize("tls", [False, True])
async def test_a_wrong_password_is_told_for_what_it_is(
    secure: Kafka, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`ConnectError` names the cause, which trying again would not change, and no secret."""
    caplog.set_level(logging.DEBUG)
    emitter = EventEmitter.from_url(url_of(secure, tls=tls, password=SECRET), timeout=10)
    with pytest.raises(ConnectError, match="SaslAuthenticationFailed") as caught:
        await emitter.start()
    assert not caught.value.retriable
    assert SECRET not in texts(caught.value) + caplog.text


@pytest.mark.kafka
async def test_the_right_authority_is_trusted_and_the_wrong_one_is_not(secure: Kafka) -> None:
    """A broker whose certificate an unknown authority signed is refused, and told so."""
    base = f"kafka+ssl://127.0.0.1:{secure.ssl_port}?cafile="
    async with EventEmitter.from_url(f"{base}{secure.certificates.ca}", timeout=10) as emitter:
        await emitter.emit(Logged())
    wrong = EventEmitter.from_url(f"{base}{secure.certificates.wrong_ca}", timeout=10)
    with pytest.raises(ConnectError, match="SSLCertVerificationError") as caught:
        await wrong.start()
    assert not caught.value.retriable


@pytest.mark.kafka
async def test_a_client_certificate_is_shown(secure: Kafka) -> None:
    """`certfile` and `keyfile` are loaded and used."""
    files = secure.certificates
    url = f"kafka+ssl://127.0.0.1:{secure.ssl_port}?cafile={files.ca}"
    url += f"&certfile={files.client.cert}&keyfile={files.client.key}"
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(Logged())


@pytest.mark.kafka
async def test_what_a_user_may_not_write_is_rejected(secure: Kafka) -> None:
    """The broker's refusal is certain; where nothing may be written, that shows at the start."""
    url = url_of(secure, tls=False, user=LIMITED)
    with pytest.raises(ConnectError, match="idempotent") as caught:
        await EventEmitter.from_url(url, timeout=10).start()
    assert not caught.value.retriable
    async with EventEmitter.from_url(f"{url}idempotent=false", timeout=10) as emitter:
        with pytest.raises(EmitRejected, match="logins") as refused:
            await emitter.emit(Logged())
    assert not refused.value.retriable


@pytest.mark.kafka
async def test_a_user_with_few_rights_can_use_those(secure: Kafka) -> None:
    """A topic that may be written works, another is rejected, on one emitter and one by one."""

    class Allowed(Logged):
        __topic__ = "allowed"

    secure.create_topic("allowed")
    principal = ("--allow-principal", f"User:{LIMITED}")
    secure.acl("--add", *principal, "--producer", "--topic", "allowed")
    async with EventEmitter.from_url(
        url_of(secure, tls=False, user=LIMITED), timeout=10
    ) as emitter:
        await emitter.emit(Allowed())
        with pytest.raises(EmitRejected, match="logins"):
            await emitter.emit(Logged())
        await emitter.emit(Allowed())


@pytest.mark.parametrize("url", ["kafka://127.0.0.1:1", "kafka+ssl://127.0.0.1:1"])
async def test_nobody_listening_is_a_connect_error(url: str) -> None:
    """It names what happened, may be tried again, and leaves nothing behind."""
    with pytest.raises(ConnectError, match="ConnectionRefusedError") as caught:
        await EventEmitter.from_url(url, timeout=5).start()
    assert caught.value.retriable
    assert SimpleNamespace(backend=caught.value.backend) == SimpleNamespace(backend="kafka")
