"""RedisPubSubConsumer: receives what is published while it is subscribed."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Self

from dispytch import ConfigError, ConnectError, Consumer, Delivery, Subscription
from dispytch_redis.channels import Channels
from dispytch_redis.connection import RedisConnection, RedisPubSubConnection, RedisServer
from dispytch_redis.errors import PUBSUB
from dispytch_redis.frame import unframed
from dispytch_redis.inbox import Inbox, PubSubDelivery
from dispytch_redis.producer import RedisProducer
from dispytch_redis.subscriber import Subscriber

__all__ = ["RedisPubSubConsumer"]

logger = logging.getLogger("dispytch.redis")


class RedisPubSubConsumer(Consumer):
    """Receives what is published to channels, at most once: Redis keeps nothing for later.

    What is published while there is no connection is lost. Each such gap is logged with how long
    it lasted, and one `receive` raises for it. The consumer connects and subscribes again by
    itself. At most `max_held` messages wait here; then it reads no more, and the server keeps them
    up to its `client-output-buffer-limit`, beyond which it ends the connection: a gap, too.

    Args:
        connection: where the server is, and how it is used.

    Attributes:
        gaps: how many there were.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = PUBSUB

    def __init__(self, connection: RedisPubSubConnection) -> None:
        if not isinstance(connection, RedisPubSubConnection):
            raise ConfigError(
                "RedisPubSubConsumer takes a RedisPubSubConnection, not a "
                f"{type(connection).__name__}; or use "
                "EventListener.from_url('redis+pubsub://localhost')"
            )
        self.gaps = 0
        self._settings = connection
        self._channels = Channels((), "")
        self._inbox = Inbox(1)
        self._subscriber: Subscriber | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._problem: ConnectError | None = None
        self._untold: ConnectError | None = None

    @classmethod
    def from_connection(cls, connection: RedisPubSubConnection, /) -> Self:
        """The consumer of the server a URL names."""
        return cls(connection)

    def dead_letter_producer(self) -> RedisProducer:
        """A producer for Streams on the same server: published to nobody, they would be lost."""
        settings = self._settings
        shared = {name: getattr(settings, name) for name in RedisServer.model_fields}
        scheme = settings.scheme.removesuffix("+pubsub")
        return RedisProducer(RedisConnection.model_validate({**shared, "scheme": scheme}))

    async def stop(self) -> None:
        """Disconnect; what was not handed over, and what comes back, is lost."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            await subscriber.close()
        self._inbox.close()

    async def ping(self) -> None:
        """Ask the server for a sign of life, unless there is no room to read one.

        Raises:
            ConnectError: there is none, or the consumer is not subscribed.
        """
        if self._subscriber is not None:
            await self._subscriber.ping()
        if self._subscriber is None or self._subscriber.ended.done():
            raise self._down()

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Connect, and subscribe; returns when the server has confirmed all.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
            ConfigError: a subscription names a group, or can't be written.
        """
        for each in subscriptions:
            if each.group is not None:
                raise ConfigError(
                    f"topic {each.topic!r}: redis+pubsub:// has no groups, such as {each.group!r}: "
                    "each subscriber gets every event, and nothing is kept for a group that is "
                    "away. Use redis:// (Streams), where nothing is lost, or leave `group` out"
                )
        self._channels = Channels(subscriptions, self._settings.channel_prefix)
        self._inbox = Inbox(self.max_held)
        self._problem = self._untold = None
        self._subscriber = await self._subscribed()
        self._keeper = asyncio.create_task(self._keep(), name="dispytch-redis-pubsub")

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for messages.

        Raises:
            ConnectError: there was a gap that was not told yet, or there is no connection.
        """
        while self._keeper is not None:
            inbox = self._inbox
            if (gap := self._untold) is not None:
                self._untold = None
                raise gap
            if taken := inbox.take(limit):
                return taken
            if self._subscriber is None:
                raise self._down()
            inbox.news.clear()
            await inbox.news.wait()
        raise ConnectError(f"{self.backend}: not subscribed", backend=self.backend, retriable=False)

    # The connection

    def _take(self, glob: bytes | None, channel: bytes, message: bytes) -> None:
        route = self._channels.route(glob, channel)
        if route is not None:
            payload, key, headers = unframed(message)
            self._inbox.add(PubSubDelivery(route, payload, key, headers, self._inbox))

    async def _subscribed(self) -> Subscriber:
        return await Subscriber.open(
            self._settings, self.backend, self._channels, self._take, self._inbox.room
        )

    async def _keep(self) -> None:
        """Subscribe again whenever the connection has ended."""
        while (subscriber := self._subscriber) is not None:
            why = await asyncio.shield(subscriber.ended)
            self._subscriber = None
            self._problem = self._untold = self._lost(why)
            await subscriber.close()
            self._subscriber = await self._again()
            lasted = asyncio.get_running_loop().time() - subscriber.read_to
            logger.warning(
                "%s: subscribed again; what was published in the last %.3f s may be lost",
                self.backend,
                lasted,
            )

    async def _again(self) -> Subscriber:
        while True:
            try:
                return await self._subscribed()
            except ConnectError as error:
                logger.warning("%s; trying again", error)
                self._problem = self._meanwhile(str(error))
            except Exception as error:  # noqa: BLE001 - a bug must not end the reconnecting
                logger.error("%s: %s while connecting", self.backend, type(error).__name__)  # noqa: TRY400 - a traceback may hold the login
            pause = self._settings.reconnect_interval
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - no secret

    def _lost(self, why: str) -> ConnectError:
        """A gap begins; what to tell of it."""
        self.gaps += 1
        self._inbox.news.set()
        problem = self._meanwhile(f"{self.backend}: the connection was lost: {why}")
        logger.warning("%s", problem)
        return problem

    def _meanwhile(self, told: str) -> ConnectError:
        """Why there is no connection, and what that means; refused, too, it is tried again."""
        return ConnectError(f"{told}; what is published meanwhile is lost", backend=self.backend)

    def _down(self) -> ConnectError:
        """What to raise while there is no connection."""
        return self._problem or ConnectError(
            f"{self.backend}: not subscribed", backend=self.backend
        )
