"""RabbitMQ: emitting and handling beside aio-pika, on a real broker.

Emitted is to a durable queue, through a topic exchange, persistent and confirmed. Handled is from
quorum queues, which our groups have.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from faststream import AckPolicy
from faststream.rabbit import (
    Channel,
    ExchangeType,
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitQueue,
)

from bench import peers
from bench.broker import running
from bench.events import READ, Plain, UserCreated, created, database, envelope, message, plain
from bench.measuring import (
    BARE,
    OURS,
    PEER,
    Contender,
    Cost,
    Handled,
    Watch,
    Work,
    at_once,
    check,
    compare,
    scaled,
)
from brokers.rabbitmq import RabbitMQ
from dispytch import Depends, Event, EventEmitter, EventListener

EXCHANGE, QUEUE = "dispytch", "user_events"
ONE_BY_ONE, IN_FLIGHT, TOGETHER, BACKLOG = scaled(500), 1_000, scaled(5_000), scaled(8_000)
PREFETCH = 100
OURS_QUEUE = "bench.user_events"

E = TypeVar("E")


def persistent(payload: bytes) -> aio_pika.Message:
    """A message that is kept on disk."""
    return aio_pika.Message(payload, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


# Emitting


def emitted(
    channel: AbstractChannel, ready: Sequence[E], emit: Callable[[Sequence[E]], Awaitable[object]]
) -> Callable[[], Awaitable[Cost]]:
    """Emits these; they are in the queue then, and taken out."""

    async def run() -> Cost:
        with Watch(len(ready)) as watch:
            await emit(ready)
        check("in the queue", await purged(channel, QUEUE), len(ready))
        return watch.cost

    return run


async def bind(channel: AbstractChannel) -> None:
    """Have the queue get what is emitted."""
    queue = await channel.declare_queue(QUEUE, durable=True)
    exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
    await queue.bind(exchange, QUEUE)


async def purged(channel: AbstractChannel, name: str) -> int:
    """Empty a queue; how many were in it."""
    queue = await channel.get_queue(name, ensure=False)
    return (await queue.purge()).message_count or 0


async def emitting(broker: RabbitMQ, channel: AbstractChannel) -> list[Work]:
    """1,000 in flight, and one by one."""
    await bind(channel)
    ours = [created(number) for number in range(TOGETHER)]
    theirs = [plain(number) for number in range(TOGETHER)]
    to = RabbitExchange(EXCHANGE, type=ExchangeType.TOPIC, durable=True)
    async with (
        await aio_pika.connect_robust(broker.url) as connection,
        connection.channel() as sending,
        EventEmitter.from_url(broker.url) as emitter,
        RabbitBroker(broker.url, logger=peers.SILENT) as peer,
    ):
        target = await sending.get_exchange(EXCHANGE)
        await peer.declare_exchange(to)

        def send(event: Plain) -> Awaitable[Any]:
            return target.publish(persistent(envelope(event)), QUEUE)

        def publish(event: Plain) -> Awaitable[Any]:
            return peer.publish(
                message(event.id, event.body), exchange=to, routing_key=QUEUE, persist=True
            )

        works = []
        for title, tasks, events in (
            ("1,000 in flight", IN_FLIGHT, TOGETHER),
            ("one by one", 1, ONE_BY_ONE),
        ):
            mine, others = ours[:events], theirs[:events]
            contenders = [
                ("publish", BARE, emitted(channel, others, partial(at_once, send, tasks))),
                ("publish", PEER, emitted(channel, others, partial(at_once, publish, tasks))),
                ("emit", OURS, emitted(channel, mine, partial(at_once, emitter.emit, tasks))),
            ]
            if tasks > 1:
                contenders.append(("emit_many", OURS, emitted(channel, mine, emitter.emit_many)))
            works.append(
                await compare(
                    f"emit, RabbitMQ, {title}",
                    [Contender(*each, "confirmed, persistent") for each in contenders],
                )
            )
    return works


# Handling


async def fill(channel: AbstractChannel, queue: str, payloads: Sequence[bytes]) -> None:
    """Put these into a queue."""
    publish = channel.default_exchange.publish
    messages = [persistent(payload) for payload in payloads]
    await at_once(lambda each: publish(each, queue), IN_FLIGHT, messages)


def worked_off(
    channel: AbstractChannel, queue: str, work: Callable[[Handled], Awaitable[None]]
) -> Callable[[], Awaitable[Cost]]:
    """Works a backlog off; the queue is empty then."""
    payloads = [envelope(plain(number)) for number in range(BACKLOG)]

    async def run() -> Cost:
        await fill(channel, queue, payloads)
        handled = Handled(BACKLOG)
        await work(handled)
        check("left in the queue", await purged(channel, queue), 0)
        return handled.cost

    return run


async def consuming(url: str, handled: Handled) -> None:
    """A callback of aio-pika."""

    async def handle(incoming: AbstractIncomingMessage) -> None:
        async with incoming.process():
            event, _ = READ(incoming.body)["body"], await database()
            handled.note(event.timestamp)

    async with await aio_pika.connect_robust(url) as connection, connection.channel() as own:
        await own.set_qos(PREFETCH)
        queue = await own.get_queue("plain")
        tag = await queue.consume(handle)
        await handled.done.wait()
        await queue.cancel(tag)


async def peer_consuming(url: str, handled: Handled) -> None:
    """A subscriber of FastStream."""
    peer = RabbitBroker(url, logger=peers.SILENT, default_channel=Channel(prefetch_count=PREFETCH))
    queue = RabbitQueue("peer", queue_type=QueueType.QUORUM, durable=True)
    subscriber = peer.subscriber(queue, ack_policy=AckPolicy.ACK)
    subscriber(peers.handler(handled, database))
    async with peer:
        await peer.start()
        await handled.done.wait()


async def listening(url: str, handled: Handled) -> None:
    """An EventListener."""
    async with listener_of(url, handled):
        await handled.done.wait()


def listener_of(url: str, handled: Handled) -> EventListener:
    """One that notes what it handles."""
    listener = EventListener.from_url(url, group="bench")

    @listener.handler(UserCreated)
    async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
        handled.note(event.body.timestamp)

    return listener


async def handling(broker: RabbitMQ, channel: AbstractChannel) -> list[Work]:
    """A backlog, worked off by one process."""
    for name in ("plain", "peer"):
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    async with listener_of(broker.url, Handled(BACKLOG)):
        pass  # it has declared its queue
    consumers = {
        "aio-pika's callback, prefetch 100": (BARE, "plain", consuming),
        "ACK, prefetch 100": (PEER, "peer", peer_consuming),
        "EventListener": (OURS, OURS_QUEUE, listening),
    }
    work = await compare(
        f"handle, RabbitMQ, a backlog of {BACKLOG:,}, one async dependency",
        [
            Contender(
                name,
                side,
                worked_off(channel, queue, partial(consume, broker.url)),
                "at least once",
            )
            for name, (side, queue, consume) in consumers.items()
        ],
    )
    await channel.queue_delete(OURS_QUEUE)  # else it would get what is emitted now
    return [work]


async def measure() -> list[Work]:
    """Everything."""
    async with running(RabbitMQ) as broker:
        if broker is None:
            return []
        async with (
            await aio_pika.connect(broker.url) as connection,
            connection.channel() as channel,
        ):
            return [*await handling(broker, channel), *await emitting(broker, channel)]
