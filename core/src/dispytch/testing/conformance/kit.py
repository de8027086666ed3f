"""Kit: opens producers and consumers of the backend under test, and closes them again."""

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispytch import plugins
from dispytch.backend import Backend, Capabilities
from dispytch.consumer import Consumer, Delivery, Subscription
from dispytch.emitter import EventEmitter
from dispytch.event import EventBase
from dispytch.listener import EventListener
from dispytch.producer import Details, Outgoing, Producer
from dispytch.url import connect

if TYPE_CHECKING:
    from dispytch.testing.conformance.suite import BackendConformance

__all__ = ["Kit", "Numbered", "is_short"]

LANES = 16
"""How many keys the events of a load have."""


def is_short() -> bool:
    """Whether the loads are a tenth: with `DISPYTCH_CONFORMANCE_LOAD=short`."""
    return os.environ.get("DISPYTCH_CONFORMANCE_LOAD") == "short"


class Numbered(EventBase):
    """An event of a load: its key, and its place among all."""

    __event_type__ = "numbered"
    __key__ = "{lane}"

    lane: int = 0
    number: int = 0
    ratio: float = 0.0
    filling: str = ""


def numbered(topic: str) -> type[Numbered]:
    """The same, on a topic."""

    class There(Numbered):
        __topic__ = topic

    return There


