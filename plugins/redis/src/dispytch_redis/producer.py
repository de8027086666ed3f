"""RedisProducer: appends events to streams."""

import asyncio
from collections.abc import Sequence
from typing import Self

from redis.exceptions import RedisError

from dispytch import ConfigError, EmitRejected, Outgoing
from dispytch.producer import Details, Outcome
from dispytch_redis.batching import send_batch
from dispytch_redis.config import RedisEventConfig
from dispytch_redis.connection import RedisConnection
from dispytch_redis.entry import fields_of, key_of
from dispytch_redis.errors import BACKEND, NotSentError, WireError, as_emit_error
from dispytch_redis.keys import Keys
from dispytch_redis.sending import MARGIN, RedisSender
from dispytch_redis.topics import Topic, Topics, stream_of
from dispytch_redis.trimming import Trimmer
from dispytch_redis.wire import Wire

__all__ = ["RedisProducer"]


class RedisProducer(RedisSender):
    """Appends events to Redis Streams, over one connection.

    While there is no connection emits wait for one, until their deadline. What was sent when the
    connection ended is unknown, and is not sent again.

    Args:
        connection: where the server is, and how it is used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND
    event_config = RedisEventConfig

    def __init__(self, connection: RedisConnection) -> None:
        if not isinstance(connection, RedisConnection):
            raise ConfigError(
                f"RedisProducer takes a RedisConnection, not a {type(connection).__name__}; "
                "or use EventEmitter.from_url('redis://localhost')"
            )
        self._connection = connection
        super().__init__(connection)

    @classmethod
    def from_connection(cls, connection: RedisConnection, /) -> Self:
        """The producer of the server a URL names."""
        return cls(connection)

    def _begin(self) -> None:
        super()._begin()
        self._topics = Topics(Keys(self._connection.prefix), self._connection.shards)
        self._trimmer = Trimmer(self._link)

    def _renewed(self) -> None:
        self._topics.make_known_again()

    async def send_message(self, out: Outgoing, /) -> Details:
        """Append one event; returns when the server has it.

        Returns:
            stream and id: where it is.

        Raises:
            EmitRejected: certainly not stored: the server is out of memory, read-only, or refuses
                this user; the event is too large; there was no connection before its deadline.
            EmitUnknown: the connection ended before the reply.
        """
        self.check_size(out)
        return await self._append(out)

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Append to a dead-letter topic, however large: who emitted it may have another limit.

        Raises:
            EmitRejected, EmitUnknown: as for `send_message`.
        """
        return await self._append(out)

    async def _append(self, out: Outgoing) -> Details:
        key = key_of(out)
        fields = fields_of(out, key)
        self._under_way += 1
        try:
            while True:
                wire, topic = self._link.wire, self._topics.get(out.topic)
                if wire is None or topic is None:
                    wire, topic = await self.ready(out)
                stream = stream_of(topic, key)
                try:
                    entry: bytes = await wire.call(b"XADD", stream, b"*", *fields)
                except NotSentError:
                    continue
                break
        except (RedisError, WireError) as error:
            raise as_emit_error(error) from error
        finally:
            self._done()
        self.appended(out.config, topic, stream)
        return {"stream": stream.decode(), "id": entry.decode()}

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Append a batch: shards side by side, each in order, many events in one step.

        Returns:
            For each event its details, as from `send_message`, or its error. After a failure, later
            events of the same key are not sent.
        """
        self._under_way += 1
        try:
            return await send_batch(self, batch)
        finally:
            self._done()

    # What `send_batch` needs, too

    async def ready(self, out: Outgoing) -> tuple[Wire, Topic]:
        """The connection, and the topic of an event, made known to all; waits for both.

        Raises:
            EmitRejected: not before its deadline; the server refuses that; the name can't be that
                of a key.
        """
        while True:
            wire = await self.connected(out.deadline)
            try:
                async with asyncio.timeout_at(out.deadline - MARGIN):
                    topic = self._topics.get(out.topic)
                    return wire, topic or await self._topics.learn(out.topic, wire)
            except WireError:
                continue
            except TimeoutError as error:
                raise self.too_late() from error
            except RedisError as error:
                raise as_emit_error(error) from error
            except UnicodeEncodeError as error:
                raise EmitRejected("the topic holds what UTF-8 can't encode") from error

    def appended(self, config: RedisEventConfig | None, topic: Topic, stream: bytes) -> None:
        """An event was appended: old ones may have to go."""
        if config is not None and (config.maxlen is not None or config.max_age is not None):
            self._trimmer.appended(stream, topic.shards, config)
