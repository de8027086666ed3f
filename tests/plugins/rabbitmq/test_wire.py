"""Publishing on a channel without a task per message: each is told what became of it, and it alone.

What the broker says is also put into the client's hands here, where a real one would say it only
now and then.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from uuid import uuid4

import pytest

from brokers.rabbitmq import RabbitMQ
from brokers.rabbitmq_access import RabbitMQAccess
from dispytch import EmitRejected, EmitUnknown, EventBase, EventEmitter, Receipt

pytest.importorskip("aiormq")

import aiormq
from aiormq import spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from dispytch_rabbitmq.properties import Message, encode_fields
from dispytch_rabbitmq.wire import Outcome, Wire

pytestmark = pytest.mark.rabbitmq

NOWHERE = "nobody-reads-this"


class Note(EventBase):
    __topic__ = "{queue}"
    __event_type__ = "note"

    queue: str
    text: str = ""


def message_to(queue: str, body: bytes = b"{}", message_id: str | None = None) -> Message:
    message_id = message_id or uuid4().hex
    flags, fields = encode_fields(delivery_mode=2, message_id=message_id)
    properties = flags.to_bytes(2) + fields
    return Message("", queue, body, message_id, None, properties, mandatory=True, header_size=4)


def join(publishing: Coroutine[Any, Any, Outcome]) -> "asyncio.Future[Outcome]":
    """Have a message join its batch, now; the client's writer has not had its turn."""
    waits: asyncio.Future[Outcome] = publishing.send(None)
    publishing.close()
    return waits


@pytest.fixture
def queue(rabbitmq_broker: RabbitMQAccess, unique_name: str) -> str:
    rabbitmq_broker.declare_queue(unique_name)
    return unique_name


@pytest.fixture
async def channel(rabbitmq_broker: RabbitMQAccess) -> AsyncIterator[Any]:
    async with aiormq.connect(rabbitmq_broker.url) as connection:
        yield await connection.channel(on_return_raises=True)


@pytest.fixture
async def deaf(own_rabbitmq: RabbitMQ) -> AsyncIterator[Any]:
    """A channel that hears nothing of its broker but what the test puts into its `frames`."""
    with own_rabbitmq.proxy() as proxy:
        async with aiormq.connect(own_rabbitmq.url_for(port=proxy.port)) as connection:
            channel = await connection.channel(on_return_raises=True)
            proxy.black_hole()
            yield channel
            proxy.reset()


async def hear(channel: Any, *frames: Any) -> None:
    """Have the client hear this, and all that waits for it go on."""
    for frame in frames:
        await channel.frames.put((0, frame))
    await channel.frames.join()
    for _ in range(10):  # turns of the loop; it takes three or four
        await asyncio.sleep(0)


def returned(message: Message) -> tuple[Any, Any, Any]:
    properties = spec.Basic.Properties(message_id=message.id)
    header = ContentHeader(body_size=len(message.body), properties=properties)
    return spec.Basic.Return(312, "NO_ROUTE", "", ""), header, ContentBody(message.body)


async def test_returned_messages_among_confirmed_ones_are_told_apart(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """Of 700 messages at once each seventh comes back; the others, and no more, are stored."""
    wire = Wire(channel)
    messages = [message_to(NOWHERE if i % 7 == 0 else queue) for i in range(700)]
    outcomes = await asyncio.gather(*(wire.publish(message) for message in messages))
    assert outcomes == [i % 7 != 0 for i in range(700)]
    got = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 600)
    stored = [delivery.properties["message_id"] for delivery in got]
    assert stored == [message.id for message in messages if message.routing_key == queue]
    assert wire.is_idle
    assert not channel.message_id_delivery_tag


