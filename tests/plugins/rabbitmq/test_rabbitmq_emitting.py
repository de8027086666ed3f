"""What emitting to a real RabbitMQ puts on the wire, and what each outcome means."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from brokers.rabbitmq import RabbitMQ
from brokers.rabbitmq_access import Delivery, RabbitMQAccess
from dispytch import (
    EmitContext,
    EmitManyError,
    EmitRejected,
    EventBase,
    EventEmitter,
    Receipt,
)
from dispytch_rabbitmq import RabbitMQEventConfig

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


class Note(EventBase):
    __topic__ = "{queue}"
    __event_type__ = "note"
    __key__ = "{author}"

    queue: str
    author: str = "ann"
    text: str = ""


class Keyless(EventBase):
    __topic__ = "{queue}"
    __event_type__ = "keyless"

    queue: str


@pytest.fixture
async def emitter(rabbitmq_broker: RabbitMQAccess) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(rabbitmq_broker.url, timeout=10) as emitter:
        yield emitter


@pytest.fixture
def queue(rabbitmq_broker: RabbitMQAccess, unique_name: str) -> str:
    name = unique_name.replace(".", "-")
    rabbitmq_broker.declare_queue(name)
    return name


async def _delivered(
    emitter: EventEmitter, broker: RabbitMQAccess, queue: str, **settings: Any
) -> Delivery:
    config = RabbitMQEventConfig(**settings) if settings else None
    await emitter.emit(Keyless(queue=queue), config=config)
    (delivery,) = await asyncio.to_thread(broker.read_queue, queue, 1)
    return delivery


async def test_receipt_names_where_the_event_went(emitter: EventEmitter, queue: str) -> None:
    """A receipt has the exchange and the routing key."""
    event = Note(queue=queue)
    receipt = await emitter.emit(event)
    assert receipt == Receipt(
        event.id,
        queue,
        "rabbitmq",
        {"exchange": "", "routing_key": queue, "message_id": event.id},
    )


async def test_defaults_on_the_wire(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """An event without a config is persistent JSON with its own id and type, from now."""
    event = Note(queue=queue, text="hi")
    before = datetime.now(UTC).replace(microsecond=0)
    await emitter.emit(event)
    (delivery,) = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 1)
    sent = delivery.properties.pop("timestamp")
    assert before <= sent <= datetime.now(UTC)
    assert delivery.properties.pop("priority", 0) == 0
    assert delivery.properties == {
        "content_type": "application/json",
        "delivery_mode": 2,
        "message_id": event.id,
        "type": "note",
    }
    assert delivery.headers == {"x-dispytch-key": "ann"}
    assert b'"text":"hi"' in delivery.body


async def test_every_property_arrives(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """Each field of the config is the AMQP property of its name."""
    properties: dict[str, Any] = {
        "priority": 7,
        "content_type": "application/cloudevents+json",
        "content_encoding": "utf-8",
        "correlation_id": "request-1",
        "reply_to": "answers",
        "message_id": "m-1",
        "type": "renamed",
        "user_id": "guest",
        "app_id": "tests",
    }
    delivery = await _delivered(
        emitter,
        rabbitmq_broker,
        queue,
        **properties,
        delivery_mode="transient",
        expiration=60,
        timestamp=1_700_000_000,
    )
    got = dict(delivery.properties)
    assert float(got.pop("expiration")) in {60.0, 60_000.0}  # a bare client's own unit
    assert got.pop("timestamp") == datetime.fromtimestamp(1_700_000_000, UTC)
    assert got == properties | {"delivery_mode": 1}


async def test_every_kind_of_header_arrives_as_it_was(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """Headers come back equal: nothing is rounded, cut or dropped."""
    headers = {
        "text": "é" * 100,
        "bytes": b"\x00\xff",
        "int": -(2**63),
        "small": -1,
        "float": 0.1,
        "bool": True,
        "none": None,
        "decimal": Decimal("12.50"),
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "list": [1, "two", [3.5]],
        "dict": {"a": {"b": [None]}},
        "k" * 128: "longest name",
    }
    delivery = await _delivered(emitter, rabbitmq_broker, queue, headers=headers)
    assert delivery.headers == headers


async def test_middleware_headers_win_over_the_configs(
    rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """Headers of middleware travel, by key over those of the config."""

    async def middleware(
        ctx: EmitContext, call_next: Callable[[EmitContext], Awaitable[Receipt]]
    ) -> Receipt:
        ctx.headers["trace"] = b"t-1"
        ctx.headers["who"] = "middleware"
        return await call_next(ctx)

    url = rabbitmq_broker.url
    async with EventEmitter.from_url(url, middleware=[middleware], timeout=10) as emitter:
        delivery = await _delivered(
            emitter, rabbitmq_broker, queue, headers={"who": "config", "kept": 1}
        )
    assert delivery.headers == {"who": "middleware", "trace": b"t-1", "kept": 1}


async def test_copies_go_to_further_routing_keys(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """RabbitMQ's CC header works."""
    rabbitmq_broker.declare_queue(f"{queue}-copy")
    await _delivered(emitter, rabbitmq_broker, queue, headers={"CC": [f"{queue}-copy"]})
    assert len(await asyncio.to_thread(rabbitmq_broker.read_queue, f"{queue}-copy", 1)) == 1


