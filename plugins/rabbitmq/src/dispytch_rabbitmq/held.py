"""Held: what one channel delivered and nobody settled yet, and how the broker is told."""

import asyncio
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiormq import spec
from aiormq.abc import AbstractChannel, ChannelFrame, DeliveredMessage

from dispytch import ConnectError, Delivery, EmitError, SettleError
from dispytch_rabbitmq.delays import Delays
from dispytch_rabbitmq.received import Envelope, dead_letter_facts
from dispytch_rabbitmq.topology import Queue

__all__ = ["Held", "RabbitMQDelivery"]

logger = logging.getLogger("dispytch.rabbitmq")

_LONGEST_HERE = 60.0


@dataclass(slots=True, eq=False)
class RabbitMQDelivery(Delivery):
    """A message of a queue.

    Attributes:
        message: as the client has it.
        queue: where it comes from.
        held: what settles it.
    """

    message: DeliveredMessage = field(kw_only=True, repr=False)
    queue: Queue = field(kw_only=True, repr=False)
    held: "Held" = field(kw_only=True, repr=False)

    @property
    def tag(self) -> int:
        """Its number on its channel."""
        return self.message.delivery_tag or 0

    async def ack(self) -> None:
        """Have the broker forget it.

        Raises:
            SettleError: its channel has ended: it comes again.
        """
        self.held.settle(self)

    async def nack(self, delay: float | None = None) -> None:
        """Give it back, which the broker counts; or have it come again after a delay.

        A delay is rounded up to the next tier (see `tier`). Where the broker can't take it, and for
        a listener without a group, it is waited for here instead, at most a minute.

        Raises:
            SettleError: its channel has ended: it comes again.
        """
        if delay is None or delay <= 0:
            self.held.settle(self, again=True)
        else:
            await self.held.delay(self, delay)


class Held:
    """The unsettled deliveries of one channel.

    Acknowledgements are gathered and written by one task, in one go for all that came together.

    Args:
        channel: what delivers.
        hand_over: takes each delivery.
        delays: brings messages back later.

    Attributes:
        told_at: when the broker was last told something, on the loop's clock.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        hand_over: Callable[[RabbitMQDelivery], None],
        delays: Delays,
    ) -> None:
        self.channel = channel
        self.ended = False
        self.told_at = float("-inf")
        self._hand_over = hand_over
        self._delays = delays
        self._unsettled: dict[int, RabbitMQDelivery] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._acks: list[int] = []
        self._nacks: list[int] = []
        self._floor, self._above = 0, set[int]()
        self._wake, self._written = asyncio.Event(), asyncio.Event()
        self._written.set()
        self._writer = asyncio.create_task(self._write(), name="dispytch-rabbitmq-acks")
        channel.closing.add_done_callback(lambda _: self.end())

    def __len__(self) -> int:
        return len(self._unsettled)

    async def take(self, queue: Queue, message: DeliveredMessage) -> None:
        """Hand over what was delivered; a coroutine, as the client wants it."""
        raw: Any = message.header.properties.headers or {}
        envelope = Envelope(raw)
        headers = envelope.headers
        if not queue.binding:
            headers += dead_letter_facts(raw, headers)
        topic = queue.topic or envelope.topic or message.routing_key or ""
        via = queue.via(topic)
        delivery = RabbitMQDelivery(
            topic,
            message.body,
            envelope.key,
            headers,
            envelope.attempt,
            via,
            message=message,
            queue=queue,
            held=self,
        )
        if self.ended:
            return
        self._unsettled[delivery.tag] = delivery
        if via:
            self._hand_over(delivery)
        else:
            self.settle(delivery)

    def settle(self, delivery: RabbitMQDelivery, *, again: bool = False) -> None:
        """Note it for being told; `again`: back into its queue.

        Raises:
            SettleError: the channel has ended, or it was settled before.
        """
        tag = delivery.tag
        if self._unsettled.get(tag) is not delivery:
            raise SettleError(
                "rabbitmq: the channel of this delivery has ended; it comes again"
                if delivery.lost
                else "rabbitmq: this delivery is settled already"
            )
        del self._unsettled[tag]
        (self._nacks if again else self._acks).append(tag)
        self._written.clear()
        self._wake.set()

    async def delay(self, delivery: RabbitMQDelivery, delay: float) -> None:
        """Have it come again after so many seconds.

        Raises:
            SettleError: the channel has ended: it comes again at once.
        """
        if self._unsettled.get(delivery.tag) is not delivery:
            self.settle(delivery)  # raises
        if delivery.queue.is_ours_alone:
            self._later(delivery, delay)
            return
        try:
            await self._delays.send(delivery.message, delivery, delivery.queue.name, delay)
        except (EmitError, ConnectError, ValueError) as error:
            logger.warning("rabbitmq: no delay by the broker, waiting here instead: %s", error)
            if not delivery.lost:
                self._later(delivery, min(delay, _LONGEST_HERE))
            return
        self.settle(delivery)

    def end(self) -> None:
        """The channel is gone: what is unsettled comes again by itself."""
        if self.ended:
            return
        self.ended = True
        for delivery in self._unsettled.values():
            delivery.lost = True
        self._unsettled.clear()
        for timer in self._timers:
            timer.cancel()
        self._writer.cancel()
        self._written.set()

    async def flush(self) -> None:
        """Wait until what was settled is on its way."""
        await self._written.wait()

    def _later(self, delivery: RabbitMQDelivery, delay: float) -> None:
        """Hand it over again after a while; until then the broker takes it for under way."""

        def due() -> None:
            self._timers.discard(timer)
            self._hand_over(fresh)

        fresh = copy.copy(delivery)
        fresh.attempt, fresh.running = delivery.attempt + 1, 0
        self._unsettled[delivery.tag] = fresh
        timer = asyncio.get_running_loop().call_later(delay, due)
        self._timers.add(timer)

    async def _write(self) -> None:
        queue, number = self.channel.connection.write_queue, self.channel.number
        clock = asyncio.get_running_loop().time
        while True:
            await self._wake.wait()
            self._wake.clear()
            frames = self._frames()
            await queue.put(ChannelFrame.marshall(channel_number=number, frames=frames))
            self.told_at = clock()
            if not (self._acks or self._nacks):
                self._written.set()

    def _frames(self) -> list[spec.Basic.Nack | spec.Basic.Ack]:
        """All that is to be told; one frame for the acks below which everything is settled."""
        acks, nacks = sorted(self._acks), self._nacks
        self._acks, self._nacks = [], []
        self._above.update(acks, nacks)
        while self._floor + 1 in self._above:
            self._floor += 1
            self._above.discard(self._floor)
        frames: list[spec.Basic.Nack | spec.Basic.Ack] = [
            spec.Basic.Nack(tag, multiple=False, requeue=True) for tag in nacks
        ]
        below = [tag for tag in acks if tag <= self._floor]
        if below:  # a tag that is still open for the broker: it refuses any other
            frames.append(spec.Basic.Ack(below[-1], multiple=True))
        frames += [spec.Basic.Ack(tag, multiple=False) for tag in acks[len(below) :]]
        return frames
