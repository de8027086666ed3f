"""KafkaProducer: sends events to Kafka."""

from collections.abc import Hashable, Sequence
from typing import Self

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from dispytch import ConfigError, ConnectError, EmitRejected, Outgoing, Producer
from dispytch.fields import effective_key
from dispytch.producer import Details, Outcome
from dispytch_kafka.client import ping
from dispytch_kafka.config import KafkaEventConfig
from dispytch_kafka.connection import KafkaConnection
from dispytch_kafka.lanes import send_lanes
from dispytch_kafka.link import Link
from dispytch_kafka.singles import Singles
from dispytch_kafka.topics import ensure_topic

__all__ = ["KafkaProducer"]


class KafkaProducer(Producer):
    """Sends events to Kafka through aiokafka.

    Args:
        client: an `AIOKafkaProducer` of your own, or a `KafkaConnection`: then the client is built
            in `start`, and built anew whenever it can't go on.
        owned: whether `start` starts and `stop` stops a client of yours. None: `stop` stops it if
            `start` started it, that is, if it was not running before. A client that was stopped
            can't be started again.

    Raises:
        ConfigError: `client` is neither.
    """

    backend = "kafka"
    event_config = KafkaEventConfig
    carries_headers = True

    def __init__(
        self, client: AIOKafkaProducer | KafkaConnection, *, owned: bool | None = None
    ) -> None:
        if isinstance(client, KafkaConnection):
            self._link = Link(client, None, owned=True)
        elif isinstance(client, AIOKafkaProducer):
            self._link = Link(None, client, owned=owned)
        else:
            raise ConfigError(
                "KafkaProducer takes an AIOKafkaProducer or a KafkaConnection, "
                f"not a {type(client).__name__}"
            )
        self._singles = Singles(self._link)

    @classmethod
    def from_connection(cls, connection: KafkaConnection, /) -> Self:
        """Make a producer from a URL's connection; `start` builds its client.

        Raises:
            ConfigError: a TLS file can't be loaded.
        """
        connection.ssl_context()
        return cls(connection)

    async def start(self) -> None:
        """Connect; with a client of yours, where it is not started and `owned` is not False.

        Raises:
            ConnectError: no broker can be reached, they refuse us, or the client can't be started.
        """
        await self._link.start()

    async def stop(self) -> None:
        """Close the client if it is ours to close, within about 5 s even with the brokers gone.

        What the brokers did not take until then is dropped.
        """
        await self._link.stop()
        await self._singles.stop()

    async def flush(self) -> None:
        """Wait until everything handed to the client has an outcome.

        Raises:
            ProducerTimeout: not within 5 s; what is left may still arrive.
        """
        await self._link.flush(self._singles.flush)

    async def ping(self) -> None:
        """Ask any broker for the cluster's layout.

        Raises:
            ConnectError: none answers, or the producer is not started.
        """
        try:
            client = self._link.running()
        except EmitRejected as error:
            raise ConnectError(str(error), backend=self.backend) from error
        await ping(client)

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
            EmitUnknown: it may be stored; see `dispytch_kafka.errors`.
        """
        return await self._singles.send(out)

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Send to a dead-letter topic, which is created if it is missing.

        It gets as many partitions as the topic it stands beside, where that is known.

        Raises:
            EmitRejected: it is missing and can't be created; or as for `send_message`.
            EmitUnknown: as for `send_message`.
        """
        await ensure_topic(self._link.running(), out)
        return await self.send_message(out)

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Send a batch: partitions side by side, each in order, in batches as large as may be.

        Returns:
            For each event its details, as from `send_message`, or its error. After a failure, later
            events of the same key are not sent.
        """
        return await send_lanes(self._link, batch)