async def test_expiration_is_in_seconds(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """An event of half a second is gone after it, one of a minute is not."""
    await emitter.emit(Note(queue=queue), config=RabbitMQEventConfig(expiration=0.2))
    later = datetime.now(UTC) + timedelta(minutes=1)
    kept = await emitter.emit(Note(queue=queue), config=RabbitMQEventConfig(expiration=later))
    deadline = time.monotonic() + 10
    while rabbitmq_broker.queue_size(queue) > 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    (delivery,) = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 1)
    assert delivery.properties["message_id"] == kept.event_id


async def test_exchange_routes_by_topic(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """The topic is the routing key at the exchange of the config."""
    rabbitmq_broker.declare_exchange(f"{queue}-x")
    rabbitmq_broker.bind(queue, f"{queue}-x", f"{queue}.#")

    class Deep(EventBase):
        __topic__ = f"{queue}.a.b"
        __event_type__ = "deep"
        __backend_config__ = RabbitMQEventConfig(exchange=f"{queue}-x")

    receipt = await emitter.emit(Deep())
    (delivery,) = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 1)
    assert (delivery.exchange, delivery.routing_key) == (f"{queue}-x", f"{queue}.a.b")
    assert receipt.details["exchange"] == f"{queue}-x"


async def test_unroutable_event_is_rejected(emitter: EventEmitter) -> None:
    """No queue for it: the event is rejected, and the broker dropped it."""
    with pytest.raises(EmitRejected, match="no queue"):
        await emitter.emit(Keyless(queue="nobody-reads-this"))


async def test_unroutable_event_that_may_be_dropped_has_a_receipt(emitter: EventEmitter) -> None:
    """With mandatory=False the broker confirms what it drops."""
    config = RabbitMQEventConfig(mandatory=False)
    await emitter.emit(Keyless(queue="nobody-reads-this"), config=config)


async def test_same_message_id_at_once_keeps_outcomes_apart(
    emitter: EventEmitter, queue: str
) -> None:
    """The client tells returned messages by their id: equal ones must not share a fate."""
    config = RabbitMQEventConfig(message_id="same")
    topics = [queue, "nobody-reads-this"] * 20
    results = await asyncio.gather(
        *(emitter.emit(Keyless(queue=topic), config=config) for topic in topics),
        return_exceptions=True,
    )
    kinds = [type(result) for result in results]
    assert kinds == [Receipt, EmitRejected] * 20


