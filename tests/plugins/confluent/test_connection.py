"""ConfluentConnection: from a URL to librdkafka's settings, without ever repeating a secret."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from brokers.kafka import LIMITED, PASSWORD, USER, Kafka
from dispytch import ConfigError, ConnectError, EmitRejected, EventBase, EventEmitter
from dispytch.url import connect
from dispytch_confluent import ConfluentConnection

pytest.importorskip("confluent_kafka")

SECRET = "hunter2secret"


class Logged(EventBase):
    __topic__ = "logins"
    __event_type__ = "logged"


def parse(url: str) -> ConfluentConnection:
    return connect(url, ConfluentConnection)


def texts(error: BaseException | None) -> str:
    told: list[str] = []
    while error is not None:
        told += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def test_looking_a_config_up_imports_no_client() -> None:
    """Neither librdkafka nor aiokafka, which take a while."""
    code = """
import sys
from dispytch import plugins
plugins.event_config("kafka+confluent"), plugins.connection_schema("kafka+confluent")
sys.exit(repr({"confluent_kafka", "aiokafka"} & set(sys.modules)) if
         {"confluent_kafka", "aiokafka"} & set(sys.modules) else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_are_the_safe_ones() -> None:
    """Every replica, no copies, certificates and names checked, partitions as Java's."""
    settings = parse("kafka+confluent+ssl://u:p@a,b:1").librdkafka_producer()
    expected = {
        "bootstrap.servers": "a:9092,b:1",
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "linger.ms": 0,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "enable.ssl.certificate.verification": True,
        "ssl.endpoint.identification.algorithm": "https",
    }
    assert settings.items() >= expected.items()


def test_options_become_librdkafkas_own(tmp_path: Path) -> None:
    """Each under the name that librdkafka has for it."""
    file = tmp_path / "file.pem"
    file.touch()
    options = {
        "cafile": file,
        "certfile": file,
        "keyfile_password": SECRET,
        "client_id": "me",
        "acks": 1,
        "idempotent": "false",
        "compression": "zstd",
        "linger_ms": 7,
        "max_batch_bytes": 5_000,
        "max_request_bytes": 6_000,
        "request_timeout_ms": 1_000,
        "retry_backoff_ms": 2_000,
        "metadata_max_age_ms": 9_000,
        "connections_max_idle_ms": 8_000,
    }
    query = "&".join(f"{name}={value}" for name, value in options.items())
    connection = parse(f"kafka+confluent+ssl://a?{query}")
    expected = {
        "ssl.ca.location": str(file),
        "ssl.certificate.location": str(file),
        "ssl.key.location": str(file),
        "ssl.key.password": SECRET,
        "client.id": "me",
        "acks": "1",
        "enable.idempotence": False,
        "compression.type": "zstd",
        "linger.ms": 7,
        "batch.size": 5_000,
        "message.max.bytes": 6_000,
        "request.timeout.ms": 1_000,
        "socket.timeout.ms": 1_000,
        "message.timeout.ms": 3_007,
        "retry.backoff.ms": 2_000,
        "retry.backoff.max.ms": 2_000,
        "metadata.max.age.ms": 9_000,
        "connections.max.idle.ms": 8_000,
    }
    assert connection.librdkafka_producer().items() >= expected.items()
    assert SECRET not in repr(connection)


@pytest.mark.parametrize(
    ("option", "lowest", "highest"),
    [
        ("linger_ms", 0, 900_000),
        ("max_batch_bytes", 1, 2**31 - 1),
        ("max_request_bytes", 1_000, 1_000_000_000),
        ("request_timeout_ms", 10, 300_000),
        ("retry_backoff_ms", 1, 300_000),
        ("metadata_max_age_ms", 10, 3_600_000),
        ("connections_max_idle_ms", 1, 2**31 - 1),
    ],
)
async def test_what_librdkafka_can_not_do_is_refused_by_name(
    option: str, lowest: int, highest: int
) -> None:
    """And whatever is taken, it can do."""
    from confluent_kafka import Producer

    for value in (lowest, highest):
        settings = parse(f"kafka+confluent://a?{option}={value}").librdkafka_producer()
        Producer(settings | {"log_level": 0})
    for value in (lowest - 1, highest + 1):
        with pytest.raises((ConfigError, ValidationError), match=option):
            parse(f"kafka+confluent://a?{option}={value}")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("kafka+confluent://u:p@a?sasl_mechanism=PLAIN", "kafka\\+confluent\\+ssl://"),
        ("kafka+confluent://a?keyfile_password=x", "kafka\\+confluent\\+ssl://"),
        ("kafka+confluent://a?partitioner=random", "partitioner"),
        ("kafka+confluent://a?acks=1", "idempotent"),
    ],
)
def test_what_can_not_work_is_refused(url: str, named: str) -> None:
    """Naming what to write instead."""
    with pytest.raises(ConfigError, match=named):
        EventEmitter.from_url(url)


def test_a_tls_file_that_is_none_is_refused_early(tmp_path: Path) -> None:
    """When the emitter is made, not when it connects."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError, match="cafile"):
        EventEmitter.from_url(f"kafka+confluent+ssl://a?cafile={wrong}")


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
    return f"kafka+confluent{'+ssl' if tls else ''}://{login}@127.0.0.1:{port}?{query}"


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
    """Neither password nor user reaches a log."""
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
    with pytest.raises(ConnectError, match="_AUTHENTICATION") as caught:
        await emitter.start()
    assert not caught.value.retriable
    assert SECRET not in texts(caught.value) + caplog.text


@pytest.mark.kafka
async def test_the_right_authority_is_trusted_and_the_wrong_one_is_not(secure: Kafka) -> None:
    """A broker whose certificate an unknown authority signed is refused, and told so."""
    base = f"kafka+confluent+ssl://127.0.0.1:{secure.ssl_port}?cafile="
    async with EventEmitter.from_url(f"{base}{secure.certificates.ca}", timeout=10) as emitter:
        await emitter.emit(Logged())
    wrong = EventEmitter.from_url(f"{base}{secure.certificates.wrong_ca}", timeout=10)
    with pytest.raises(ConnectError, match="certificate verify failed") as caught:
        await wrong.start()
    assert not caught.value.retriable


@pytest.mark.kafka
async def test_a_client_certificate_is_shown(secure: Kafka) -> None:
    """`certfile` and `keyfile` are loaded and used."""
    files = secure.certificates
    url = f"kafka+confluent+ssl://127.0.0.1:{secure.ssl_port}?cafile={files.ca}"
    url += f"&certfile={files.client.cert}&keyfile={files.client.key}"
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(Logged())


@pytest.mark.kafka
async def test_what_a_user_may_not_write_is_rejected(secure: Kafka) -> None:
    """The broker's refusal is certain."""
    url = url_of(secure, tls=False, user=LIMITED)
    for options in ("", "idempotent=false"):
        async with EventEmitter.from_url(url + options, timeout=10) as emitter:
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


@pytest.mark.parametrize(
    "url", ["kafka+confluent://127.0.0.1:1", "kafka+confluent+ssl://127.0.0.1:1"]
)
async def test_nobody_listening_is_a_connect_error(url: str) -> None:
    """It names what happened, may be tried again, and leaves nothing behind."""
    with pytest.raises(ConnectError, match="Connection refused") as caught:
        await EventEmitter.from_url(url, timeout=5).start()
    assert caught.value.retriable
    assert SimpleNamespace(backend=caught.value.backend) == SimpleNamespace(
        backend="kafka+confluent"
    )
