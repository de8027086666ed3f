"""Bring your own aio-pika exchanges: RabbitMQProducer(exchange, ...)."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from brokers.rabbitmq import RabbitMQ
from dispytch import (
    ConfigError,
    ConnectError,
    EmitRejected,
    EventBase,
    EventEmitter,
    Receipt,
)
from dispytch_rabbitmq import RabbitMQEventConfig

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


class Order(EventBase):
    __topic__ = "{topic}"
    __event_type__ = "order"
    topic: str = "orders"


@pytest.fixture(params=["plain", "robust"])
async def connection(
    own_rabbitmq: RabbitMQ, request: pytest.FixtureRequest
) -> "AsyncIterator[AbstractConnection]":
    import aio_pika

    connect = aio_pika.connect if request.param == "plain" else aio_pika.connect_robust
    connection = await connect(own_rabbitmq.url)
    yield connection
    await connection.close()


@pytest.fixture
def queue(own_rabbitmq: RabbitMQ) -> str:
    own_rabbitmq.declare_queue("orders")
    own_rabbitmq.read_queue("orders")
    return "orders"


async def test_one_exchange_takes_everything(
    connection: "AbstractConnection", own_rabbitmq: RabbitMQ, queue: str
) -> None:
    """With one exchange no event needs to name it, and it stays open afterwards."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel()
    exchange = await channel.declare_exchange("shop", "topic", durable=True)
    await (await channel.get_queue(queue)).bind(exchange, "#")
    async with EventEmitter(RabbitMQProducer(exchange), timeout=10) as emitter:
        await emitter.emit(Order())
        await emitter.emit(Order(), config=RabbitMQEventConfig(exchange="shop"))
        await emitter.ping()
        with pytest.raises(EmitRejected, match="'shop'"):
            await emitter.emit(Order(), config=RabbitMQEventConfig(exchange="other"))
    assert not channel.is_closed
    assert not connection.is_closed
    got = await asyncio.to_thread(own_rabbitmq.read_queue, queue, 2)
    assert [delivery.exchange for delivery in got] == ["shop", "shop"]


async def test_several_exchanges_are_chosen_by_name(
    connection: "AbstractConnection", own_rabbitmq: RabbitMQ, queue: str
) -> None:
    """The config names the exchange; naming none is an error that lists them."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel()
    exchanges: list[Any] = []
    for name in ("one", "two"):
        exchanges.append(await channel.declare_exchange(name, "fanout", durable=True))
        await (await channel.get_queue(queue)).bind(exchanges[-1])
    async with EventEmitter(RabbitMQProducer(*exchanges), timeout=10) as emitter:
        for name in ("two", "one"):
            await emitter.emit(Order(), config=RabbitMQEventConfig(exchange=name))
        with pytest.raises(EmitRejected, match="'one', 'two'"):
            await emitter.emit(Order())
        await emitter.ping()
    got = await asyncio.to_thread(own_rabbitmq.read_queue, queue, 2)
    assert [delivery.exchange for delivery in got] == ["two", "one"]


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
async def test_unroutable_event_is_rejected_on_any_channel(
    connection: "AbstractConnection", queue: str, raises: bool
) -> None:
    """Also where the channel was opened without on_return_raises."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel(on_return_raises=raises)
    producer = RabbitMQProducer(channel.default_exchange)
    async with EventEmitter(producer, timeout=10) as emitter:
        await emitter.emit(Order(topic=queue))
        for _ in range(2):
            with pytest.raises(EmitRejected, match="no queue"):
                await emitter.emit(Order(topic="nobody-reads-this"))
        await emitter.emit(Order(topic=queue))


async def test_one_bad_event_in_200_fails_alone(
    connection: "AbstractConnection", queue: str
) -> None:
    """The user's own channel is not closed by one event's mistake."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel()
    missing = await channel.get_exchange("missing", ensure=False)
    producer = RabbitMQProducer(channel.default_exchange, missing)
    good, bad = RabbitMQEventConfig(exchange=""), RabbitMQEventConfig(exchange="missing")
    foreign = RabbitMQEventConfig(exchange="", user_id="x")
    async with EventEmitter(producer, timeout=10) as emitter:
        configs = [good] * 99 + [bad, foreign] + [good] * 99
        results = await asyncio.gather(
            *(emitter.emit(Order(topic=queue), config=config) for config in configs),
            return_exceptions=True,
        )
    kinds = [type(result) for result in results]
    assert kinds == [Receipt] * 99 + [EmitRejected] * 2 + [Receipt] * 99
    assert not channel.is_closed


async def test_what_is_no_exchange_is_refused(connection: "AbstractConnection") -> None:
    """Mistakes are told when the producer is made."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel()
    wrong: Any = channel
    with pytest.raises(ConfigError, match="exchange"):
        RabbitMQProducer(wrong)
    with pytest.raises(ConfigError, match="at least one"):
        RabbitMQProducer()
    exchange: Any = channel.default_exchange
    with pytest.raises(ConfigError, match="two exchanges"):
        RabbitMQProducer(exchange, exchange)


async def test_channel_without_confirms_is_refused(connection: "AbstractConnection") -> None:
    """Without confirms no receipt would mean anything."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel(publisher_confirms=False)
    exchange: Any = channel.default_exchange
    with pytest.raises(ConfigError, match="confirms"):
        RabbitMQProducer(exchange)


async def test_owned_exchange_is_closed(connection: "AbstractConnection", queue: str) -> None:
    """owned=True hands the channel over; the connection stays the user's."""
    from dispytch_rabbitmq import RabbitMQProducer

    channel = await connection.channel()
    exchange: Any = channel.default_exchange
    async with EventEmitter(RabbitMQProducer(exchange, owned=True), timeout=10) as emitter:
        await emitter.emit(Order(topic=queue))
    assert channel.is_closed
    assert not connection.is_closed


async def test_closed_channel_is_told(own_rabbitmq: RabbitMQ, queue: str) -> None:
    """A plain channel that is closed stays so: each event is certainly not sent."""
    import aio_pika

    from dispytch_rabbitmq import RabbitMQProducer

    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        channel = await connection.channel()
        exchange: Any = channel.default_exchange
        emitter = EventEmitter(RabbitMQProducer(exchange), timeout=5)
        await emitter.start()
        await channel.close()
        with pytest.raises(EmitRejected, match="closed"):
            await emitter.emit(Order(topic=queue))
        await emitter.stop()
        with pytest.raises(ConnectError, match="closed"):
            await EventEmitter(RabbitMQProducer(exchange), timeout=5).start()


async def test_robust_channel_works_again_after_a_forced_close(
    own_rabbitmq: RabbitMQ, queue: str
) -> None:
    """What a robust connection brings back is used, with no help."""
    import aio_pika

    from dispytch_rabbitmq import RabbitMQProducer

    connection = await aio_pika.connect_robust(own_rabbitmq.url, reconnect_interval=1)
    channel = await connection.channel()
    exchange: Any = channel.default_exchange
    async with EventEmitter(RabbitMQProducer(exchange), timeout=20) as emitter:
        await emitter.emit(Order(topic=queue))
        await asyncio.to_thread(own_rabbitmq.close_all_connections)
        await emitter.emit(Order(topic=queue))
    await connection.close()