@pytest.mark.parametrize(
    ("settings", "topic", "match"),
    [
        ({"exchange": "no-such-exchange"}, None, "no-such-exchange"),
        ({"exchange": "{braces}"}, None, "exchange"),
        ({"exchange": "amq.rabbitmq.trace"}, None, "refused"),
        ({"user_id": "somebody"}, None, "user_id"),
        ({"expiration": datetime(2020, 1, 1, tzinfo=UTC)}, None, "deadline"),
        ({"expiration": datetime(2099, 1, 1, tzinfo=UTC)}, None, "seconds ahead"),
        ({"headers": {"big": "x" * 140_000}}, None, "frame"),
        ({}, "t" * 256, "256 bytes"),
        ({}, "é" * 128, "256 bytes"),
    ],
    ids=str,
)
async def test_what_can_not_be_published_is_rejected(
    emitter: EventEmitter, queue: str, settings: dict[str, Any], topic: str | None, match: str
) -> None:
    """It is certain that nothing was stored, and others are not disturbed."""
    with pytest.raises(EmitRejected, match=match) as caught:
        await emitter.emit(Keyless(queue=topic or queue), config=RabbitMQEventConfig(**settings))
    assert caught.value.__cause__ is caught.value.__context__ is None
    await emitter.emit(Keyless(queue=queue))


async def test_user_without_rights_is_rejected(own_rabbitmq: RabbitMQ) -> None:
    """Refused access is certain, for each of many at once, and names no user."""
    own_rabbitmq.declare_queue("closed")
    async with EventEmitter.from_url(own_rabbitmq.limited_url, timeout=10) as emitter:
        results = await asyncio.gather(
            *(emitter.emit(Note(queue="closed")) for _ in range(50)), return_exceptions=True
        )
    assert {type(result) for result in results} == {EmitRejected}
    assert "limited" not in str(results)
    assert own_rabbitmq.queue_size("closed") == 0


async def test_full_queue_that_rejects_is_a_rejection(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, unique_name: str
) -> None:
    """The broker's negative acknowledgement is told as one, and may pass."""
    name = unique_name.replace(".", "-")
    rabbitmq_broker.declare_queue(
        name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    results = await asyncio.gather(
        *(emitter.emit(Keyless(queue=name)) for _ in range(20)), return_exceptions=True
    )
    rejected = [result for result in results if isinstance(result, EmitRejected)]
    assert all(error.retriable and "Nack" in str(error) for error in rejected)
    stored = [result.event_id for result in results if isinstance(result, Receipt)]
    assert len(stored) + len(rejected) == 20
    got = await asyncio.to_thread(rabbitmq_broker.read_queue, name, len(stored))
    assert sorted(delivery.properties["message_id"] for delivery in got) == sorted(stored)
    assert len(rejected) > 10


async def test_batch_keeps_the_order_of_each_key(
    emitter: EventEmitter, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """emit_many pipelines keys, and puts the events of one in the queue in their order."""
    events = [Note(queue=queue, author=f"a{i % 7}", text=str(i)) for i in range(700)]
    receipts = await emitter.emit_many(events)
    assert [receipt.event_id for receipt in receipts] == [event.id for event in events]
    got = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 700)
    for author in range(7):
        ids = [event.id for event in events if event.author == f"a{author}"]
        mine = [d for d in got if d.headers["x-dispytch-key"] == f"a{author}"]
        assert [delivery.properties["message_id"] for delivery in mine] == ids


async def test_batch_holds_back_what_follows_a_failure(emitter: EventEmitter, queue: str) -> None:
    """After a failure later events of its key are not sent; other keys are."""
    events = [
        Note(queue=queue, author="a"),
        Note(queue="nobody-reads-this", author="a"),
        Note(queue=queue, author="a"),
        Note(queue=queue, author="b"),
    ]
    with pytest.raises(EmitManyError) as caught:
        await emitter.emit_many(events)
    kinds = [type(result) for result in caught.value.results]
    assert kinds == [Receipt, EmitRejected, EmitRejected, Receipt]
    assert "not sent" in str(caught.value.results[2])


async def test_flush_waits_for_what_is_under_way(emitter: EventEmitter, queue: str) -> None:
    """After a flush every emit has its outcome."""
    under_way = [asyncio.create_task(emitter.emit(Note(queue=queue))) for _ in range(50)]
    await asyncio.sleep(0)
    await emitter.flush()
    await asyncio.sleep(0)
    assert all(task.done() for task in under_way)
    await asyncio.gather(*under_way)
