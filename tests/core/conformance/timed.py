"""A healthy backend that can do more than the twin: its events expire, overtake and wait."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from core.conformance.twin import TWIN, TwinConfig, TwinConsumer, TwinProducer
from dispytch.consumer import Delivery
from dispytch.memory import MemoryDelivery, MemoryMessage
from dispytch.memory.broker import Item
from dispytch.producer import Details, Outgoing

__all__ = ["TIMED", "TimedConfig", "TimedConsumer", "TimedProducer"]


class TimedConfig(TwinConfig):
    """How long an event lasts and waits, in seconds, and what it overtakes."""

    ttl: float = float("inf")
    delay: float = 0.0
    priority: int = 0


class _Terms(NamedTuple):
    """What of its config goes with a message."""

    expires: float
    priority: int


class TimedProducer(TwinProducer):
    """Sends, with the terms of each event; what is to wait is there when it has."""

    async def send_message(self, out: Outgoing, /) -> Details:
        """Keep the message, now or later."""
        loop, config = asyncio.get_running_loop(), out.config or TimedConfig()
        delay = self.delay_of(config)
        terms = _Terms(loop.time() + delay + config.ttl, config.priority)
        if not delay:
            return await super().send_message(replace(out, config=terms))
        message = MemoryMessage(
            out.topic, out.payload, out.key, out.headers, terms, out.event_id, out.type
        )
        loop.call_later(delay, self.broker.append, message)
        return None

    def delay_of(self, config: TimedConfig) -> float:
        """For how many seconds an event waits."""
        return config.delay


class TimedConsumer(TwinConsumer):
    """Receives what has not expired, high priority first."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for messages that are still good."""
        while True:
            if self._group is not None:
                self._group._queue = deque(sorted(self._group._queue, key=self.rank_of))
            lasting: list[Delivery] = []
            for delivery in await super().receive(limit):
                assert isinstance(delivery, MemoryDelivery)
                if self.has_expired(delivery._item):
                    self.settle(delivery._item)
                else:
                    lasting.append(delivery)
            if lasting:
                return lasting

    def rank_of(self, item: Item) -> int:
        """What is lower comes first; of the same rank, what was there first."""
        terms: _Terms = item.message.config
        return -terms.priority

    def has_expired(self, item: Item) -> bool:
        """Whether it is too old."""
        terms: _Terms = item.message.config
        return terms.expires <= asyncio.get_running_loop().time()


TIMED = replace(
    TWIN,
    event_config=TimedConfig,
    producer=TimedProducer,
    consumer=TimedConsumer,
    capabilities=replace(TWIN.capabilities, ttl=True, priority=True),
)
