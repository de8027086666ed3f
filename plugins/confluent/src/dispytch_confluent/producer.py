"""ConfluentProducer: sends events to Kafka."""

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any, Self

from confluent_kafka import KafkaException

from dispytch import ConfigError, Outgoing, Producer
from dispytch.fields import effective_key
from dispytch.producer import Details, Outcome
from dispytch_confluent.bulk import Bulk, details_of
from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import BACKEND, fate_of, outcome_of
from dispytch_confluent.link import GRACE, Link, not_started
from dispytch_kafka import KafkaEventConfig
from dispytch_kafka.errors import Fate
from dispytch_kafka.record import record_of

__all__ = ["ConfluentProducer"]


class ConfluentProducer(Producer):
    """Sends events to Kafka through librdkafka, over the synchronous `confluent_kafka.Producer`.

    Its clients are built here, and built anew whenever one can't go on: one whose answers a thread
    takes, and for `emit_many` another. With one of your own nobody could know its partitioner, or
    who takes its answers.

    Args:
        connection: where the brokers are, and how they are used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND
    event_config = KafkaEventConfig
    carries_headers = True

    def __init__(self, connection: ConfluentConnection) -> None:
        if not isinstance(connection, ConfluentConnection):
            raise ConfigError(
                f"ConfluentProducer takes a ConfluentConnection, not a {type(connection).__name__};"
                " or use EventEmitter.from_url('kafka+confluent://localhost')"
            )
        self._link = Link(connection)
        self._bulk = Bulk(connection, self._link)

    @classmethod
    def from_connection(cls, connection: ConfluentConnection, /) -> Self:
        """Make a producer from a URL's connection; `start` builds its client.

        Raises:
            ConfigError: a TLS file can't be loaded.
        """
        connection.ssl_context()
        return cls(connection)

    async def start(self) -> None:
        """Connect.

        Raises:
            ConnectError: no broker can be reached, or they refuse us.
        """
        await self._link.start()

    async def stop(self) -> None:
        """Close the clients, within about 5 s even with the brokers gone.

        What the brokers did not take until then is dropped.
        """
        await asyncio.gather(self._bulk.stop(), self._link.stop())

    async def flush(self) -> None:
        """Wait until everything handed to the client has an outcome.

        Raises:
            ProducerTimeout: not within 5 s; what is left may still arrive.
        """
        await self._link.flush()

    async def ping(self) -> None:
        """Ask any broker for the cluster's layout.

        Raises:
            ConnectError: none answers, or the producer is not started.
        """
        client = self._link.client
        if client is None:
            raise not_started()
        await client.ping(GRACE)

    def ordering_key(self, out: Outgoing, /) -> Hashable | None:
        """The record's key: the config's `partition_key`, else the event's `__key__`."""
        return effective_key(out)

    async def send_message(self, out: Outgoing, /) -> Details:
        """Send one event; concurrent ones share batches.

        Kafka refuses a batch as a whole for any of its records: a refused event is sent once more,
        alone, so that it does not answer for others.

        Returns:
            topic, partition, offset (None if the broker does not remember it) and timestamp_ms.

        Raises:
            EmitRejected: certainly not stored: refused by client or broker, or still waiting for
                a topic's partitions or for room in the client's queue shortly before the deadline.
            EmitUnknown: it may be stored; see `dispytch_confluent.errors`.
        """
        record, client = record_of(out), self._link.client
        try:
            if client is None or out.topic not in client.topics:
                answer = await self._link.queue(record, out.deadline)
            else:
                answer = client.send(record)
        except (BufferError, KafkaException):
            answer = await self._link.queue(record, out.deadline)
        try:
            return details_of(await answer, record)
        except KafkaException as error:
            problem: Any = error.args[0]
            if fate_of(problem) is not Fate.RECORD:
                self._link.forget(out.topic, problem)
                raise outcome_of(problem, out.topic) from error
        (outcome,) = await self._bulk.send([out])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Send to a dead-letter topic, which is created if it is missing.

        It gets as many partitions as the topic it stands beside, where that is known.

        Raises:
            EmitRejected: it is missing and can't be created; or as for `send_message`.
            EmitUnknown: as for `send_message`.
        """
        await self._link.ensure(out.topic, out.deadline)
        return await self.send_message(out)

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Send a batch: partitions side by side, each in order, in batches as large as may be.

        Returns:
            For each event its details, as from `send_message`, or its error. After a failure, later
            events of the same key are not sent.
        """
        return await self._bulk.send(batch)
