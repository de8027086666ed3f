"""Client: a `confluent_kafka.Producer` whose answers come to the event loop."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaException, Producer

from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import as_connect_error
from dispytch_kafka.record import Record

__all__ = ["MARGIN", "Client", "produce"]

logger = logging.getLogger("dispytch.librdkafka")

MARGIN = 0.05
"""Seconds before an event's deadline when the attempt to queue it ends: what was not queued is
certainly not stored, and there must be time left to say so."""

_POLL = 0.2
"""Seconds that the thread waits for answers; so long stopping it may take."""

_LOOK = 0.25
"""Seconds that one question for the cluster's layout takes at most."""

_HOPELESS = frozenset({"_AUTHENTICATION", "_SSL", "_ALL_BROKERS_DOWN"})
"""What says that no broker will be reached soon."""


def produce(producer: Any, record: Record, answered: Callable[[Any, Any], None]) -> None:
    """Queue a record.

    Args:
        producer: a `confluent_kafka.Producer`.
        record: the record.
        answered: called with the error and the message, in the thread that takes the answers.

    Raises:
        BufferError: the queue is full.
        KafkaException: it can't be sent.
    """
    producer.produce(
        record.topic,
        record.value,
        record.key,
        -1 if record.partition is None else record.partition,
        answered,
        timestamp=record.timestamp_ms,
        headers=record.headers or None,
    )


class Client:
    """A producer of librdkafka with a thread that takes its answers.

    librdkafka answers in batches, and the loop is woken once for each.

    Args:
        connection: how to build it.

    Attributes:
        producer: the `confluent_kafka.Producer`.
        topics: those that are known to be there, with their number of partitions.
        trouble: the last `KafkaError` that was no answer: why it can't go on, or connections are
            lost; None: there was none.

    Raises:
        KafkaException: librdkafka refuses a setting.
    """

    def __init__(self, connection: ConfluentConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._answers: deque[tuple[asyncio.Future[Any], Any, Any]] = deque()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._room: asyncio.Future[None] | None = None
        self.trouble: Any = None
        self._hopeless = False
        self._running = True
        settings = connection.librdkafka_producer() | {"error_cb": self._note}
        self.producer: Any = Producer(settings, logger=logger)
        self.topics: dict[str, int] = {}
        self._thread = threading.Thread(target=self._poll, name="dispytch-confluent", daemon=True)
        self._thread.start()

    def send(self, record: Record) -> asyncio.Future[Any]:
        """Queue a record; the future is the broker's answer, a `confluent_kafka.Message`.

        Raises:
            BufferError: the queue is full.
            KafkaException: it can't be sent.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        answers = self._answers

        def answered(error: Any, message: Any) -> None:
            answers.append((answer, error, message))

        produce(self.producer, record, answered)
        self._waiting.add(answer)
        return answer

    async def room(self) -> None:
        """Wait until there were answers: then there is room in the queue."""
        if self._room is None:
            self._room = self._loop.create_future()
        await asyncio.shield(self._room)

    async def connect(self, timeout: float) -> None:
        """Wait for a broker.

        Raises:
            ConnectError: none can be reached, or they refuse us.
        """
        failure = await asyncio.to_thread(self._reach, timeout)
        if failure is not None:
            raise as_connect_error(failure, "can't connect to Kafka")

    async def partitions_of(self, topic: str | None, timeout: float) -> dict[str, Any]:
        """Ask the brokers for a topic, or all: their metadata by name.

        Raises:
            KafkaException: there was no answer.
        """
        asked = await asyncio.to_thread(self._layout, topic, timeout)
        found: dict[str, Any] = asked.topics
        return found

    async def ping(self, timeout: float) -> None:
        """Ask for the layout of the cluster, at least of a topic that is known to be there.

        Raises:
            ConnectError: no broker answers.
        """
        try:
            await self.partitions_of(next(iter(self.topics), None), timeout)
        except KafkaException as error:
            raise as_connect_error(error.args[0], "no sign of life") from error

    async def answered(self, timeout: float) -> bool:
        """Wait until all that is queued now was answered, whoever still waits for it.

        Returns:
            Whether it was in time.
        """
        waiting = self._waiting.copy()
        try:
            async with asyncio.timeout(timeout):
                while not waiting.isdisjoint(self._waiting):
                    await self.room()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout: float) -> None:
        """Send what is queued, for so long, then drop the rest; end the thread."""
        try:
            if not await asyncio.to_thread(self._drain, timeout):
                logger.warning("kafka: brokers don't answer; what was not sent is dropped")
        finally:
            self.producer.purge()
            await asyncio.shield(asyncio.to_thread(self._end))
            self._settle()

    def _layout(self, topic: str | None, timeout: float) -> Any:
        """In a thread: this blocks."""
        return self.producer.list_topics(topic, timeout=timeout)

    def _reach(self, timeout: float) -> Any:
        """In a thread: why no broker could be reached, or None."""
        deadline = time.monotonic() + timeout
        while self._running:
            try:
                self.producer.list_topics(timeout=_LOOK)
            except KafkaException as error:
                if self._hopeless or time.monotonic() > deadline:
                    return self.trouble or error.args[0]
            else:
                return None
        return None

    def _drain(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self._served(self.producer.flush):
            self._wake()
            if time.monotonic() > deadline or not self._running:
                return False
        self._wake()
        return True

    def _end(self) -> None:
        self._running = False
        self._thread.join()
        self._served(self.producer.flush)

    def _note(self, error: Any) -> None:
        """Remember what is wrong; that nobody answers tells less than what came before."""
        self._hopeless = self._hopeless or error.name() in _HOPELESS
        before = self.trouble
        if before is None or not (before.fatal() or error.name() == "_ALL_BROKERS_DOWN"):
            self.trouble = error

    def _served(self, serve: Callable[[float], int]) -> int:
        """Take answers by `poll` or `flush`, which raise what ends a client instead of telling."""
        try:
            return serve(_POLL)
        except KafkaException as error:
            self._note(error.args[0])
            return 1

    def _poll(self) -> None:
        """The thread."""
        while self._running:
            if self._served(self.producer.poll) and (self._answers or self._room):
                self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Give all answers to those who wait."""
        answers = self._answers
        while answers:
            answer, error, message = answers.popleft()
            self._waiting.discard(answer)
            if answer.done():
                continue
            if error is None:
                answer.set_result(message)
            else:
                answer.set_exception(KafkaException(error))
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)
