"""Receiving from a real RabbitMQ: what arrives, who gets it, and how it is settled."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from brokers.rabbitmq import RabbitMQ
from brokers.rabbitmq_access import RabbitMQAccess
from dispytch import (
    ConnectError,
    Consumer,
    Delivery,
    EventBase,
    EventEmitter,
    EventListener,
    SettleError,
)
from dispytch_rabbitmq import RabbitMQEventConfig

if TYPE_CHECKING:
    from tests.plugins.rabbitmq.conftest import OpenConsumer

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def emitter(rabbitmq_broker: RabbitMQAccess) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(rabbitmq_broker.url, timeout=10) as emitter:
        yield emitter


@pytest.fixture
def url(rabbitmq_broker: RabbitMQAccess) -> str:
    return rabbitmq_broker.url


async def take(consumer: Consumer, count: int, within: float = 20.0) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(got) < count:
            got += await consumer.receive(count - len(got))
    return got


async def nothing_arrives(consumer: Consumer, within: float = 0.5) -> None:
    with pytest.raises(TimeoutError):
        await take(consumer, 1, within)


async def backlog_becomes(consumer: Consumer, count: int) -> None:
    deadline = time.monotonic() + 10
    while await consumer.backlog() != count:
        assert time.monotonic() < deadline, await consumer.backlog()
        await asyncio.sleep(0.05)


async def test_delivery_has_what_was_emitted(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """Topic, key, payload and headers arrive; values that are no text become readable bytes."""
    consumer = await open_consumer(url, unique_name)
    headers = {"who": "me", "raw": b"\xff", "n": 5, "yes": True, "list": [1, "x"], "none": None}
    event = numbered(to=unique_name, lane="lane-1", number=7)
    await emitter.emit(event, config=RabbitMQEventConfig(headers=headers))
    (delivery,) = await take(consumer, 1)
    assert (delivery.topic, delivery.key, delivery.attempt) == (unique_name, "lane-1", 1)
    assert event.id.encode() in delivery.payload
    assert dict(delivery.headers) == {
        "who": b"me",
        "raw": b"\xff",
        "n": b"5",
        "yes": b"true",
        "list": b'[1, "x"]',
        "none": b"",
    }
    await delivery.ack()


async def test_every_group_gets_every_event_once(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """An emitter and several groups with one plain URL meet; a group's members share."""
    first = await open_consumer(url, unique_name, group="one")
    members = [await open_consumer(url, unique_name, group="two", ordered=False) for _ in "ab"]
    receipts = await emitter.emit_many([numbered(to=unique_name, lane=str(n)) for n in range(40)])
    assert {receipt.details["exchange"] for receipt in receipts} == {"dispytch"}
    assert len(await take(first, 40)) == 40
    shared: list[Delivery] = []

    async def drain(member: Consumer) -> int:
        count = 0
        while len(shared) < 40:
            got = await member.receive(10)
            shared.extend(got)
            count += len(got)
            for delivery in got:
                await delivery.ack()
        return count

    tasks = [asyncio.create_task(drain(member)) for member in members]
    await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len({delivery.payload for delivery in shared}) == len(shared) == 40


