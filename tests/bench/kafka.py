"""Kafka: emitting and handling beside aiokafka, on a real broker.

aiokafka is used as its documents show. Emitting it has the guarantee of ours, `acks="all"` and
idempotence; handling it commits by itself every five seconds, which may lose what was read and not
handled.
"""

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from bench import peers
from bench.broker import running
from bench.events import (
    READ,
    Plain,
    UserCreated,
    created,
    database,
    envelope,
    key_of,
    message,
    plain,
)
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
from brokers.kafka import Kafka
from dispytch import Depends, Event, EventEmitter, EventListener

TOPIC, PARTITIONS = "user_events", 4
ONE_BY_ONE, IN_FLIGHT, TOGETHER = scaled(500), 1_000, scaled(10_000)
BACKLOG, FEWER = scaled(20_000), scaled(2_000)  # fewer for who commits each event
CONFIRMED = "all replicas, idempotent"

E = TypeVar("E")
_groups = (f"group{os.getpid()}_{number}" for number in itertools.count())


class Log:
    """Tells what is in the topic, and what a group has committed.

    Args:
        servers: of the broker.
    """

    def __init__(self, servers: str) -> None:
        self._partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        self._servers = servers

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator["Log"]:
        """While it can be asked."""
        async with AIOKafkaConsumer(bootstrap_servers=self._servers) as self._consumer:
            yield self

    async def size(self) -> int:
        """How many records there are."""
        return sum((await self._consumer.end_offsets(self._partitions)).values())

    async def committed(self, group: str) -> int:
        """How many of them a group is done with."""
        async with AIOKafkaConsumer(bootstrap_servers=self._servers, group_id=group) as consumer:
            consumer.assign(self._partitions)
            return sum([await consumer.committed(each) or 0 for each in self._partitions])


# Emitting


def emitted(
    log: Log, ready: Sequence[E], emit: Callable[[Sequence[E]], Awaitable[object]]
) -> Callable[[], Awaitable[Cost]]:
    """Emits these; they are on the broker then."""

    async def run() -> Cost:
        before = await log.size()
        with Watch(len(ready)) as watch:
            await emit(ready)
        check("on the broker", await log.size() - before, len(ready))
        return watch.cost

    return run


async def gathered(producer: Any, events: Sequence[Plain]) -> None:
    """Aiokafka's faster way: have it batch, and wait for all of them."""
    waiting = [await producer.send(TOPIC, envelope(each), key=key_of(each)) for each in events]
    await asyncio.gather(*waiting)


async def emitting(broker: Kafka, log: Log) -> list[Work]:
    """1,000 in flight, and one by one."""
    ours = [created(number) for number in range(TOGETHER)]
    theirs = [plain(number) for number in range(TOGETHER)]
    settings: Any = {
        "bootstrap_servers": broker.bootstrap,
        "acks": "all",
        "enable_idempotence": True,
    }
    peer = KafkaBroker(logger=peers.SILENT, allow_auto_create_topics=False, **settings)
    async with (
        AIOKafkaProducer(**settings) as bare,
        EventEmitter.from_url(broker.url) as emitter,
        EventEmitter.from_url(f"kafka+confluent://{broker.bootstrap}") as ceiling,
        peer,
    ):

        def send(event: Plain) -> Any:
            return bare.send_and_wait(TOPIC, envelope(event), key=key_of(event))

        def publish(event: Plain) -> Awaitable[Any]:
            return peer.publish(message(event.id, event.body), topic=TOPIC, key=key_of(event))

        works = []
        for title, tasks, events in (
            ("1,000 in flight", IN_FLIGHT, TOGETHER),
            ("one by one", 1, ONE_BY_ONE),
        ):
            mine, others = ours[:events], theirs[:events]
            contenders = [
                ("send_and_wait", BARE, emitted(log, others, partial(at_once, send, tasks))),
                ("publish", PEER, emitted(log, others, partial(at_once, publish, tasks))),
                ("emit", OURS, emitted(log, mine, partial(at_once, emitter.emit, tasks))),
                (
                    "emit, librdkafka",
                    OURS,
                    emitted(log, mine, partial(at_once, ceiling.emit, tasks)),
                ),
            ]
            if tasks > 1:
                many = emitted(log, mine, emitter.emit_many)
                most = emitted(log, mine, ceiling.emit_many)
                contenders += [
                    ("send, gathered", BARE, emitted(log, others, partial(gathered, bare))),
                    ("emit_many", OURS, many),
                    ("emit_many, librdkafka", OURS, most),
                ]
            works.append(
                await compare(
                    f"emit, Kafka, {title}", [Contender(*each, CONFIRMED) for each in contenders]
                )
            )
    return works


# Handling


async def looping(broker: Kafka) -> Cost:
    """`async for`, which commits by itself."""
    handled = Handled(BACKLOG)
    async with AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=broker.bootstrap,
        group_id=next(_groups),
        auto_offset_reset="earliest",
    ) as consumer:
        async for record in consumer:
            event, _ = READ(record.value)["body"], await database()
            handled.note(event.timestamp)
            if handled.done.is_set():
                break
    return handled.cost


async def peer_handling(broker: Kafka, policy: AckPolicy, count: int) -> Cost:
    """A subscriber of FastStream, until it has handled so many."""
    handled = Handled(count, more=True)
    peer = KafkaBroker(broker.bootstrap, logger=peers.SILENT, allow_auto_create_topics=False)
    subscriber = peer.subscriber(
        TOPIC, group_id=next(_groups), auto_offset_reset="earliest", ack_policy=policy
    )
    subscriber(peers.handler(handled, database))
    async with peer:
        await peer.start()
        await handled.done.wait()
    return handled.cost


async def listening(url: str, log: Log) -> Cost:
    """An EventListener; what it handled is committed in the end."""
    handled, group = Handled(BACKLOG), next(_groups)
    listener = EventListener.from_url(url, group=group)

    @listener.handler(UserCreated)
    async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
        handled.note(event.body.timestamp)

    async with listener:
        await handled.done.wait()
    check("committed", await log.committed(group), BACKLOG)
    return handled.cost


async def fill(url: str, log: Log) -> None:
    """Emit the backlog, to a topic that was empty."""
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit_many([created(number) for number in range(BACKLOG)])
    check("on the broker", await log.size(), BACKLOG)


async def handling(broker: Kafka, log: Log) -> list[Work]:
    """A backlog, worked off by one process."""
    await fill(broker.url, log)
    first = partial(peer_handling, broker, AckPolicy.ACK_FIRST, BACKLOG)
    each = partial(peer_handling, broker, AckPolicy.ACK, FEWER)
    work = await compare(
        f"handle, Kafka, a backlog of {BACKLOG:,}, one async dependency",
        [
            Contender("async for", BARE, partial(looping, broker), "auto-commit: may lose"),
            Contender("ACK_FIRST", PEER, first, "auto-commit: may lose"),
            Contender("ACK", PEER, each, "at least once"),
            Contender("EventListener", OURS, partial(listening, broker.url, log), "at least once"),
        ],
    )
    return [work]


async def measure() -> list[Work]:
    """Everything."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # leaders are elected
    async with running(Kafka) as broker:
        if broker is None:
            return []
        await asyncio.to_thread(broker.create_topic, TOPIC, PARTITIONS)
        async with Log(broker.bootstrap).opened() as log:
            return [*await handling(broker, log), *await emitting(broker, log)]