class Kit:
    """What the tests work with.

    Args:
        suite: the test class's instance: its attributes and hooks.
        url: leads to a broker.
        folder: an empty directory.
    """

    def __init__(self, suite: "BackendConformance", url: str, folder: Path) -> None:
        self.suite, self.url, self.folder = suite, url, folder
        self.backend: Backend = plugins.get_backend(suite.backend)
        self.capabilities: Capabilities = self.backend.capabilities
        self._name = uuid.uuid4().hex[:12]
        self._count = 0
        self._closing: list[Callable[[], Awaitable[object]]] = []

    def name(self, what: str) -> str:
        """A name that nobody else has."""
        self._count += 1
        return f"{what}-{self._name}-{self._count}"

    def group(self) -> str | None:
        """A group that nobody else has; None where there are no groups."""
        return self.name("g") if self.capabilities.groups else None

    @property
    def keeps_order(self) -> bool:
        """Whether events of one key stay in order among the members of a group."""
        return self.capabilities.ordering in {"key", "total"}

    async def topic(self) -> str:
        """A topic that nobody has used."""
        topic = self.name("t")
        await self.make_topic(topic)
        return topic

    async def make_topic(self, topic: str) -> None:
        """Make a topic of this name, where the broker wants that."""
        await self.suite.make_topic(self.url, topic)

    def many(self, count: int) -> int:
        """So many, or a tenth where loads are short."""
        return max(count // 10, 1) if is_short() else count

    # Opening

    def connection(self, url: str | None = None) -> Any:
        """The validated connection of a URL."""
        schema = self.backend.connection
        assert schema is not None, f"backend {self.backend.name!r} has no `connection`: no URLs"
        return connect(url or self.url, schema)

    async def producer(self, url: str | None = None) -> Producer:
        """A producer, started."""
        producer = self.backend.make_producer(self.connection(url))
        await producer.start()
        self._closing.append(producer.stop)
        return producer

    def new_consumer(self, url: str | None = None, held: int = 1000) -> Consumer:
        """A consumer, not started."""
        consumer = self.backend.make_consumer(self.connection(url))
        consumer.max_held = held
        self._closing.append(consumer.stop)
        return consumer

    async def consumer(
        self,
        *topics: str,
        group: str | None = None,
        ordered: bool = True,
        url: str | None = None,
        held: int = 1000,
    ) -> Consumer:
        """A consumer, started and subscribed to these topics or patterns."""
        consumer = self.new_consumer(url, held)
        await consumer.start()
        await self.subscribe(consumer, *topics, group=group, ordered=ordered)
        return consumer

    async def subscribe(
        self, consumer: Consumer, *topics: str, group: str | None = None, ordered: bool = True
    ) -> None:
        """Subscribe a consumer to topics or patterns."""
        delimiter = self.backend.topic_delimiter
        await consumer.subscribe(
            [Subscription(topic, group, ordered, delimiter) for topic in topics]
        )

    async def subscriber(self, *topics: str, url: str | None = None) -> Consumer:
        """A consumer of a group of its own, where there are groups."""
        return await self.consumer(*topics, group=self.group(), url=url)

    async def subscriber_of(self, url: str) -> Consumer:
        """A subscriber of a new topic, by another URL."""
        return await self.subscriber(self.name("t"), url=url)

    async def emitter(self, url: str | None = None, timeout: float = 30.0) -> EventEmitter:
        """An emitter, started."""
        emitter = EventEmitter.from_url(url or self.url, timeout=timeout)
        self._closing.append(emitter.stop)
        await emitter.start()
        return emitter

    def listener(self, group: str, url: str | None = None, **options: Any) -> EventListener:
        """A listener, not started."""
        listener = EventListener.from_url(url or self.url, group=group, **options)
        self._closing.append(listener.stop)
        return listener

    def event(self, topic: str) -> type[Numbered]:
        """An event class on this topic."""
        return numbered(topic)

    # Sending and receiving

    @staticmethod
    def id_of(delivery: Delivery) -> str:
        """The id of the event that was delivered."""
        return str(json.loads(delivery.payload)["id"])

    @staticmethod
    def number_of(delivery: Delivery) -> tuple[int, int]:
        """Key and number of the event that was delivered."""
        body = json.loads(delivery.payload)["body"]
        return body["lane"], body["number"]

    async def send(
        self,
        producer: Producer,
        topic: str,
        payload: bytes,
        *,
        key: str | None = None,
        headers: dict[str, str | bytes] | None = None,
        config: Any = None,
    ) -> Details:
        """Send these bytes, as an emitter would."""
        return await producer.send_message(self.outgoing(topic, payload, key, headers, config))

    def outgoing(
        self,
        topic: str,
        payload: bytes,
        key: str | None = None,
        headers: dict[str, str | bytes] | None = None,
        config: Any = None,
    ) -> Outgoing:
        """A message with these bytes, ready to be sent."""
        deadline = asyncio.get_running_loop().time() + 30
        return Outgoing(
            uuid.uuid4().hex, "any", topic, payload, key, config, headers or {}, deadline
        )

    async def receive(
        self,
        consumer: Consumer,
        count: int,
        *,
        within: float = 30.0,
        limit: int = 100,
        ack: bool = True,
    ) -> list[Delivery]:
        """Receive at least so many, and acknowledge them.

        Raises:
            AssertionError: fewer came.
        """
        came: list[Delivery] = []
        deadline = asyncio.get_running_loop().time() + within
        while len(came) < count:
            fresh = await _by(deadline, consumer, min(limit, count - len(came)))
            assert fresh is not None, f"{len(came)} of {count} came within {within:g} s"
            came += fresh
            if ack:
                for delivery in fresh:
                    await delivery.ack()
        return came

    async def rest(self, consumer: Consumer) -> list[Delivery]:
        """What comes until nothing more does, acknowledged."""
        came: list[Delivery] = []
        loop, quiet = asyncio.get_running_loop(), self.suite.quiet
        deadline = loop.time() + quiet
        while (fresh := await _by(deadline, consumer, 100)) is not None:
            came += fresh
            for delivery in fresh:
                await delivery.ack()
            if fresh:
                deadline = loop.time() + quiet
        return came

    async def share(
        self, consumers: Sequence[Consumer], count: int, *, within: float = 60.0
    ) -> list[tuple[int, Delivery]]:
        """Let consumers receive side by side until so many came, and then no more.

        Returns:
            What came, with the number of the consumer, in the order in which it came.
        """
        came: list[tuple[int, Delivery]] = []
        loop = asyncio.get_running_loop()
        latest = loop.time()

        async def work(number: int, consumer: Consumer) -> None:
            nonlocal latest
            while True:
                await asyncio.sleep(0)
                for delivery in await consumer.receive(20):
                    came.append((number, delivery))
                    latest = loop.time()
                    await asyncio.sleep(0)
                    await delivery.ack()

        tasks = [asyncio.create_task(work(*each)) for each in enumerate(consumers)]
        deadline = loop.time() + within
        try:
            while loop.time() < deadline and (
                len(came) < count or loop.time() < latest + self.suite.quiet
            ):
                done, _ = await asyncio.wait(tasks, timeout=0.05)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return came

    # Closing

    async def stop(self, stopping: Awaitable[object]) -> None:
        """Wait for a `stop`.

        Raises:
            AssertionError: longer than `stop_within`.
        """
        within = self.suite.stop_within
        task = asyncio.ensure_future(stopping)
        done, _ = await asyncio.wait({task}, timeout=within)
        if not done:
            task.cancel()
            raise AssertionError(f"stop() did not return within {within:g} s")
        task.result()

    async def aclose(self) -> None:
        """Stop everything that was opened; what goes wrong then is other tests' matter."""
        for stop in reversed(self._closing):
            with contextlib.suppress(Exception):
                await self.stop(stop())


async def _by(deadline: float, consumer: Consumer, limit: int) -> Sequence[Delivery] | None:
    """What is received; None: nothing until the deadline."""
    scope = asyncio.timeout_at(deadline)
    try:
        async with scope:
            fresh = await consumer.receive(limit)
            if not fresh:  # against the contract, and no reason to hang here
                await asyncio.sleep(0)
    except TimeoutError:
        if scope.expired():
            return None
        raise
    return fresh
