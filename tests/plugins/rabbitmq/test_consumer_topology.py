"""What subscribing declares, what it refuses, and what happens where it may not declare."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from brokers.rabbitmq import RabbitMQ
from dispytch import (
    ConfigError,
    ConnectError,
    Consumer,
    Delivery,
    Event,
    EventEmitter,
    EventListener,
    Outgoing,
    Subscription,
)
from dispytch.plugins import backend_for_url
from dispytch.url import connect

if TYPE_CHECKING:
    from tests.plugins.rabbitmq.conftest import OpenConsumer

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


async def take(consumer: Consumer, count: int, within: float = 20.0) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(got) < count:
            got += await consumer.receive(count - len(got))
    return got


def listed(broker: RabbitMQ, *columns: str) -> dict[str, list[str]]:
    lines = broker.ctl("list_queues", *columns).splitlines()
    return {line.split("\t")[0]: line.split("\t")[1:] for line in lines}


def bindings(broker: RabbitMQ) -> set[tuple[str, str, str]]:
    lines = broker.ctl("list_bindings", "source_name", "destination_name", "routing_key")
    found = (line.split("\t") for line in lines.splitlines())
    return {(source, queue, key) for source, queue, key in found if source}


async def test_queues_and_bindings_follow_the_subscriptions(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """One durable quorum queue for each group and topic, bound by the pattern; dead letters too."""
    await open_consumer(
        own_rabbitmq.url, "orders", "user.{id}.events", "logs.*", group="a.b", ordered=True
    )
    await open_consumer(own_rabbitmq.url, "orders", group="loose", ordered=False)
    await open_consumer(own_rabbitmq.url, "größe%", group="ümlaut")
    queues = listed(own_rabbitmq, "name", "type", "durable", "arguments")
    assert {
        "a%2Eb.orders",
        "a%2Eb.user.*.events",
        "a%2Eb.logs.#",
        "loose.orders",
        "orders.dlq",
        "user._.events.dlq",
        "logs.__.dlq",
        "ümlaut.größe%",
    } <= queues.keys()
    del queues["name"]  # the header
    assert {(kind, durable) for kind, durable, _ in queues.values()} == {("quorum", "true")}
    single = '{"x-single-active-consumer",true}'
    assert single in queues["a%2Eb.orders"][2]
    assert single not in queues["loose.orders"][2]
    assert "x-delivery-limit" not in queues["orders.dlq"][2]
    assert bindings(own_rabbitmq) >= {
        ("dispytch", "a%2Eb.orders", "orders"),
        ("dispytch", "a%2Eb.user.*.events", "user.*.events"),
        ("dispytch", "a%2Eb.logs.#", "logs.#"),
        ("dispytch", "loose.orders", "orders"),
    }


async def test_queue_with_other_arguments_is_told(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """The error names the queue, what differs, and what to do."""
    first = await open_consumer(own_rabbitmq.url, "differs", ordered=True)
    await first.stop()
    with pytest.raises(ConfigError, match=r"'g.differs'.*x-single-active-consumer.*delete"):
        await open_consumer(own_rabbitmq.url, "differs", ordered=False)
    with pytest.raises(ConfigError, match=r"'g.differs'.*x-delivery-limit.*'3'.*'20'"):
        await open_consumer(f"{own_rabbitmq.url}?delivery_limit=3", "differs")
    own_rabbitmq.declare_queue("g.classic")
    with pytest.raises(ConfigError, match=r"'g\.classic'"):
        await open_consumer(own_rabbitmq.url, "classic")


@pytest.mark.parametrize(
    ("topic", "group", "match"),
    [
        ("t" * 200, "g" * 100, "bytes long"),
        ("é" * 120, "g", "bytes long"),
        ("t" * 250 + ".dlq", "g", "bytes long"),
        ("orders.#", "g", "wildcard"),
    ],
    ids=["group and topic", "bytes", "dead letters", "wildcard"],
)
async def test_subscription_that_can_not_work_is_refused(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", topic: str, group: str, match: str
) -> None:
    """Names that AMQP has no room for are refused before anything is declared."""
    before = listed(own_rabbitmq, "name")
    with pytest.raises(ConfigError, match=match):
        await open_consumer(own_rabbitmq.url, topic, group=group)
    assert listed(own_rabbitmq, "name") == before


async def test_listening_needs_an_exchange(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """AMQP's default exchange can't be subscribed to, and the error says so."""
    with pytest.raises(ConfigError, match="exchange"):
        await open_consumer(f"{own_rabbitmq.url}?exchange=", "orders")


async def test_named_exchange_is_used_by_both_sides(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """Emitter and listener with one URL meet at the exchange that it names."""
    url = f"{own_rabbitmq.url}?exchange=shop"
    consumer = await open_consumer(url, "sold")
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        receipt = await emitter.emit(numbered(to="sold"))
    assert receipt.details["exchange"] == "shop"
    assert (await take(consumer, 1))[0].topic == "sold"


async def test_without_declaring_everything_must_be_there(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """`declare=false` declares nothing, and works with what a first listener declared."""
    url = f"{own_rabbitmq.url}?declare=false"
    with pytest.raises(ConnectError, match="provided") as caught:
        await open_consumer(url, "provided")
    assert not caught.value.retriable
    assert "g.provided" not in listed(own_rabbitmq, "name")
    await (await open_consumer(own_rabbitmq.url, "provided")).stop()
    consumer = await open_consumer(url, "provided")
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        await emitter.emit(numbered(to="provided"))
    assert len(await take(consumer, 1)) == 1


async def test_refused_access_is_told_without_the_user(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A user without rights is no use to try again with, and is not named."""
    with pytest.raises(ConnectError) as caught:
        await open_consumer(own_rabbitmq.limited_url, "secret")
    assert not caught.value.retriable
    chain = repr((caught.value, caught.value.__cause__, caught.value.__context__))
    assert "limited" not in chain


