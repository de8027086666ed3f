"""The harness keeps its promises about RabbitMQ."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from brokers.rabbitmq import VHOST, RabbitMQ
from brokers.rabbitmq_access import RabbitMQAccess

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


@contextlib.asynccontextmanager
async def _connection(
    url: str, context: ssl.SSLContext | None = None
) -> "AsyncIterator[AbstractConnection]":
    import aio_pika

    connection = await aio_pika.connect(url, ssl_context=context)
    try:
        yield connection
    finally:
        await connection.close()


async def _send(channel: "AbstractChannel", queue: str, body: bytes = b"v") -> None:
    import aio_pika

    message = aio_pika.Message(body, delivery_mode=2, message_id="m", type="t", headers={"a": 1})
    await channel.default_exchange.publish(message, queue)


async def test_what_was_sent_can_be_read_in_another_process(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.declare_queue("all")
    own_rabbitmq.declare_exchange("events")
    own_rabbitmq.bind("all", "events", "some.*")
    async with _connection(own_rabbitmq.url) as connection:
        await _send(await connection.channel(), "all")
    assert own_rabbitmq.queue_size("all") == 1
    (delivery,) = own_rabbitmq.read_queue("all", 1)
    assert (delivery.exchange, delivery.routing_key) == ("", "all")
    assert (delivery.body, delivery.headers, delivery.redelivered) == (b"v", {"a": 1}, False)
    wanted = {"message_id": "m", "type": "t", "delivery_mode": 2}
    assert delivery.properties.items() >= wanted.items()
    own_rabbitmq.delete_queue("all")


async def test_hosts_and_users_with_awkward_names(own_rabbitmq: RabbitMQ) -> None:
    import aiormq

    async with _connection(own_rabbitmq.vhost_url):
        assert VHOST in own_rabbitmq.ctl("list_connections", "vhost")
    async with _connection(own_rabbitmq.limited_url) as connection:
        channel = await connection.channel()
        with pytest.raises(aiormq.ChannelAccessRefused):
            await channel.declare_queue("forbidden")
    own_rabbitmq.add_user("-new/user", "-p@ss: word")
    own_rabbitmq.set_permissions("-new/user", write="")
    async with _connection(
        own_rabbitmq.url_for(user="-new/user", password="-p@ss: word")
    ) as connection:
        channel = await connection.channel()
        await channel.declare_queue("allowed", auto_delete=True)
        with pytest.raises(aiormq.ChannelAccessRefused):
            await _send(channel, "allowed")


async def test_tls_and_the_wrong_authority(own_rabbitmq: RabbitMQ) -> None:
    from aiormq.exceptions import AMQPConnectionError

    certificates = own_rabbitmq.certificates
    async with _connection(own_rabbitmq.tls_url, certificates.context(with_client=True)):
        pass
    async with _connection(own_rabbitmq.tls_url, certificates.context()):
        pass
    with pytest.raises((AMQPConnectionError, ssl.SSLError)):
        async with _connection(own_rabbitmq.tls_url, certificates.context(wrong_ca=True)):
            pass


async def test_a_memory_alarm_blocks_publishing(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.declare_queue("blocked")
    async with _connection(own_rabbitmq.url) as connection:
        channel = await connection.channel()
        with own_rabbitmq.memory_alarm():
            sending = asyncio.create_task(_send(channel, "blocked"))
            done, _ = await asyncio.wait([sending], timeout=0.3)
            assert not done
        await asyncio.wait_for(sending, 10)


async def test_closing_all_connections_reaches_the_clients(own_rabbitmq: RabbitMQ) -> None:
    async with _connection(own_rabbitmq.url) as connection:
        closed: asyncio.Future[BaseException | None] = asyncio.Future()
        connection.close_callbacks.add(lambda _, error: closed.set_result(error))
        await asyncio.to_thread(own_rabbitmq.close_all_connections, "told so")
        assert "told so" in str(await asyncio.wait_for(closed, 10))


async def test_clients_of_the_proxy_stay_behind_it(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.declare_queue("proxied")
    with own_rabbitmq.proxy() as proxy:
        async with _connection(own_rabbitmq.url_for(port=proxy.port)) as connection:
            await _send(await connection.channel(), "proxied", b"x" * 5000)
        assert proxy.connections == 1
        assert proxy.bytes_up > 5000


async def test_data_survives_a_kill_and_a_restart(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.declare_queue("kept")
    await asyncio.to_thread(own_rabbitmq.write_declarations)
    async with _connection(own_rabbitmq.url) as connection:
        await _send(await connection.channel(), "kept")
    await asyncio.to_thread(own_rabbitmq.kill)
    assert own_rabbitmq.processes() == set()
    assert not own_rabbitmq.usable()
    await asyncio.to_thread(own_rabbitmq.start)
    assert own_rabbitmq.queue_size("kept") == 1
    await asyncio.to_thread(own_rabbitmq.restart)
    assert [delivery.body for delivery in own_rabbitmq.read_queue("kept")] == [b"v"]


def test_a_frozen_broker_takes_connections_and_does_not_answer(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.freeze()
    assert own_rabbitmq.running
    with pytest.raises(TimeoutError):
        own_rabbitmq._ask(0.3)
    own_rabbitmq.heal()
    assert own_rabbitmq.usable()


def test_stopping_leaves_nothing(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.stop()
    assert not own_rabbitmq.running
    assert own_rabbitmq.processes() == set()


def test_the_shared_broker_is_there(rabbitmq_broker: RabbitMQAccess, unique_name: str) -> None:
    rabbitmq_broker.declare_queue(unique_name, arguments={"x-queue-type": "quorum"})
    assert rabbitmq_broker.queue_size(unique_name) == 0
    rabbitmq_broker.delete_queue(unique_name)
