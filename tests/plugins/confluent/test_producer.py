"""ConfluentProducer on a real broker: what arrives, what is refused, what each outcome means."""

import asyncio
import gc

import pytest

from brokers.kafka_access import KafkaAccess
from dispytch import (
    ConfigError,
    EventEmitter,
    Receipt,
)
from dispytch_confluent import ConfluentConnection
from dispytch_kafka import KafkaConnection
from plugins.kafka.emitting import (
    Emitting,
    Padded,
)

pytest.importorskip("confluent_kafka")
pytestmark = pytest.mark.kafka


class TestEmitting(Emitting):
    backend = "kafka+confluent"
    too_large = "SIZE_TOO_LARGE"
    invalid_record = "INVALID_RECORD"
    invalid_timestamp = "INVALID_TIMESTAMP"


def test_only_a_connection_makes_a_producer() -> None:
    """Not a client of the user's, whose partitioner nobody knows, nor dispytch-kafka's."""
    from confluent_kafka import Producer

    from dispytch_confluent import ConfluentConsumer, ConfluentProducer

    for wrong in ("localhost:9092", Producer({}), KafkaConnection(hosts=("localhost",))):
        with pytest.raises(ConfigError, match=type(wrong).__name__):
            ConfluentProducer(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=type(wrong).__name__):
            ConfluentConsumer(wrong)  # type: ignore[arg-type]
    producer = ConfluentProducer(ConfluentConnection(hosts=("localhost",)))
    assert repr(EventEmitter(producer)) == "<EventEmitter kafka+confluent not started>"


async def test_nothing_is_left_behind(kafka_broker: KafkaAccess, topic: str) -> None:
    """Neither tasks nor unclosed connections, after emits were cancelled and after stopping."""
    before = asyncio.all_tasks()
    async with EventEmitter.from_url(
        f"kafka+confluent://{kafka_broker.bootstrap}", timeout=10
    ) as emitter:
        emits = [asyncio.create_task(emitter.emit(Padded(topic=topic))) for _ in range(50)]
        await asyncio.sleep(0)
        for emit in emits[::2]:
            emit.cancel()
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 25
    del emitter
    gc.collect()  # an unclosed client would warn now, and a warning is an error
    assert asyncio.all_tasks() == before
