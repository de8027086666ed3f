"""KafkaProducer on a real broker: what arrives, what is refused, and what each outcome means."""

import asyncio
import gc
import struct
from typing import Any

import pytest

from brokers.kafka_access import KafkaAccess
from dispytch import (
    ConfigError,
    ConnectError,
    EmitManyError,
    EmitRejected,
    EventEmitter,
    Receipt,
)
from dispytch_kafka import KafkaConnection
from plugins.kafka.emitting import (
    Emitting,
    Padded,
)

pytest.importorskip("aiokafka")
pytestmark = pytest.mark.kafka


class TestEmitting(Emitting):
    backend = "kafka"
    too_large = "large"
    invalid_record = "InvalidRecord"
    invalid_timestamp = "InvalidTimestamp"


def client_of(kafka: KafkaAccess, **settings: Any) -> Any:
    from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

    return AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, **settings)


@pytest.mark.parametrize(
    ("owned", "started_before", "stopped_after"),
    [
        (None, False, True),
        (None, True, False),
        (True, False, True),
        (True, True, True),
        (False, True, False),
    ],
)
async def test_who_opened_a_client_closes_it(
    kafka_broker: KafkaAccess,
    topic: str,
    owned: bool | None,
    started_before: bool,
    stopped_after: bool,
) -> None:
    """None: ours to stop only if ours to start. True: ours. False: never touched."""
    from aiokafka.errors import ProducerClosed  # type: ignore[import-untyped]

    from dispytch_kafka import KafkaProducer

    client = client_of(kafka_broker)
    if started_before:
        await client.start()
    try:
        async with EventEmitter(KafkaProducer(client, owned=owned), timeout=10) as emitter:
            await emitter.emit(Padded(topic=topic))
            await emitter.emit_many([Padded(topic=topic), Padded(topic=topic)])
        if stopped_after:
            with pytest.raises(ProducerClosed):
                await client.send_and_wait(topic, b"v")
        else:
            await client.send_and_wait(topic, b"v")
    finally:
        await client.stop()


async def test_a_client_that_is_the_users_to_start_is_not_started(
    kafka_broker: KafkaAccess,
) -> None:
    """owned=False and not started: told, not done."""
    from dispytch_kafka import KafkaProducer

    client = client_of(kafka_broker)
    with pytest.raises(ConnectError, match="yours to start"):
        await EventEmitter(KafkaProducer(client, owned=False)).start()
    await client.stop()


async def test_a_client_with_acks_0_gets_no_receipt(kafka_broker: KafkaAccess, topic: str) -> None:
    """A Receipt means stored, and such a client can't know."""
    from dispytch import EmitUnknown
    from dispytch_kafka import KafkaProducer

    async with EventEmitter(KafkaProducer(client_of(kafka_broker, acks=0))) as emitter:
        with pytest.raises(EmitUnknown, match="acks=0"):
            await emitter.emit(Padded(topic=topic))
        with pytest.raises(EmitManyError):
            await emitter.emit_many([Padded(topic=topic)])


async def test_a_users_idempotent_client_that_can_not_go_on_says_so(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """Only a client made from a URL can be replaced; the error tells what to do."""
    from dispytch_kafka import KafkaProducer

    kafka_broker.create_topic(unique_name, 1, {"max.message.bytes": "1000"})
    client = client_of(kafka_broker, enable_idempotence=True)
    async with EventEmitter(KafkaProducer(client), timeout=10) as emitter:
        await emitter.emit(Padded(topic=unique_name))
        with pytest.raises(EmitRejected):
            await emitter.emit(Padded(topic=unique_name, padding="x" * 2000))
        with pytest.raises(EmitRejected, match="Replace it") as caught:
            await emitter.emit(Padded(topic=unique_name))
        assert caught.value.retriable
    assert len(kafka_broker.read_all(unique_name, 1)) == 1


def test_only_a_client_or_a_connection_makes_a_producer() -> None:
    """Anything else is refused where it is given."""
    from dispytch_kafka import KafkaProducer

    with pytest.raises(ConfigError, match="str"):
        KafkaProducer("localhost:9092")
    connection = KafkaConnection(hosts=("localhost",))
    assert repr(EventEmitter(KafkaProducer(connection))) == "<EventEmitter kafka not started>"


async def test_nothing_is_left_behind(kafka_broker: KafkaAccess, topic: str) -> None:
    """Neither tasks nor unclosed connections, after emits were cancelled and after stopping."""
    before = asyncio.all_tasks()
    async with EventEmitter.from_url(f"kafka://{kafka_broker.bootstrap}", timeout=10) as emitter:
        emits = [asyncio.create_task(emitter.emit(Padded(topic=topic))) for _ in range(50)]
        await asyncio.sleep(0)
        for emit in emits[::2]:
            emit.cancel()
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 25
    del emitter
    gc.collect()  # an unclosed client would warn now, and a warning is an error
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_start_that_ran_out_of_time_leaves_nothing_behind(answers: int) -> None:
    """Whether the broker says nothing at all, or nothing more after its first answer."""
    before = asyncio.all_tasks()
    versions = struct.pack(">hihhhhhh", 0, 2, 3, 0, 1, 18, 0, 0)  # of two requests

    handlers: set[asyncio.Task[Any] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        for _ in range(answers):
            request = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])
            correlation = request[4:8]
            size = struct.pack(">i", len(correlation) + len(versions))
            writer.write(size + correlation + versions)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConnectError, match="not connected within"):
        await EventEmitter.from_url(f"kafka://127.0.0.1:{port}", timeout=0.5).start()
    server.close()
    await server.wait_closed()
    gc.collect()
    # The server's side of the connections ends too.
    await asyncio.wait_for(asyncio.gather(*filter(None, handlers)), timeout=5)
    assert asyncio.all_tasks() == before
