"""Link: the client in use, and its replacement when it can't go on."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from dispytch import ConnectError, EmitRejected, ProducerTimeout
from dispytch_confluent.client import MARGIN, Client
from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import BACKEND, as_connect_error, as_rejected, fate_of
from dispytch_confluent.topics import Topics
from dispytch_kafka.errors import Fate
from dispytch_kafka.record import Record

__all__ = ["GRACE", "Link", "not_queued", "not_started", "within"]

T = TypeVar("T")

GRACE = 4.0
"""Seconds that a client gets to send what it holds."""

NO_GRACE = 0.2
"""Seconds that one gets which had them before."""

_GONE = frozenset({"_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_OR_PART"})


class Link:
    """The client in use.

    Args:
        connection: how to build one.

    Attributes:
        client: the one to send with; None before start and after stop.
        grace: seconds that clients get to send what they hold when they are closed.
    """

    def __init__(self, connection: ConfluentConnection) -> None:
        self._connection = connection
        self.client: Client | None = None
        self.grace = GRACE
        self._topics = Topics(connection)
        self._replacing: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect; see `ConfluentProducer.start`."""
        self.grace = GRACE
        if self.client is None:
            self.client = await self._open()

    async def flush(self) -> None:
        """Wait until all has an outcome; see `ConfluentProducer.flush`."""
        drained = False
        try:
            drained = await self.running().answered(GRACE)
        finally:
            if not drained:
                self.grace = NO_GRACE  # its time is used up: a `stop` that follows need not wait
        if not drained:
            raise ProducerTimeout(
                f"Kafka did not confirm everything within {GRACE:g} s", retriable=True
            )

    async def stop(self) -> None:
        """Close all clients."""
        client, self.client = self.client, None
        if self._replacing is not None and not self._replacing.done():
            self._replacing.cancel()
            await asyncio.wait({self._replacing})
        if client is not None:
            self._retire(client)
        if self._closing:
            await asyncio.wait(self._closing)

    def running(self) -> Client:
        """The client to send with.

        Raises:
            EmitRejected: there is none: not started, or stopped meanwhile.
        """
        if self.client is None:
            raise EmitRejected("the Kafka producer is not started", retriable=True)
        return self.client

    async def ready(self, topic: str, deadline: float) -> Client:
        """The client to send with, once it knows the topic.

        Raises:
            EmitRejected: there is no such topic, or no answer shortly before the deadline.
        """
        while True:
            client = self.running()
            if topic in client.topics:
                return client
            try:
                await within(self._topics.learn(client, topic), topic, deadline)
            except KafkaException as error:
                await self.mend(client, error.args[0], topic, deadline)

    async def ensure(self, topic: str, deadline: float) -> None:
        """See that a dead-letter topic is there; see `Topics.ensure`."""
        client = self.running()
        if topic in client.topics:
            return
        try:
            await within(self._topics.ensure(client, topic), topic, deadline)
        except KafkaException as error:
            raise as_rejected(error.args[0], topic) from error

    async def queue(self, record: Record, deadline: float) -> asyncio.Future[Any]:
        """Queue a record where that did not work at once.

        Raises:
            EmitRejected: it was not queued.
        """
        while True:
            client = await self.ready(record.topic, deadline)
            try:
                return client.send(record)
            except BufferError:
                await within(client.room(), record.topic, deadline)
            except KafkaException as error:
                problem = error.args[0]
                if problem.name() == "_UNKNOWN_PARTITION":
                    await self._check_partition(client, record, deadline)
                elif fate_of(problem) is Fate.BROKEN:
                    await self.mend(client, problem, record.topic, deadline)
                else:
                    raise as_rejected(problem, record.topic) from error

    async def mend(self, client: Client, problem: Any, topic: str, deadline: float) -> None:
        """Go on after an error: at once, or with another client.

        Raises:
            EmitRejected: that is of no use, or not possible before the deadline.
        """
        if fate_of(problem) is Fate.BROKEN:
            cause = client.trouble or problem
            if fate_of(cause) is Fate.REFUSED:
                raise as_rejected(cause, topic)
            await within(self._replace(client), topic, deadline)
        elif asyncio.get_running_loop().time() >= deadline - MARGIN:
            raise not_queued(topic)

    def forget(self, topic: str, problem: Any) -> None:
        """Ask for a topic anew before the next event, if this says that it is gone."""
        if self.client is not None and problem.name() in _GONE:
            self.client.topics.pop(topic, None)

    async def _check_partition(self, client: Client, record: Record, deadline: float) -> None:
        """Ask again how many partitions there are: the one that is meant may be new.

        Raises:
            EmitRejected: there is none.
        """
        client.topics.pop(record.topic, None)
        client = await self.ready(record.topic, deadline)
        there = client.topics[record.topic]
        if record.partition is None or record.partition >= there:
            raise EmitRejected(
                f"topic {record.topic!r} has no partition {record.partition}, only 0 to {there - 1}"
            )

    async def _replace(self, client: Client) -> None:
        """Have a new client in the place of one that can't go on; all wait for one attempt."""
        if self.client is not client:
            return  # it has been done
        if self._replacing is None or self._replacing.done():
            successor = self._put_successor(client)
            self._replacing = asyncio.get_running_loop().create_task(successor)
        try:
            await asyncio.shield(self._replacing)
        except ConnectError as error:
            raise EmitRejected(f"not sent, and {error}", retriable=error.retriable) from error

    async def _put_successor(self, client: Client) -> None:
        self.client = await self._open()
        self._retire(client)

    def _retire(self, client: Client) -> None:
        closing = asyncio.get_running_loop().create_task(client.close(self.grace))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _open(self) -> Client:
        """A client that reached a broker, or nothing left behind."""
        try:
            client = Client(self._connection)
        except KafkaException as error:
            refused = as_connect_error(error.args[0], "can't connect to Kafka")
            refused.retriable = False
            raise refused from error
        try:
            await client.connect(self._connection.request_timeout_ms / 1000)
        except BaseException:
            await client.close(0)
            raise
        return client


async def within(waiting: Awaitable[T], topic: str, deadline: float) -> T:
    """Await what precedes queueing an event, until shortly before its deadline.

    Raises:
        EmitRejected: the time is over: the event was not queued.
    """
    scope = asyncio.timeout_at(deadline - MARGIN)
    try:
        async with scope:
            return await waiting
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise not_queued(topic) from error


def not_queued(topic: str) -> EmitRejected:
    """The outcome of an event that was still ours at its deadline."""
    return EmitRejected(
        f"not sent to {topic!r} before the deadline: the brokers don't answer, or what they "
        "have not confirmed yet fills the client's queue",
        retriable=True,
    )


def not_started() -> ConnectError:
    """The error of a producer that is not started."""
    return ConnectError("the Kafka producer is not started", backend=BACKEND)
