"""Redis Streams: emitting, handling and waking beside redis-py, on a real server.

redis-py is used plainly and pipelined. The server is one of its own that appends to its file (AOF,
everysec).
"""

import asyncio
import gc
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, TypeVar

from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis as Client

from bench import peers
from bench.broker import running
from bench.events import READ, Plain, UserCreated, created, database, message, plain
from bench.measuring import (
    BARE,
    OURS,
    PEER,
    Contender,
    Cost,
    Handled,
    Samples,
    Watch,
    Work,
    at_once,
    check,
    compare,
    scaled,
    show,
)
from bench.redis_plain import GROUP, Working, append, pipelined, pooled, wait_for
from brokers.redis import Redis
from brokers.redis_access import RedisAccess
from dispytch import Depends, Event, EventEmitter, EventListener, Subscription
from dispytch_redis import RedisConnection, RedisConsumer

FEW, MANY = scaled(1_500), scaled(10_000)  # events one by one; many at once, and a backlog
WAKES, PAUSE = scaled(300), 0.01  # events one at a time, and seconds between them
PLAIN, PEERS = "plain", "peer"  # the streams beside ours
STREAMS = [f"dispytch:stream:user_events:{number}" for number in range(16)]

E = TypeVar("E")
Emit = Callable[[Sequence[E]], Awaitable[object]]
_groups = (f"group{os.getpid()}_{number}" for number in itertools.count())


# Emitting


def emitted(
    broker: RedisAccess, streams: Sequence[str], ready: Sequence[E], emit: Emit[E]
) -> Callable[[], Awaitable[Cost]]:
    """Emits these; they are there then, and deleted."""

    async def run() -> Cost:
        with Watch(len(ready)) as watch:
            await emit(ready)
        check("emitted", sum(broker.call("XLEN", stream) for stream in streams), len(ready))
        broker.call("DEL", *streams)
        return watch.cost

    return run


async def together(emitter: EventEmitter, size: int, events: Sequence[UserCreated]) -> None:
    """Emit so many with each call."""
    for first in range(0, len(events), size):
        await emitter.emit_many(events[first : first + size])


