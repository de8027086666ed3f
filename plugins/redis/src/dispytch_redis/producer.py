"""RedisProducer: appends events to streams."""

import asyncio
import contextlib
from collections.abc import Hashable, Sequence
from typing import Self

from redis.exceptions import RedisError

from dispytch import ConfigError, EmitRejected, Outgoing, Producer
from dispytch.fields import effective_key
from dispytch.producer import Details, Outcome
from dispytch_redis.batching import send_batch
from dispytch_redis.config import RedisEventConfig
from dispytch_redis.connection import RedisConnection
from dispytch_redis.entry import fields_of
from dispytch_redis.errors import BACKEND, NotSentError, WireError, as_connect_error, as_emit_error
from dispytch_redis.keys import Keys
from dispytch_redis.link import Link
from dispytch_redis.topics import Topic, Topics, stream_of
from dispytch_redis.trimming import Trimmer
from dispytch_redis.wire import Wire

__all__ = ["RedisProducer"]

_FLUSH = 5.0  # seconds that stopping waits for what is under way
_MARGIN = 0.05  # seconds before its deadline when what was not sent is given up, to say so


class RedisProducer(Producer):
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
    carries_headers = True

    def __init__(self, connection: RedisConnection) -> None:
        if not isinstance(connection, RedisConnection):
            raise ConfigError(
                f"RedisProducer takes a RedisConnection, not a {type(connection).__name__}; "
                "or use EventEmitter.from_url('redis://localhost')"
            )
        self._connection = connection
        self._largest = connection.max_event_bytes
        self._link = Link(connection, BACKEND, renewed=self._renewed)
        self._begin()

    @classmethod
    def from_connection(cls, connection: RedisConnection, /) -> Self:
        """The producer of the server a URL names."""
        return cls(connection)

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        if not self._link.is_kept:
            self._begin()
            await self._link.open()

    async def stop(self) -> None:
        """Wait for what is under way, and disconnect; returns soon, whatever the server does."""
        try:
            if self._link.is_kept:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH):
                        await self.flush()
        finally:
            await self._trimmer.stop()
            await self._link.close()

    async def flush(self) -> None:
        """Wait until everything that was given has an outcome."""
        while self._under_way > 0:  # less: some of a process or loop before ended here
            self._idle.clear()
            await self._idle.wait()

    async def ping(self) -> None:
        """Ask the server for a sign of life.

        Raises:
            ConnectError: there is none, or the producer is not started.
        """
        wire = self._link.wire
        if wire is None:
            raise self._link.down()
        try:
            await wire.call("PING")
        except (RedisError, WireError) as error:
            raise as_connect_error(error) from error

    def ordering_key(self, out: Outgoing, /) -> Hashable | None:
        """The config's `partition_key`, else the event's `__key__`."""
        return effective_key(out)

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
        key, fields = fields_of(out)
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

    def check_size(self, out: Outgoing) -> None:
        """Refuse what is too large.

        Raises:
            EmitRejected: it has more bytes than `max_event_bytes`.
        """
        if len(out.payload) > self._largest:
            raise EmitRejected(
                f"the event has {len(out.payload):,} bytes, the limit is {self._largest:,} "
                "(max_event_bytes)"
            )

    async def connected(self) -> Wire:
        """The connection; waits for one.

        Raises:
            EmitRejected: the producer is not started, or was stopped.
        """
        wire = await self._link.connected()
        if wire is None:
            raise EmitRejected("not sent: the producer is not started", retriable=True)
        return wire

    async def ready(self, out: Outgoing) -> tuple[Wire, Topic]:
        """The connection, and the topic of an event, made known to all; waits for both.

        Raises:
            EmitRejected: not before its deadline; the server refuses that; the name can't be that
                of a key.
        """
        try:
            async with asyncio.timeout_at(out.deadline - _MARGIN):
                while True:
                    wire = await self.connected()
                    with contextlib.suppress(WireError):
                        topic = self._topics.get(out.topic)
                        return wire, topic or await self._topics.learn(out.topic, wire)
        except TimeoutError as error:
            why = "the server does not answer" if self._link.wire else str(self._link.down())
            raise EmitRejected(f"not sent before its deadline: {why}", retriable=True) from error
        except RedisError as error:
            raise as_emit_error(error) from error
        except UnicodeEncodeError as error:
            raise EmitRejected("the topic holds what UTF-8 can't encode") from error

    def appended(
        self, config: RedisEventConfig | None, topic: Topic, stream: bytes, count: int = 1
    ) -> None:
        """Events were appended: old ones may have to go."""
        if config is not None and (config.maxlen is not None or config.max_age is not None):
            self._trimmer.appended(stream, topic.shards, config, count)

    def _begin(self) -> None:
        """Know nothing yet; tasks and events of another loop or process are of no use here."""
        self._topics = Topics(Keys(self._connection.prefix), self._connection.shards)
        self._trimmer = Trimmer(self._link)
        self._under_way = 0
        self._idle = asyncio.Event()

    def _renewed(self) -> None:
        self._topics.make_known_again()

    def _done(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