async def test_events_wait_for_a_group_that_is_away(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """What is emitted while nobody of a group listens is there when one comes back."""
    consumer = await open_consumer(url, unique_name)
    await consumer.stop()
    await emitter.emit(numbered(to=unique_name))
    again = await open_consumer(url, unique_name)
    await (await take(again, 1))[0].ack()


async def test_pattern_matches_segments(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", unique_name: str
) -> None:
    """Placeholders stand for one segment, a last star for all that follow."""
    one = await open_consumer(url, f"{unique_name}.{{who}}.events", group="one")
    rest = await open_consumer(url, f"{unique_name}.*", group="rest")
    for to in ("a.events", "b.events", "a.b.events"):

        class Dotted(EventBase):
            __topic__ = f"{unique_name}.{to}"
            __event_type__ = "dotted"

        await emitter.emit(Dotted())
    got = {delivery.topic.removeprefix(unique_name) for delivery in await take(one, 2)}
    assert got == {".a.events", ".b.events"}
    await nothing_arrives(one)
    assert len(await take(rest, 3)) == 3


async def test_without_a_group_only_what_comes_later_arrives(
    emitter: EventEmitter, own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """Each listener without a group gets what is emitted from now on, and leaves nothing behind."""
    before = own_rabbitmq.ctl("list_queues", "name")
    url = own_rabbitmq.url
    consumers = [await open_consumer(url, "news", group=None) for _ in range(2)]
    async with EventEmitter.from_url(url, timeout=10) as emitting:
        await emitting.emit(numbered(to="news", number=2))
        for consumer in consumers:
            (delivery,) = await take(consumer, 1)
            assert b'"number":2' in delivery.payload
            assert delivery.topic == "news"
            await delivery.nack(0.2)
            (delivery,) = await take(consumer, 1)
            assert delivery.attempt == 2
            await delivery.ack()
    for consumer in consumers:
        await consumer.stop()
    assert own_rabbitmq.ctl("list_queues", "name") == before


async def test_acknowledged_events_are_gone_and_others_come_again(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """Stopping tells every acknowledgement; what is not settled comes to the next consumer."""
    consumer = await open_consumer(url, unique_name)
    await emitter.emit_many([numbered(to=unique_name, number=n) for n in range(200)])
    got = await take(consumer, 200)
    for number, delivery in enumerate(got):
        if number % 3:
            await delivery.ack()
    await consumer.stop()
    again = await open_consumer(url, unique_name)
    left = await take(again, 67)
    assert [one.payload for one in left] == [one.payload for one in got[::3]]
    assert {one.attempt for one in left} == {2}
    for delivery in left:
        await delivery.ack()
    await backlog_becomes(again, 0)


async def test_acknowledging_in_any_order_settles_each_once(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """Acks gathered into one frame never cover what is still open, given back ones included."""
    consumer = await open_consumer(url, unique_name)
    await emitter.emit_many([numbered(to=unique_name, number=n) for n in range(90)])
    got = await take(consumer, 90)
    for part in (got[1::3], got[2::3]):
        for delivery in reversed(part):
            await delivery.ack()
        await asyncio.sleep(0)
    for delivery in got[0:30:3]:
        await delivery.nack()
    again = await take(consumer, 10)
    assert {one.payload for one in again} == {one.payload for one in got[0:30:3]}
    assert {one.attempt for one in again} == {2}
    for delivery in (*got[30::3], *again):
        await delivery.ack()
    await backlog_becomes(consumer, 0)
    await consumer.ping()


async def test_settling_twice_is_told(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """A second settling is an error of its caller, and does not disturb the channel."""
    consumer = await open_consumer(url, unique_name)
    await emitter.emit(numbered(to=unique_name))
    (delivery,) = await take(consumer, 1)
    await delivery.ack()
    for settle in (delivery.ack, delivery.nack, lambda: delivery.nack(1)):
        with pytest.raises(SettleError, match="already"):
            await settle()
    await emitter.emit(numbered(to=unique_name))
    await (await take(consumer, 1))[0].ack()


async def test_prefetch_is_what_the_listener_holds(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """The broker sends no more than `max_held` until something is settled."""
    consumer = await open_consumer(url, unique_name, held=5)
    await emitter.emit_many([numbered(to=unique_name, number=n) for n in range(20)])
    got = await take(consumer, 5)
    await nothing_arrives(consumer)
    assert await consumer.backlog() == 20
    for delivery in got:
        await delivery.ack()
    assert len(await take(consumer, 5)) == 5


async def test_cancelled_receive_loses_nothing(
    emitter: EventEmitter, url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """Cancelled at any moment, the next receive has what came."""
    consumer = await open_consumer(url, unique_name)
    sending = asyncio.create_task(
        emitter.emit_many([numbered(to=unique_name, lane=str(n), number=n) for n in range(300)])
    )
    got: list[Delivery] = []
    for _ in range(2000):
        if len(got) == 300:
            break
        task = asyncio.create_task(consumer.receive(7))
        await asyncio.sleep(0.001)
        if not task.cancel():
            got += await task
            continue
        with contextlib.suppress(asyncio.CancelledError):
            got += await task
    got += await take(consumer, 300 - len(got)) if len(got) < 300 else []
    await sending
    assert len({delivery.payload for delivery in got}) == 300


async def test_lost_channel_marks_its_deliveries(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """Closed from outside, deliveries are lost, settling says so, and they come again by itself."""
    consumer = await open_consumer(own_rabbitmq.url, "lost")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=20) as emitter:
        await emitter.emit_many([numbered(to="lost", number=n) for n in range(3)])
        got = await take(consumer, 1)
        await asyncio.to_thread(own_rabbitmq.close_all_connections)
        deadline = time.monotonic() + 10
        while not got[0].lost:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        with pytest.raises(SettleError, match="again"):
            await got[0].ack()
        again = await take(consumer, 3)
        assert [one.attempt for one in again] == [2, 2, 2]
        await consumer.ping()
        await emitter.emit(numbered(to="lost", number=3))
        (new,) = await take(consumer, 1)
        assert b'"number":3' in new.payload
        for delivery in (*again, new):
            await delivery.ack()


async def test_deleted_queue_is_declared_and_consumed_again(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """A queue deleted from outside ends nothing: new events arrive."""
    consumer = await open_consumer(own_rabbitmq.url, "gone", "stays")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit(numbered(to="gone"))
        await (await take(consumer, 1))[0].ack()
        await asyncio.to_thread(own_rabbitmq.delete_queue, "g.gone")
        deadline = time.monotonic() + 15
        while "g.gone" not in own_rabbitmq.ctl("list_queues", "name"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        for to in ("gone", "stays"):
            await emitter.emit(numbered(to=to))
        assert {one.topic for one in await take(consumer, 2)} == {"gone", "stays"}


async def test_without_a_group_it_listens_again_after_a_lost_connection(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """A queue of its own goes with the connection, and a new one takes its place."""
    consumer = await open_consumer(own_rabbitmq.url, "fleeting", group=None)
    await asyncio.to_thread(own_rabbitmq.close_all_connections)
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        deadline = time.monotonic() + 15
        receiving = asyncio.create_task(consumer.receive(1))
        while not receiving.done():
            assert time.monotonic() < deadline
            with contextlib.suppress(Exception):
                await emitter.emit(numbered(to="fleeting"))
            await asyncio.wait((receiving,), timeout=0.2)
        assert (await receiving)[0].topic == "fleeting"


async def test_stop_leaves_no_tasks(
    url: str, open_consumer: "OpenConsumer", numbered: Any, unique_name: str
) -> None:
    """After a stop nothing of it runs, and receiving says that it is stopped."""
    before = asyncio.all_tasks()
    consumer = await open_consumer(url, unique_name)
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit_many([numbered(to=unique_name, number=n) for n in range(5)])
    (first, *_) = await take(consumer, 5)
    await first.nack(1)
    await consumer.stop()
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=1)
    assert not left
    for use in (consumer.receive(1), consumer.ping()):
        with pytest.raises(ConnectError, match="not"):
            await use
    assert await consumer.backlog() is None


def test_listener_that_was_stopped_starts_again_also_in_another_loop(
    url: str, unique_name: str
) -> None:
    """It handles what comes then."""

    class Plain(EventBase):
        __topic__ = unique_name
        __event_type__ = "plain"

    handled = []
    listener = EventListener.from_url(url, group="again")

    @listener.handler(Plain)
    async def note(event: Plain) -> None:
        handled.append(event.id)
        await listener.stop()

    async def once() -> None:
        async with asyncio.timeout(30), EventEmitter.from_url(url) as emitter:
            await listener.start()
            await emitter.emit(Plain())
            await listener.run()

    for count in (1, 2):
        asyncio.run(once())
        assert len(handled) == count
