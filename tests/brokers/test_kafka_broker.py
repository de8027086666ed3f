"""The harness keeps its promises about Kafka."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.java import java_partitions
from brokers.kafka import LIMITED, PASSWORD, USER, Kafka
from brokers.kafka_access import KafkaAccess

pytest.importorskip("aiokafka")
pytestmark = pytest.mark.kafka


@contextlib.asynccontextmanager
async def _producer(port: int, **settings: object) -> AsyncIterator[Any]:
    from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

    producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{port}", **settings)
    try:
        await producer.start()
        yield producer
    finally:
        await producer.stop()


def _tls(kafka: Kafka, **options: bool) -> dict[str, object]:
    return {"security_protocol": "SSL", "ssl_context": kafka.certificates.context(**options)}


def _login(user: str, mechanism: str) -> dict[str, str]:
    return {
        "sasl_plain_username": user,
        "sasl_plain_password": PASSWORD,
        "sasl_mechanism": mechanism,
    }


async def test_what_was_written_can_be_read_in_another_process(own_kafka: Kafka) -> None:
    own_kafka.create_topic("all", 2, {"message.timestamp.type": "CreateTime"})
    async with _producer(own_kafka.port) as producer:
        headers = [("h", b"\xff"), ("empty", b"")]
        await producer.send_and_wait("all", b"v", b"k", 1, 1234, headers)
        await producer.send_and_wait("all", None, b"k", 0)
    last, first = own_kafka.read_all("all", 2), own_kafka.read_all("all")
    assert sorted(last, key=repr) == sorted(first, key=repr)
    tombstone, record = sorted(last, key=lambda one: one.partition)
    assert (tombstone.partition, tombstone.key, tombstone.value) == (0, b"k", None)
    assert (record.offset, record.timestamp, record.timestamp_type) == (0, 1234, 0)
    assert (record.key, record.value, record.headers) == (b"k", b"v", tuple(headers))
    assert own_kafka.end_offsets("all") == {0: 1, 1: 1}
    own_kafka.delete_topic("all")


async def test_clients_of_the_proxy_stay_behind_it(own_kafka: Kafka) -> None:
    own_kafka.create_topic("proxied")
    with own_kafka.proxy() as proxy:
        async with _producer(own_kafka.proxied_port) as producer:
            await producer.send_and_wait("proxied", b"x" * 5000)
    assert proxy.connections >= 2  # one to bootstrap, one to the node it was told of
    assert proxy.bytes_up > 5000


async def test_tls_with_and_without_a_client_certificate(own_kafka: Kafka) -> None:
    from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]

    own_kafka.create_topic("tls")
    async with _producer(own_kafka.ssl_port, **_tls(own_kafka, with_client=True)) as producer:
        await producer.send_and_wait("tls", b"v")
    async with _producer(own_kafka.ssl_port, **_tls(own_kafka)) as producer:
        await producer.send_and_wait("tls", b"v")
    with pytest.raises(KafkaConnectionError):
        async with _producer(own_kafka.ssl_port, **_tls(own_kafka, wrong_ca=True)):
            pass


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_every_way_to_log_in(own_kafka: Kafka, mechanism: str) -> None:
    from aiokafka.errors import TopicAuthorizationFailedError

    own_kafka.create_topic(mechanism)
    plain = {"security_protocol": "SASL_PLAINTEXT"}
    secure = _tls(own_kafka) | {"security_protocol": "SASL_SSL"}
    for port, how in (own_kafka.sasl_plaintext_port, plain), (own_kafka.sasl_ssl_port, secure):
        async with _producer(port, **how, **_login(USER, mechanism)) as producer:
            await producer.send_and_wait(mechanism, b"v")
        async with _producer(port, **how, **_login(LIMITED, mechanism)) as producer:
            with pytest.raises(TopicAuthorizationFailedError):
                await producer.send_and_wait(mechanism, b"v")


async def test_data_and_logins_survive_a_kill(own_kafka: Kafka) -> None:
    own_kafka.create_topic("kept")
    async with _producer(own_kafka.port) as producer:
        await producer.send_and_wait("kept", b"v")
    await asyncio.to_thread(own_kafka.kill)
    assert own_kafka.processes() == set()
    assert not own_kafka.usable()
    await asyncio.to_thread(own_kafka.start)
    assert [record.value for record in own_kafka.read_all("kept")] == [b"v"]
    login = _login(USER, "SCRAM-SHA-256")
    port = own_kafka.sasl_plaintext_port
    async with _producer(port, security_protocol="SASL_PLAINTEXT", **login) as producer:
        await producer.send_and_wait("kept", b"v")


def test_a_frozen_broker_takes_connections_and_does_not_answer(own_kafka: Kafka) -> None:
    own_kafka.freeze()
    assert own_kafka.running
    with pytest.raises(TimeoutError):
        own_kafka._ask(0.3)
    own_kafka.heal()
    assert own_kafka.usable()


def test_options_reach_the_broker_and_stop_leaves_nothing() -> None:
    with started(lambda: Kafka(auto_create_topics=True, message_max_bytes=2000)) as kafka:
        assert asyncio.run(_made_by_sending(kafka))
        kafka.stop()
        assert not kafka.running
        assert kafka.processes() == set()
        home = kafka.home
    assert not home.exists()


async def _made_by_sending(kafka: Kafka) -> bool:
    from aiokafka.errors import MessageSizeTooLargeError

    async with _producer(kafka.port) as producer:
        await producer.send_and_wait("made-by-sending", b"v")
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait("made-by-sending", b"v" * 3000)
    return True


@pytest.mark.usefixtures("own_kafka")  # for its jars
def test_the_partitioner_is_the_one_of_java() -> None:
    from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]

    keys = [b"", b"a", bytes(range(256)), "ключ".encode()]
    expected = [(murmur2(key) & 0x7FFFFFFF) % 7 for key in keys]
    assert java_partitions(keys, 7) == expected


def test_the_shared_broker_has_a_topic_for_each_test(kafka_broker: KafkaAccess, topic: str) -> None:
    assert kafka_broker.end_offsets(topic) == {0: 0}