async def test_consumer_refused_for_good_says_so(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A login withdrawn while consuming ends the waiting: nothing will ever come."""
    own_rabbitmq.add_user("leaving", "leaving")
    own_rabbitmq.set_permissions("leaving")
    url = own_rabbitmq.url_for(user="leaving", password="leaving")
    consumer = await open_consumer(f"{url}?reconnect_interval=0.1", "withdrawn")
    receiving = asyncio.create_task(consumer.receive(1))
    await asyncio.to_thread(own_rabbitmq.ctl, "delete_user", "leaving")
    await asyncio.to_thread(own_rabbitmq.close_all_connections)
    with pytest.raises(ConnectError, match="refused") as caught:
        async with asyncio.timeout(20):
            await receiving
    assert not caught.value.retriable
    with pytest.raises(ConnectError, match="not connected"):
        await consumer.ping()


async def test_second_subscribing_is_refused(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A consumer belongs to one listener; a mistake must not cost its connection."""
    consumer = await open_consumer(own_rabbitmq.url, "once")
    with pytest.raises(ConfigError, match="already"):
        await consumer.subscribe([Subscription("other", "g")])
    await consumer.ping()


async def test_consumer_starts_again_after_a_stop(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """Stopped and started it is as new: subscribed to nothing."""
    consumer = await open_consumer(own_rabbitmq.url, "restarts")
    await _publish(own_rabbitmq.url, "restarts")
    await take(consumer, 1)
    await consumer.stop()
    await consumer.start()
    await consumer.subscribe([Subscription("restarts", "g")])
    (delivery,) = await take(consumer, 1)
    await delivery.ack()


# Dead letters


async def _send_dead(url: str, *outs: Outgoing) -> list[Any]:
    backend = backend_for_url(url)
    assert backend.connection is not None
    producer = backend.make_producer(connect(url, backend.connection))
    await producer.start()
    try:
        return [await producer.send_dead_letter(out) for out in outs]
    finally:
        await producer.stop()


async def test_dead_letters_are_kept_without_a_subscriber(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A dead letter has a durable queue at once, and comes with key and headers as they were."""
    out = Outgoing(
        "id-1", "kind", "kept.dlq", b"\xff", "k\udcff", None, {"why": "because", "raw": b"\xff"}
    )
    details = await _send_dead(own_rabbitmq.url, out, out)
    assert details[0] == {"exchange": "", "routing_key": "kept.dlq", "message_id": "id-1"}
    await asyncio.to_thread(own_rabbitmq.restart)
    consumer = await open_consumer(own_rabbitmq.url, "kept.dlq")
    for delivery in await take(consumer, 2):
        assert (delivery.topic, delivery.payload, delivery.key) == ("kept.dlq", b"\xff", "k\udcff")
        assert dict(delivery.headers) == {"why": b"because", "raw": b"\xff"}


async def test_dead_letter_queue_deleted_meanwhile_is_declared_again(
    own_rabbitmq: RabbitMQ,
) -> None:
    """A queue that was there once is not taken for granted."""
    url = own_rabbitmq.url
    backend = backend_for_url(url)
    assert backend.connection is not None
    producer = backend.make_producer(connect(url, backend.connection))
    await producer.start()
    out = Outgoing("id-1", "kind", "fleeting.dlq", b"x")
    for _ in range(2):
        await producer.send_dead_letter(out)
        await asyncio.to_thread(own_rabbitmq.delete_queue, "fleeting.dlq")
    await producer.send_dead_letter(out)
    await producer.stop()
    assert own_rabbitmq.queue_size("fleeting.dlq") == 1


async def test_consumer_has_a_producer_for_dead_letters(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A listener that is given a consumer alone can still dead-letter."""
    consumer = await open_consumer(own_rabbitmq.url, "alone")
    producer = consumer.dead_letter_producer()
    await producer.start()
    await producer.send_dead_letter(Outgoing("id", "kind", "alone.dlq", b"x"))
    await producer.stop()
    assert own_rabbitmq.queue_size("alone.dlq") == 1


async def test_looking_at_dead_letters_loses_none(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """Received and left unsettled any number of times, they stay, whatever group looks."""
    await _send_dead(own_rabbitmq.url, *(Outgoing(str(n), "k", "look.dlq", b"x") for n in range(5)))
    for look in range(30):
        consumer = await open_consumer(own_rabbitmq.url, "look.dlq", group=[None, "g"][look % 2])
        assert len(await take(consumer, 5)) == 5
        await consumer.stop()
    assert own_rabbitmq.queue_size("look.dlq") == 5


@pytest.mark.parametrize(("topic", "dead"), [("poison", "poison"), ("p.{x}.q", "p._.q")])
async def test_event_that_never_settles_is_dead_lettered_by_the_broker(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", topic: str, dead: str
) -> None:
    """What kills every consumer that takes it is bounded by the delivery limit, and kept."""
    url = f"{own_rabbitmq.url}?delivery_limit=2"
    real = topic.replace("{x}", "1")
    for attempt in (1, 2, 3):
        consumer = await open_consumer(url, topic)
        if attempt == 1:
            await _publish(own_rabbitmq.url, real)
        (delivery,) = await take(consumer, 1)
        assert delivery.attempt == attempt
        await consumer.stop()
    deadline = time.monotonic() + 10
    while own_rabbitmq.queue_size(f"{dead}.dlq") != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    letters = await open_consumer(url, f"{dead}.dlq")
    (letter,) = await take(letters, 1)
    headers = dict(letter.headers)
    assert headers["x-dispytch-dlq-reason"].endswith(b"delivery_limit")
    assert headers["x-dispytch-dlq-topic"] == real.encode()
    assert headers["x-dispytch-dlq-group"] == b"g"


async def _publish(url: str, topic: str, payload: bytes = b"{}") -> None:
    backend = backend_for_url(url)
    assert backend.connection is not None
    producer = backend.make_producer(connect(url, backend.connection))
    await producer.start()
    await producer.send_message(Outgoing("id", "kind", topic, payload))
    await producer.stop()


async def test_one_topic_subscribed_twice_has_one_queue(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """Patterns that differ in their names only share a queue: an event comes once."""
    consumer = await open_consumer(own_rabbitmq.url, "twice.{a}", "twice.{b}", "twice.{c}")
    await _publish(own_rabbitmq.url, "twice.x")
    assert len(await take(consumer, 1)) == 1
    assert await consumer.backlog() == 1


async def test_patterns_that_overlap_tell_whom_each_copy_is_for(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """An event that two subscriptions match comes once for each of them."""
    consumer = await open_consumer(own_rabbitmq.url, "over.{who}", "over.*", "over.lap")
    await _publish(own_rabbitmq.url, "over.lap")
    got = await take(consumer, 3)
    assert {one.topic for one in got} == {"over.lap"}
    assert {one.via for one in got} == {("over.{who}",), ("over.*",), ("over.lap",)}


async def test_what_only_the_brokers_wildcards_match_is_left_out(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer"
) -> None:
    """A placeholder for a part of a segment gets no other segments, and they don't pile up."""
    consumer = await open_consumer(own_rabbitmq.url, "part.v{n}")
    for topic in ("part.x", "part.v1"):
        await _publish(own_rabbitmq.url, topic)
    (delivery,) = await take(consumer, 1)
    assert (delivery.topic, delivery.via) == ("part.v1", ("part.v{n}",))
    assert await consumer.backlog() == 1


async def test_listener_runs_each_handler_once_where_patterns_overlap(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """Two handlers whose patterns both match an event run once each."""
    ran: list[str] = []
    both = asyncio.Event()
    listener = EventListener.from_url(own_rabbitmq.url, group=unique_name)

    async def note(name: str) -> None:
        ran.append(name)
        if len(ran) >= 3:
            both.set()

    @listener.handler(topic="runs.{who}", event="kind")
    async def by_pattern(event: Event[Anything]) -> None:
        await note("pattern" if event.id == "1" else "last")

    @listener.handler(topic="runs.once", event="kind")
    async def by_name(event: Event[Anything]) -> None:
        await note("name")

    body = b'{"id":"%d","type":"kind","body":{},"timestamp":1}'
    async with listener:
        await _publish(own_rabbitmq.url, "runs.once", body % 1)
        await _publish(own_rabbitmq.url, "runs.other", body % 2)
        async with asyncio.timeout(10):
            await both.wait()
    assert sorted(ran) == ["last", "name", "pattern"]


class Anything(BaseModel):
    """Any body."""
