"""Event loops: the same work of ours on asyncio's own loop and on uvloop.

Each loop has a process of its own; they take turns, round by round.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeAlias

import aio_pika
import uvloop

from bench import kafka, local, rabbitmq, redis
from bench.broker import running
from bench.events import created, database
from bench.measuring import LOOP, Contender, Cost, Handled, Work, at_once, compare
from bench.processes import Processes
from brokers.kafka import Kafka
from brokers.rabbitmq import RabbitMQ
from brokers.redis_access import RedisAccess
from dispytch import EventEmitter

FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TITLE = "event loops: "
IN_FLIGHT = 1_000

Run: TypeAlias = Callable[[], Awaitable[Cost]]
Ready: TypeAlias = Callable[[str], AbstractAsyncContextManager[Run]]


class Server(RedisAccess):
    """A Redis that another process has started."""

    url = ""

    def __init__(self, url: str) -> None:
        self.url = url


def _log(url: str) -> AbstractAsyncContextManager[kafka.Log]:
    return kafka.Log(url.removeprefix("kafka://")).opened()


@asynccontextmanager
async def dispatching(_: str) -> AsyncIterator[Run]:
    """Without a network."""
    yield local.Handling(await local.emitted(), database).run


@asynccontextmanager
async def emitting_kafka(url: str) -> AsyncIterator[Run]:
    """Many side by side."""
    ours = [created(number) for number in range(kafka.TOGETHER)]
    async with _log(url) as log, EventEmitter.from_url(url) as emitter:
        yield kafka.emitted(log, ours, partial(at_once, emitter.emit, IN_FLIGHT))


@asynccontextmanager
async def handling_kafka(url: str) -> AsyncIterator[Run]:
    """A backlog."""
    async with _log(url) as log:
        yield partial(kafka.listening, url, log)


@asynccontextmanager
async def emitting_rabbitmq(url: str) -> AsyncIterator[Run]:
    """Many side by side."""
    ours = [created(number) for number in range(rabbitmq.TOGETHER)]
    async with (
        await aio_pika.connect(url) as connection,
        connection.channel() as channel,
        EventEmitter.from_url(url) as emitter,
    ):
        await rabbitmq.bind(channel)
        yield rabbitmq.emitted(channel, ours, partial(at_once, emitter.emit, IN_FLIGHT))


@asynccontextmanager
async def handling_rabbitmq(url: str) -> AsyncIterator[Run]:
    """A backlog."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        async with rabbitmq.listener_of(url, Handled(rabbitmq.BACKLOG)):
            pass  # it has declared its queue
        work = partial(rabbitmq.listening, url)
        yield rabbitmq.worked_off(channel, rabbitmq.OURS_QUEUE, work)


@asynccontextmanager
async def emitting_redis(url: str) -> AsyncIterator[Run]:
    """Many side by side."""
    ours = [created(number) for number in range(redis.MANY)]
    async with EventEmitter.from_url(url) as emitter:
        emit = partial(at_once, emitter.emit, IN_FLIGHT)
        yield redis.emitted(Server(url), redis.STREAMS, ours, emit)


@asynccontextmanager
async def handling_redis(url: str) -> AsyncIterator[Run]:
    """A backlog."""
    yield partial(redis.listening, Server(url))


def serve(loop: str, ready: Ready, url: str, told: Connection) -> None:
    """In a process of its own: do the work whenever told to, and answer what it cost."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def main() -> None:
        async with ready(url) as run:
            told.send("ready")
            while await asyncio.to_thread(told.recv):
                told.send(await run())

    with asyncio.Runner(loop_factory=FACTORIES[loop]) as runner:
        runner.run(main())


async def taking_turns(title: str, ready: Ready, url: str = "") -> Work:
    """This work on each loop."""
    processes = {loop: Processes(serve, 1, loop, ready, url) for loop in FACTORIES}

    async def ask(loop: str) -> Cost:
        cost: Cost = (await processes[loop].ask())[0]
        return cost

    contenders = [Contender(loop, LOOP, partial(ask, loop)) for loop in processes]
    try:
        return await compare(f"{TITLE}{title}", contenders)
    finally:
        for each in processes.values():
            each.end()


async def on_kafka() -> list[Work]:
    """Handling first: the topic grows."""
    async with running(Kafka) as broker:
        if broker is None:
            return []
        await asyncio.to_thread(broker.create_topic, kafka.TOPIC, kafka.PARTITIONS)
        async with _log(broker.url) as log:
            await kafka.fill(broker.url, log)
        handled = await taking_turns("handle, Kafka", handling_kafka, broker.url)
        title = f"emit, Kafka, {IN_FLIGHT:,} in flight"
        return [await taking_turns(title, emitting_kafka, broker.url), handled]


async def on_rabbitmq() -> list[Work]:
    """Emitting first: a listener's queue would get it, too."""
    async with running(RabbitMQ) as broker:
        if broker is None:
            return []
        title = f"emit, RabbitMQ, {IN_FLIGHT:,} in flight"
        return [
            await taking_turns(title, emitting_rabbitmq, broker.url),
            await taking_turns("handle, RabbitMQ", handling_rabbitmq, broker.url),
        ]


async def on_redis() -> list[Work]:
    """Emitting first: it deletes what it emits."""
    async with running(redis.server) as broker:
        if broker is None:
            return []
        title = f"emit, Redis, {IN_FLIGHT:,} in flight"
        emitted = await taking_turns(title, emitting_redis, broker.url)
        async with EventEmitter.from_url(broker.url) as emitter:
            await emitter.emit_many([created(number) for number in range(redis.MANY)])
        return [emitted, await taking_turns("handle, Redis", handling_redis, broker.url)]


async def measure() -> list[Work]:
    """Everything."""
    works = [await taking_turns("dispatch, no network, one async dependency", dispatching)]
    for broker in (on_kafka, on_rabbitmq, on_redis):
        works += await broker()
    return works
