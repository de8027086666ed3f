"""RedisPubSubProducer: publishes events to whoever listens."""

from collections.abc import Sequence
from typing import Any, Self

from redis.exceptions import RedisError

from dispytch import ConfigError, EmitRejected, Outgoing
from dispytch.fields import effective_key, header_pairs
from dispytch.producer import Outcome
from dispytch_redis.config import RedisPubSubEventConfig
from dispytch_redis.connection import RedisPubSubConnection
from dispytch_redis.errors import PUBSUB, NotSentError, WireError, as_emit_error
from dispytch_redis.frame import framed
from dispytch_redis.sending import RedisSender

__all__ = ["RedisPubSubProducer"]


class RedisPubSubProducer(RedisSender):
    """Publishes events to Redis channels, over one connection.

    Redis gives an event to those who are subscribed at that moment, and keeps nothing: with nobody
    there it is gone, and accepted all the same. While there is no connection emits wait for one,
    until their deadline. What was sent when the connection ended is unknown, and is not sent again.

    Args:
        connection: where the server is, and how it is used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = PUBSUB
    event_config = RedisPubSubEventConfig

    def __init__(self, connection: RedisPubSubConnection) -> None:
        if not isinstance(connection, RedisPubSubConnection):
            raise ConfigError(
                "RedisPubSubProducer takes a RedisPubSubConnection, not a "
                f"{type(connection).__name__}; or use "
                "EventEmitter.from_url('redis+pubsub://localhost')"
            )
        self._prefix = connection.channel_prefix
        super().__init__(connection)

    @classmethod
    def from_connection(cls, connection: RedisPubSubConnection, /) -> Self:
        """The producer of the server a URL names."""
        return cls(connection)

    async def send_message(self, out: Outgoing, /) -> dict[str, Any]:
        """Publish one event; returns when the server has given it to those who are there.

        Returns:
            channel, and receivers: how many subscribers got it, which may be none.

        Raises:
            EmitRejected: certainly not published: the event is too large, the server refuses this
                user or channel, or there was no connection until the deadline.
            EmitUnknown: the connection ended before the reply.
        """
        channel, message = self._message(out)
        self._under_way += 1
        try:
            while True:
                wire = self._link.wire or await self.connected(out.deadline)
                try:
                    receivers: int = await wire.call(b"PUBLISH", channel, message)
                except NotSentError:
                    continue
                return {"channel": channel.decode(), "receivers": receivers}
        except (RedisError, WireError) as error:
            raise as_emit_error(error) from error
        finally:
            self._done()

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Publish a batch: keys side by side in few steps, the events of each one by one.

        Returns:
            For each event its details, as from `send_message`, or its error. After a failure, later
            events of the same key are not sent.
        """
        return await self.send_lanes(batch)

    async def send_dead_letter(self, out: Outgoing, /) -> dict[str, Any]:
        """Publish a dead letter, which somebody must get.

        Raises:
            EmitRejected: nobody is subscribed to its topic, or see `send_message`.
        """
        details = await self.send_message(out)
        if not details["receivers"]:
            raise EmitRejected(
                f"nobody is subscribed to {out.topic!r}, and a dead letter would be lost there; "
                "give the listener a producer that keeps them, such as a RedisProducer",
                retriable=True,
            )
        return details

    def _message(self, out: Outgoing) -> tuple[bytes, bytes]:
        """Channel and message of an event.

        Raises:
            EmitRejected: it can't be sent.
        """
        headers: Sequence[tuple[str, bytes]] = ()
        self.check_size(out)
        try:
            if out.headers or (out.config is not None and out.config.headers):
                headers = header_pairs(out)
            message = framed(out.payload, effective_key(out), headers)
            return (self._prefix + out.topic).encode(), message
        except UnicodeEncodeError as error:
            raise EmitRejected(
                "the topic, the key or a header holds what UTF-8 can't encode"
            ) from error
