"""Sending to a dead-letter topic: it is there when it is needed, with the original key."""

import pytest

from brokers.kafka import LIMITED, PASSWORD, Kafka
from brokers.kafka_access import KafkaAccess
from dispytch import EmitRejected, Outgoing
from dispytch.url import connect
from dispytch_confluent import ConfluentConnection, ConfluentConsumer, ConfluentProducer

pytest.importorskip("confluent_kafka")
pytestmark = pytest.mark.kafka


def dead_letter(topic: str, key: str | None = None) -> Outgoing:
    return Outgoing("1", "broken", topic, b"\xff not an envelope", key, None, {"why": b"\x00"})


async def send(url: str, *letters: Outgoing) -> None:
    producer = ConfluentProducer(connect(url, ConfluentConnection))
    await producer.start()
    try:
        for letter in letters:
            await producer.send_dead_letter(letter)
    finally:
        await producer.stop()


async def test_a_missing_dead_letter_topic_is_created_like_its_source(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """Also where brokers create none on demand; as many partitions, the same bytes and key."""
    kafka_broker.create_topic(unique_name, 3)
    key = b"\xff\x00\xc3".decode(errors="surrogateescape")
    url = f"kafka+confluent://{kafka_broker.bootstrap}"
    await send(url, dead_letter(f"{unique_name}.dlq", key), dead_letter(f"{unique_name}.dlq"))
    assert len(kafka_broker.end_offsets(f"{unique_name}.dlq")) == 3
    records = kafka_broker.read_all(f"{unique_name}.dlq", 2)
    assert {record.value for record in records} == {b"\xff not an envelope"}
    assert {record.key for record in records} == {b"\xff\x00\xc3", None}
    assert all(record.headers == (("why", b"\x00"),) for record in records)


async def test_without_its_source_it_gets_the_brokers_default(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """And a topic that merely stood beside it is not made up."""
    await send(f"kafka+confluent://{kafka_broker.bootstrap}", dead_letter(f"{unique_name}.dlq"))
    assert len(kafka_broker.end_offsets(f"{unique_name}.dlq")) == 1


async def test_one_that_can_not_be_created_is_a_rejection_that_names_it(own_kafka: Kafka) -> None:
    """No right to, or no legal name: certainly not stored."""
    secret = PASSWORD.replace("@/#", "%40%2F%23")
    url = f"kafka+confluent://{LIMITED}:{secret}@127.0.0.1:{own_kafka.sasl_plaintext_port}?idempotent=false"
    with pytest.raises(EmitRejected, match=r"'no\.dlq'") as caught:
        await send(url, dead_letter("no.dlq"))
    assert not caught.value.retriable
    assert PASSWORD not in str(caught.value)
    with pytest.raises(EmitRejected, match="no legal"):
        await send(own_kafka.url.replace("kafka:", "kafka+confluent:"), dead_letter("a/b.dlq"))


def test_a_listeners_dead_letters_go_through_librdkafka() -> None:
    """It need not be given a producer; what others sent compressed may be large."""
    consumer = ConfluentConsumer(ConfluentConnection(hosts=("a",)))
    assert isinstance(consumer.dead_letter_producer(), ConfluentProducer)
