"""RabbitMQConsumer: receives from RabbitMQ, by URL."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from aiormq.abc import AbstractChannel

from dispytch import ConfigError, ConnectError, Consumer, Delivery, Subscription
from dispytch_rabbitmq.config import RabbitMQConnection
from dispytch_rabbitmq.connection import CHANNEL_TIMEOUT, open_channel, round_trip
from dispytch_rabbitmq.delays import Delays
from dispytch_rabbitmq.errors import CLIENT_ERRORS, Meaning, describe, meaning
from dispytch_rabbitmq.held import Held, RabbitMQDelivery
from dispytch_rabbitmq.link import Link
from dispytch_rabbitmq.producer import RabbitMQProducer
from dispytch_rabbitmq.queuing import bind_queue, consume_queue, declare_queue
from dispytch_rabbitmq.topology import Queue, declare, plan

__all__ = ["RabbitMQConsumer"]

logger = logging.getLogger("dispytch.rabbitmq")

_MAX_PREFETCH = 65_535
_GOODBYE = 3.0
_SETTLING = 1.0
"""Seconds that a channel stays open after the last ack: that of a quorum queue passes on
some 32 at once, keeps the others until those are applied, and forgets what it keeps when it is
closed. Nothing tells when it is through."""

_COUNTS, _BETWEEN_COUNTS = 10, 0.05  # how often messages are counted at most, seconds between

_REFUSALS = 3
"""A broker that is starting refuses what it will allow: only so many in a row are believed."""


class RabbitMQConsumer(Consumer):
    """Consumes queues that it declares: one for each group and topic.

    It connects again by itself, and declares and consumes anew. At most `max_held` messages of each
    queue are here unsettled.

    Args:
        connection: where to, as whom, and how.
    """

    backend = "rabbitmq"
    delays = True

    def __init__(self, connection: RabbitMQConnection) -> None:
        self._settings = connection
        self._link = Link(connection, self._set_up, self._told)
        self._delays = Delays(connection)
        self._queues: list[Queue] = []
        self._names: list[str] = []
        self._held: Held | None = None
        self._ready: deque[RabbitMQDelivery] = deque()
        self._news = asyncio.Event()
        self._refusals = 0
        self._problem: ConnectError | None = None

    @classmethod
    def from_connection(cls, connection: RabbitMQConnection, /) -> Self:
        """A consumer with a connection of its own, which `start` opens and `stop` closes."""
        return cls(connection)

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectError: no host could be reached or let us in.
        """
        if not self._link.is_kept:
            self._news, self._delays = asyncio.Event(), Delays(self._settings)
            self._refusals, self._problem = 0, None
            await self._link.open()

    async def stop(self) -> None:
        """Tell what was acknowledged, give back the rest, and close, in a few seconds at most."""
        held, self._held = self._held, None
        try:
            await self._link.give_up()
            if held is not None:
                await self._say_goodbye(held)
        finally:
            try:
                await self._link.close()
            finally:
                self._queues, self._names = [], []
                self._ready.clear()
                self._news.set()
                await self._delays.close()

    async def ping(self) -> None:
        """Open and close a channel.

        Raises:
            ConnectError: there is no connection, or the broker does not answer.
        """
        connection = self._link.connection
        if connection is None:
            told = f": {self._problem}" if self._problem else ""
            raise ConnectError(f"rabbitmq: not connected{told}", backend="rabbitmq")
        told = ""
        try:
            await round_trip(connection)
        except CLIENT_ERRORS as error:
            told = describe(error, self._settings.login)
        if told:
            raise ConnectError(f"rabbitmq: no sign of life: {told}", backend="rabbitmq")

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Declare the queues and their bindings, and begin to consume.

        Raises:
            ConnectError: the connection was lost, or the broker refuses it.
            ConfigError: a subscription can't work, or its queue exists with other arguments.
        """
        queues = plan(subscriptions)
        if self._queues:
            raise ConfigError("rabbitmq: this consumer is subscribed already; make another")
        channel = await self._link.channel()
        if channel is None or self._held is None:
            raise ConnectError("rabbitmq: not started", backend="rabbitmq", retriable=False)
        told, refused = "", False
        try:
            await declare(channel.connection, queues, self._settings)
            await self._consume(self._held, queues)
        except CLIENT_ERRORS as error:
            told = describe(error, self._settings.login)
            refused = meaning(error) is Meaning.CHANNEL_REFUSED
        if told:
            raise ConnectError(f"rabbitmq: {told}", backend="rabbitmq", retriable=not refused)
        self._queues = queues

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Take what has arrived: at least one delivery, at most `limit`; waits also for a broker.

        Raises:
            ConnectError: it is stopped, or the broker refuses again and again what it allowed.
        """
        while not self._ready:
            if self._problem is not None and self._refusals >= _REFUSALS:
                raise ConnectError(str(self._problem), backend="rabbitmq", retriable=False)
            if not self._link.is_kept:
                raise ConnectError("rabbitmq: not started", backend="rabbitmq", retriable=False)
            self._news.clear()
            await self._news.wait()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def dead_letter_producer(self) -> RabbitMQProducer:
        """A producer with a connection of its own to the same broker."""
        return RabbitMQProducer.from_connection(self._settings)

    async def backlog(self) -> int | None:
        """How many messages are ready in the queues, with those that are here unsettled.

        The broker does not count what is on its way here: so it is asked until two answers agree.
        """
        before, count = -1, await self._count()
        for _ in range(_COUNTS):
            if count is None or count == before:
                break
            await asyncio.sleep(_BETWEEN_COUNTS)
            before, count = count, await self._count()
        return count

    async def _count(self) -> int | None:
        connection, held = self._link.connection, self._held
        if connection is None or held is None:
            return None
        ready = 0
        try:
            channel = await open_channel(connection)
            async with asyncio.timeout(CHANNEL_TIMEOUT):
                for name in self._names:
                    ready += (await declare_queue(channel, name, passive=True))[1]
                await channel.close()
        except CLIENT_ERRORS:
            return None
        return ready + len(held)

    # On each new channel

    async def _set_up(self, connection: Any) -> AbstractChannel:
        try:
            await declare(connection, self._queues, self._settings)
        except ConfigError as error:
            raise ConnectError(str(error), backend="rabbitmq", retriable=False) from error
        channel = await open_channel(connection)
        held = Held(channel, self._hand_over, self._delays)
        channel.closing.add_done_callback(lambda _: self._forget_lost())
        channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, channel))
        await self._consume(held, self._queues)
        self._held = held
        return channel

    async def _consume(self, held: Held, queues: Sequence[Queue]) -> None:
        channel = held.channel
        self._names = []
        async with asyncio.timeout(CHANNEL_TIMEOUT * (1 + len(queues))):
            await channel.basic_qos(prefetch_count=min(self.max_held, _MAX_PREFETCH))
            for number, queue in enumerate(queues):
                name, tag = queue.name, f"dispytch-{number}"
                if queue.is_ours_alone:
                    name, _ = await declare_queue(channel, "", ours_alone=True)
                    await bind_queue(channel, name, self._settings.exchange, queue.binding)
                await consume_queue(channel, name, tag, partial(held.take, queue))
                self._names.append(name)

    def _hand_over(self, delivery: RabbitMQDelivery) -> None:
        self._ready.append(delivery)
        self._news.set()

    def _forget_lost(self) -> None:
        self._ready = deque(delivery for delivery in self._ready if not delivery.lost)

    async def _cancelled(self, channel: AbstractChannel, _: object) -> None:
        """A queue was deleted: begin anew with all of them."""
        logger.warning("rabbitmq: the broker ended the consuming of a queue; beginning anew")
        closing = asyncio.create_task(channel.close())
        closing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _told(self, error: ConnectError | None) -> None:
        self._problem = error
        self._refusals = self._refusals + 1 if error is not None and not error.retriable else 0
        self._news.set()

    async def _say_goodbye(self, held: Held) -> None:
        """Hear that the broker has got all acknowledgements.

        Not by cancelling first: the next consumer of an ordered queue would then get what comes
        later before what is unsettled here. Closing the channel does both at once.
        """
        with contextlib.suppress(*CLIENT_ERRORS):
            async with asyncio.timeout(_GOODBYE):
                await held.flush()
                await held.channel.basic_qos(prefetch_count=1)  # it has read them all
                loop = asyncio.get_running_loop()
                await asyncio.sleep(held.told_at + _SETTLING - loop.time())
                await held.channel.close()
        held.end()