async def emitting(broker: Redis) -> list[Work]:
    """1, 16, 100 and 1,000 in flight, and many together."""
    ours = [created(number) for number in range(MANY)]
    theirs = [plain(number) for number in range(MANY)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        client = await enter(Client.from_url(broker.url))
        pool = await enter(pooled(broker.url))
        emitter = await enter(EventEmitter.from_url(broker.url))
        peer = await enter(RedisBroker(broker.url, logger=peers.SILENT, max_connections=1_000))

        def publish(event: Plain) -> Awaitable[Any]:
            return peer.publish(message(event.id, event.body), stream=PEERS)

        def bare(name: str, events: int, emit: Emit[Plain]) -> Contender:
            return Contender(name, BARE, emitted(broker, [PLAIN], theirs[:events], emit))

        def peers_(name: str, events: int, tasks: int) -> Contender:
            emit = partial(at_once, publish, tasks)
            return Contender(name, PEER, emitted(broker, [PEERS], theirs[:events], emit))

        def mine(name: str, events: int, emit: Emit[UserCreated]) -> Contender:
            return Contender(name, OURS, emitted(broker, STREAMS, ours[:events], emit))

        works = []
        for tasks in (1_000, 100, 16):
            emit = partial(at_once, partial(append, pool, PLAIN), tasks)
            contenders = [
                bare("xadd", MANY, emit),
                peers_("publish", MANY, tasks),
                mine("emit", MANY, partial(at_once, emitter.emit, tasks)),
            ]
            if tasks > 16:
                pipeline = partial(pipelined, client, PLAIN, tasks)
                contenders += [
                    bare(f"pipelines of {tasks:,}", MANY, pipeline),
                    mine(f"emit_many of {tasks:,}", MANY, partial(together, emitter, tasks)),
                ]
            works.append(await compare(f"emit, Redis, {tasks:,} in flight", contenders))
        alone = [
            bare("xadd", FEW, partial(at_once, partial(append, client, PLAIN), 1)),
            peers_("publish", FEW, 1),
            mine("emit", FEW, partial(at_once, emitter.emit, 1)),
        ]
        works.append(await compare("emit, Redis, one by one", alone))
    return works


# Handling


def check_done(
    broker: RedisAccess, streams: Sequence[str], group: str, handled: Sequence[int]
) -> None:
    """All were handled, once, and the server knows; the group is deleted."""
    check("handled", len(set(handled)), MANY)
    check("handled, with doubles", len(handled), MANY)
    check("pending", sum(broker.call("XPENDING", stream, group)[0] for stream in streams), 0)
    for stream in streams:
        broker.call("XGROUP", "DESTROY", stream, group)


async def working(broker: Redis, client: Client, *, each: bool) -> Cost:
    """redis-py, from the first read to the last acknowledgement."""
    await client.xgroup_create(PLAIN, GROUP, "0")
    member = Working(client, PLAIN, each=each)
    with Watch(MANY) as watch:
        await member.run(MANY)
    check_done(broker, [PLAIN], GROUP, member.handled)
    return watch.cost


async def peer_working(broker: Redis) -> Cost:
    """A subscriber of FastStream, its start included."""
    handled, group = Handled(MANY), next(_groups)
    peer = RedisBroker(broker.url, logger=peers.SILENT)
    stream = StreamSub(PEERS, group=group, consumer="me", last_id="0", max_records=100)
    subscriber = peer.subscriber(stream=stream, ack_policy=AckPolicy.ACK)
    subscriber(peers.handler(handled, database))
    with Watch(MANY) as watch:
        async with peer:
            await peer.start()
            await handled.done.wait()
    check_done(broker, [PEERS], group, handled.numbers)
    return watch.cost


async def receiving(broker: Redis) -> Cost:
    """The consumer alone: reads 100, and acknowledges them together."""
    address, group, handled = f"127.0.0.1:{broker.port}", next(_groups), list[int]()
    consumer = RedisConsumer(RedisConnection(scheme="redis", hosts=(address,)))
    with Watch(MANY) as watch:
        await consumer.start()
        await consumer.subscribe([Subscription("user_events", group)])
        while len(handled) < MANY:
            deliveries = await consumer.receive(100)
            handled += [READ(each.payload)["body"].timestamp for each in deliveries]
            await asyncio.gather(*(each.ack() for each in deliveries))
    await consumer.stop()
    check_done(broker, STREAMS, group, handled)
    return watch.cost


async def listening(broker: RedisAccess) -> Cost:
    """An EventListener, its start included, until the server knows that all is done."""
    group, handled = next(_groups), Handled(MANY)
    with Watch(MANY) as watch:
        async with listener_of(broker.url, group, handled.note):
            await handled.done.wait()
    check_done(broker, STREAMS, group, handled.numbers)
    return watch.cost


def listener_of(url: str, group: str, note: Callable[[int], None]) -> EventListener:
    """One that notes what it handles."""
    listener = EventListener.from_url(url, group=group)

    @listener.handler(UserCreated)
    async def handle(event: Event[UserCreated], db: Annotated[str, Depends(database)]) -> None:
        note(event.body.timestamp)

    return listener


async def handling(broker: Redis) -> list[Work]:
    """A backlog, worked off by one process."""
    theirs = [plain(number) for number in range(MANY)]
    async with (
        Client.from_url(broker.url) as client,
        EventEmitter.from_url(broker.url) as emitter,
        RedisBroker(broker.url, logger=peers.SILENT) as peer,
    ):
        await pipelined(client, PLAIN, 1_000, theirs)
        await emitter.emit_many([created(number) for number in range(MANY)])
        await at_once(
            lambda each: peer.publish(message(each.id, each.body), stream=PEERS), 16, theirs
        )
        each = partial(working, broker, client, each=True)
        batches = partial(working, broker, client, each=False)
        contenders = [
            Contender("XREADGROUP 100, XACK each", BARE, each, "at least once"),
            Contender("XREADGROUP 100, XACK of 100", BARE, batches, "at least once"),
            Contender("ACK", PEER, partial(peer_working, broker), "at least once"),
            Contender("consumer, receive and ack 100", "", partial(receiving, broker)),
            Contender("EventListener", OURS, partial(listening, broker), "at least once"),
        ]
        work = await compare(
            f"handle, Redis, a backlog of {MANY:,}, one async dependency", contenders
        )
    broker.call("DEL", PLAIN, PEERS, *STREAMS)
    return [work]


# Waking


async def waking(broker: Redis) -> list[Work]:
    """One event at a time: from the emit to the handler, in one process."""
    gc.collect()
    bare, ours = Samples("XREADGROUP BLOCK", BARE, ""), Samples("EventListener", OURS, "")
    handled, came, arrived = list[int](), asyncio.Event(), asyncio.Event()

    def note(number: int) -> None:
        handled.append(number)
        arrived.set()

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        client = await enter(Client.from_url(broker.url))
        emitter = await enter(EventEmitter.from_url(broker.url))
        await enter(listener_of(broker.url, next(_groups), note))
        await client.xgroup_create(PLAIN, GROUP, "0", mkstream=True)
        reader = await enter(Client.from_url(broker.url))
        waiting = asyncio.create_task(wait_for(reader, PLAIN, WAKES, came))
        for number in range(WAKES):
            sides: tuple[tuple[Callable[[], Awaitable[Any]], asyncio.Event, Samples], ...] = (
                (partial(append, client, PLAIN, plain(number)), came, bare),
                (partial(emitter.emit, created(number)), arrived, ours),
            )
            for emit, event, samples in sides:
                await asyncio.sleep(PAUSE * (0.5 + number * 0.618 % 1))  # in step with nothing
                event.clear()
                started = time.perf_counter()
                sent = asyncio.ensure_future(emit())
                await event.wait()
                samples.walls.append((time.perf_counter() - started) * 1e3)
                await sent
        check("read", await waiting, WAKES)
        check("handled", len(set(handled)), WAKES)
    work = Work("wake, Redis: from an emit to the handler", [bare, ours], "ms")
    show(work)
    return [work]


def server() -> Redis:
    """One that does not begin to rewrite its file whenever it likes."""
    return Redis(config={"auto-aof-rewrite-percentage": "0"})


async def measure() -> list[Work]:
    """Everything."""
    async with running(server) as broker:
        if broker is None:
            return []
        return [*await emitting(broker), *await handling(broker), *await waking(broker)]
