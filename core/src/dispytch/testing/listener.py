"""TestListener: a listener's handlers on a broker of its own, without waiting."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Self

from dispytch.emitter import EventEmitter
from dispytch.event import EventBase
from dispytch.listener import EventListener, Health
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage, MemoryProducer
from dispytch.producer import Receipt
from dispytch.topics import DEAD_LETTER

__all__ = ["TestListener"]


class TestListener:
    """Runs a listener on the memory backend: routing, injection, retries, dead letters, all real.

    Only the waiting is left out: an attempt that is due later comes as soon as nothing else is
    left to do, in the order in which it would have come::

        async with TestListener(listener) as t:
            await t.emit(OrderPlaced(order="o-1"))
            await t.settled()
        assert not t.dead_letters

    The listener itself is not started. Overrides of its dependencies count.

    Args:
        listener: whose handlers are tested, whatever its backend.

    Attributes:
        emitter: emits to the broker; for services under test that emit themselves.
    """

    __test__ = False  # no test class, whatever pytest takes it for

    def __init__(self, listener: EventListener) -> None:
        self._broker = MemoryBroker()
        self._timers = _Timers()
        self._broker.timers = self._timers
        consumer, producer = MemoryConsumer(self._broker), MemoryProducer(self._broker)
        self._delimiter = listener.consumer.topic_delimiter
        consumer.topic_delimiter = producer.topic_delimiter = self._delimiter
        self.emitter = EventEmitter(producer)
        consumer.delays = listener.consumer.delays
        self._listener = listener.rebound(consumer, dead_letter=producer)
        self._listener.timers = self._timers
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.emitter.start()
        await self._listener.start()
        self._listener.when_idle(self._news.set)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._listener.stop()
        await self.emitter.stop()

    async def emit(self, event: EventBase) -> Receipt:
        """Emit an event to the handlers; does not wait for them."""
        return await self.emitter.emit(event)

    async def send(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str | None = None,
        headers: dict[str, str | bytes] | None = None,
    ) -> None:
        """Put any bytes on a topic, as another service might."""
        self._broker.append(MemoryMessage(topic, payload, key, headers or {}, None, "", ""))

    async def settled(self, timeout: float = 10.0) -> None:
        """Wait until every event, those from handlers included, is handled or dead-lettered.

        Args:
            timeout: seconds that the handlers themselves may take.

        Raises:
            AssertionError: they took longer, or the listener ended.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._broker.unsettled:
                    await self._progress()
        except TimeoutError:
            raise AssertionError(
                f"{self._broker.unsettled} events not settled within {timeout:g} s: {self.health}"
            ) from None

    async def _progress(self) -> None:
        health = self.health
        if health.running or health.ready:
            self._news.clear()
            await self._news.wait()
        elif self._broker.undelivered and health.accepting:
            await asyncio.sleep(0)  # it is on its way to the listener
        elif not self._timers.fire():
            raise AssertionError(f"nothing happens any more: {health}")

    @property
    def health(self) -> Health:
        """How the listener is, and its counts."""
        return self._listener.health()

    @property
    def dead_letters(self) -> list[MemoryMessage]:
        """What was dead-lettered, in order; the headers tell why."""
        ending = self._delimiter + DEAD_LETTER
        return [message for message in self._broker.messages if message.topic.endswith(ending)]


class _Timer:
    def __init__(self, callback: Callable[[Any], None], item: Any) -> None:
        self.callback, self.item = callback, item
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class _Timers:
    """A clock that stands until it is told to go on to the next thing that is due."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = count()
        self._due: list[tuple[float, int, _Timer]] = []

    def call_later(self, delay: float, callback: Callable[[Any], None], item: Any, /) -> _Timer:
        timer = _Timer(callback, item)
        heapq.heappush(self._due, (self._now + delay, next(self._numbers), timer))
        return timer

    def fire(self) -> bool:
        """Do what is due next; whether there was anything."""
        while self._due:
            self._now, _, timer = heapq.heappop(self._due)
            if not timer.is_cancelled:
                timer.callback(timer.item)
                return True
        return False