async def test_messages_held_back_go_out_in_the_order_they_came(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """More than the writer takes at once: what waits does so in its turn."""
    wire = Wire(channel)
    messages = [message_to(queue, b"x" * 50_000) for _ in range(200)]
    assert await asyncio.gather(*map(wire.publish, messages)) == [True] * 200
    got = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 200)
    assert [each.properties["message_id"] for each in got] == [each.id for each in messages]


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_messages_take_no_other_ones_outcome(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str, turns: int
) -> None:
    """Wherever every third is cancelled, its neighbours hear what became of themselves."""
    wire, told = Wire(channel), dict[int, Outcome]()
    messages = [message_to(queue if i % 2 else NOWHERE, b"x" * 4000) for i in range(300)]

    async def publish(number: int) -> None:
        told[number] = await wire.publish(messages[number])

    tasks = [asyncio.create_task(publish(number)) for number in range(300)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(outcome is (number % 2 == 1) for number, outcome in told.items())
    assert told.keys() >= {number for number in range(300) if number % 3}
    after = [await wire.publish(message_to(where)) for where in (queue, NOWHERE, queue)]
    assert after == [True, False, True]
    assert not channel.confirmations
    assert not channel.message_id_delivery_tag
    got = await asyncio.to_thread(rabbitmq_broker.read_queue, queue)
    stored = {delivery.properties["message_id"] for delivery in got}
    assert stored >= {messages[number].id for number, outcome in told.items() if outcome}


async def test_cancelled_while_others_hold_the_channel_nothing_is_written(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """Who waits for another publisher of the channel and goes has sent nothing."""
    wire = Wire(channel)
    async with channel.lock:
        waiting = [asyncio.create_task(wire.publish(message_to(queue))) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting[1:4]:
            task.cancel()
        await asyncio.sleep(0)
    assert [await waiting[0], await waiting[4]] == [True, True]
    assert all(task.cancelled() for task in waiting[1:4])
    assert rabbitmq_broker.queue_size(queue) == 2


async def test_other_publishers_of_the_channel_are_told_the_truth(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """The client's own publishing between ours: numbers and places in the stream agree."""
    full, wire = f"{queue}-full", Wire(channel)
    limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rabbitmq_broker.declare_queue(full, arguments=limit)
    assert await wire.publish(message_to(full)) is True

    async def by_the_client(where: str) -> Outcome:
        try:
            await channel.basic_publish(b"{}", routing_key=where, mandatory=True)
        except aiormq.exceptions.PublishError:
            return False
        except aiormq.exceptions.DeliveryError as error:
            return error
        return True

    async def one(number: int) -> None:
        for step in range(10):
            where = (queue, full, NOWHERE)[(number + step) % 3]
            publish = by_the_client(where) if number % 2 else wire.publish(message_to(where))
            told = await publish
            refused = isinstance(told, aiormq.exceptions.DeliveryError)
            assert (full if refused else {True: queue, False: NOWHERE}[bool(told)]) == where

    await asyncio.gather(*map(one, range(60)))


async def test_one_confirmation_of_many_confirms_each(deaf: Any) -> None:
    """`multiple` confirms all before it; a refusal and what comes after it are for one each."""
    wire = Wire(deaf)
    joined = [join(wire.publish(message_to("q"))) for _ in range(6)]
    await hear(deaf, spec.Basic.Ack(3, multiple=True))
    assert [each.done() and each.result() for each in joined] == [True] * 3 + [False] * 3
    await hear(deaf, spec.Basic.Nack(4), spec.Basic.Ack(6, multiple=True))
    refusal = joined.pop(3).result()
    assert isinstance(refusal, aiormq.exceptions.DeliveryError)
    assert [each.result() for each in joined] == [True] * 5
    assert wire.is_idle


async def test_refusal_of_many_refuses_each(deaf: Any) -> None:
    """`multiple` goes for a negative acknowledgement as well."""
    wire = Wire(deaf)
    joined = [join(wire.publish(message_to("q"))) for _ in range(3)]
    await hear(deaf, spec.Basic.Ack(1), spec.Basic.Nack(3, multiple=True))
    kinds = [type(each.result()) for each in joined]
    assert kinds == [bool, aiormq.exceptions.DeliveryError, aiormq.exceptions.DeliveryError]


@pytest.mark.parametrize("returns", [False, True], ids=["confirmed", "returned"])
async def test_answer_to_one_who_has_gone_disturbs_nobody(deaf: Any, returns: bool) -> None:
    """What the broker says of a cancelled message is taken, and the channel lives on."""
    wire, gone = Wire(deaf), message_to("q")
    task = asyncio.create_task(wire.publish(gone))
    other = asyncio.create_task(wire.publish(message_to("q")))
    await asyncio.sleep(0)
    task.cancel()
    frames = returned(gone) if returns else ()
    await hear(deaf, *frames, spec.Basic.Ack(1), spec.Basic.Ack(2))
    assert task.cancelled()
    assert await other is True
    assert not deaf.is_closed
    assert not deaf.confirmations
    assert not deaf.message_id_delivery_tag


async def test_same_message_id_waits_for_the_earlier_one(deaf: Any) -> None:
    """What comes back is told by its id alone: the second goes when the first has its outcome."""
    wire = Wire(deaf)
    first, second = (message_to("q", message_id="same") for _ in range(2))
    tasks = [asyncio.create_task(wire.publish(message)) for message in (first, second)]
    await asyncio.sleep(0)
    assert deaf.delivery_tag == 1
    tasks[0].cancel()  # and although nobody waits for that one
    await hear(deaf, *returned(first), spec.Basic.Ack(1))
    assert deaf.delivery_tag == 2
    await hear(deaf, spec.Basic.Ack(2))
    assert await tasks[1] is True


async def test_same_message_id_waits_also_where_both_waited_for_their_turn(deaf: Any) -> None:
    """Held back together, the two do not go out together."""
    wire = Wire(deaf)
    async with deaf.lock:
        same = [message_to("q", message_id="same") for _ in range(2)]
        tasks = [asyncio.create_task(wire.publish(message)) for message in same]
        await asyncio.sleep(0)
    await hear(deaf)
    assert deaf.delivery_tag == 1
    await hear(deaf, *returned(same[0]), spec.Basic.Ack(1))
    await hear(deaf, spec.Basic.Ack(2))
    assert await asyncio.gather(*tasks) == [False, True]


async def test_who_comes_while_a_turn_is_handed_on_waits_behind(deaf: Any) -> None:
    """Ten wait for their turn, ten come one by one as those get it: all go out as they came."""
    wire = Wire(deaf)
    messages = [message_to("q") for _ in range(20)]
    async with deaf.lock:
        tasks = [asyncio.create_task(wire.publish(message)) for message in messages[:10]]
        await asyncio.sleep(0)
    for message in messages[10:]:
        tasks.append(asyncio.create_task(wire.publish(message)))
        await asyncio.sleep(0)
    for _ in range(100):  # turns of the loop, of which each needs two
        await asyncio.sleep(0)
    assert list(deaf.message_id_delivery_tag) == [message.id for message in messages]
    await hear(deaf, spec.Basic.Ack(20, multiple=True))
    assert await asyncio.gather(*tasks) == [True] * 20


async def test_giving_up_one_wire_leaves_the_others_of_its_channel(deaf: Any) -> None:
    """Two producers may publish on one channel of the user's, and one of them stop."""
    mine, other = Wire(deaf), Wire(deaf)
    joined = [join(wire.publish(message_to("q"))) for wire in (mine, other, mine)]
    mine.give_up(ConnectionError("given up"))
    assert [each.done() for each in joined] == [True, False, True]
    await hear(deaf, spec.Basic.Ack(3, multiple=True))
    assert joined[1].result() is True


async def test_giving_up_leaves_what_may_still_be_written_unknown(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str
) -> None:
    """On a channel that lives on the writer takes what joined: it is not called unwritten."""
    wire, error = Wire(channel), ConnectionError("given up")
    joined = join(wire.publish(message_to(queue)))
    wire.give_up(error)
    assert joined.result() is error
    assert await wire.publish(message_to(queue)) is None
    assert await Wire(channel).publish(message_to(queue)) is True
    assert rabbitmq_broker.queue_size(queue) == 2


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 500_000])
async def test_body_of_any_size_arrives_as_it_was(
    channel: Any, rabbitmq_broker: RabbitMQAccess, queue: str, size: int
) -> None:
    """No frame is larger than the broker takes, 128 KiB by default, and none is empty."""
    body = bytes(i % 251 for i in range(size))
    assert await Wire(channel).publish(message_to(queue, body)) is True
    (delivery,) = await asyncio.to_thread(rabbitmq_broker.read_queue, queue, 1)
    assert delivery.body == body


async def test_what_was_not_written_goes_out_on_the_next_connection(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """More than a broker takes before it dies: the rest is stored by the next one, and once."""
    own_rabbitmq.declare_queue(unique_name)
    own_rabbitmq.write_declarations()
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=60) as emitter:
        events = [Note(queue=unique_name, text="x" * 100_000) for _ in range(300)]
        await emitter.emit(events[0])
        own_rabbitmq.freeze()  # the bytes pile up on the way to it, and then on our side
        emits = [asyncio.create_task(emitter.emit(event)) for event in events[1:]]
        await asyncio.wait(emits, timeout=0.5)
        assert not any(emit.done() for emit in emits)
        await asyncio.to_thread(own_rabbitmq.kill)
        await asyncio.to_thread(own_rabbitmq.start)
        results = await asyncio.gather(*emits, return_exceptions=True)
    assert {type(each) for each in results} == {Receipt, EmitUnknown}
    got = await asyncio.to_thread(own_rabbitmq.read_queue, unique_name)
    stored = Counter(delivery.properties["message_id"] for delivery in got)
    assert set(stored.values()) == {1}
    assert stored.keys() >= {each.event_id for each in results if isinstance(each, Receipt)}


async def test_connection_cut_with_a_thousand_in_flight_tells_no_lies(
    own_rabbitmq: RabbitMQ, unique_name: str
) -> None:
    """Cut twice: what has a receipt is stored, what was rejected is not, and all goes on."""
    own_rabbitmq.declare_queue(unique_name)
    outcomes: dict[str, type] = {}
    reached = {count: asyncio.Event() for count in (1500, 3500)}
    with own_rabbitmq.proxy() as proxy:
        url = own_rabbitmq.url_for(port=proxy.port)

        async def work() -> None:
            for _ in range(6):
                event = Note(queue=unique_name)
                try:
                    outcomes[event.id] = type(await emitter.emit(event))
                except (EmitRejected, EmitUnknown) as error:
                    outcomes[event.id] = type(error)
                if len(outcomes) in reached:
                    reached[len(outcomes)].set()

        async with EventEmitter.from_url(url, timeout=30) as emitter, asyncio.TaskGroup() as group:
            for _ in range(1000):
                group.create_task(work())
            for each in reached.values():
                await each.wait()
                proxy.reset()
        assert proxy.connections >= 3
    got = await asyncio.to_thread(own_rabbitmq.read_queue, unique_name)
    stored = {delivery.properties["message_id"] for delivery in got}
    assert len(outcomes) == 6000
    assert EmitUnknown in outcomes.values()
    assert stored >= {event_id for event_id, kind in outcomes.items() if kind is Receipt}
    assert not stored & {event_id for event_id, kind in outcomes.items() if kind is EmitRejected}
