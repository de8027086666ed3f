"""RabbitMQProducer: emits to RabbitMQ, by URL or on exchanges of the user's own."""

from collections.abc import Sequence
from typing import Protocol, Self

from aio_pika.abc import AbstractExchange
from aiormq.abc import AbstractChannel

from dispytch import ConfigError, ConnectError, EmitRejected, Outgoing, Producer
from dispytch.producer import Details, Outcome
from dispytch_rabbitmq.config import RabbitMQConnection, RabbitMQEventConfig
from dispytch_rabbitmq.errors import CLIENT_ERRORS, describe
from dispytch_rabbitmq.exchanges import Exchanges
from dispytch_rabbitmq.link import Link, open_channel
from dispytch_rabbitmq.properties import make_message
from dispytch_rabbitmq.publisher import Publisher

__all__ = ["RabbitMQProducer"]

_CLOSE_TIMEOUT = 1.0


class Source(Protocol):
    """Where channels to publish on come from."""

    @property
    def login(self) -> str:
        """The user's name; "" where it is not known."""
        ...

    async def open(self) -> None:
        """Make channels available."""

    async def close(self) -> None:
        """Close what is ours."""

    def choose(self, name: str | None) -> str:
        """The exchange for an event whose config names this one, or none."""
        ...

    async def channel(self, exchange: str | None = None) -> AbstractChannel:
        """An open channel for this exchange, or for any; waits for as long as there is none."""
        ...


class RabbitMQProducer(Producer):
    """Publishes events, with publisher confirms: a receipt means that the broker has the event.

    `RabbitMQProducer(exchange)` publishes to an aio-pika exchange of yours; with several,
    `RabbitMQEventConfig.exchange` chooses one by its name. `from_connection` makes a producer that
    connects by itself and publishes to any exchange.

    Args:
        exchanges: aio-pika exchanges, each on an open channel with publisher confirms.
        owned: whether `stop` closes their channels; None and False leave them to you, who opened
            them. The connection is yours always.

    Raises:
        ConfigError: an argument is no exchange, two have one name, or a channel has no confirms.
    """

    backend = "rabbitmq"
    event_config = RabbitMQEventConfig
    carries_headers = True

    def __init__(self, *exchanges: AbstractExchange, owned: bool | None = None) -> None:
        if not exchanges:
            raise ConfigError(
                "RabbitMQProducer: give at least one aio-pika exchange, or a URL to EventEmitter"
            )
        self._source: Source = Exchanges(exchanges, owned=owned is True)
        self._publisher: Publisher | None = None

    @classmethod
    def from_connection(cls, connection: RabbitMQConnection, /) -> Self:
        """A producer with a connection of its own, which `start` opens and `stop` closes."""
        producer = cls.__new__(cls)
        producer._source = Link(connection)
        producer._publisher = None
        return producer

    async def start(self) -> None:
        """Connect; with exchanges of your own, see that their channels are open.

        Raises:
            ConnectError: no host could be reached or let us in, or the exchange is missing.
        """
        if self._publisher is None:
            await self._source.open()
            self._publisher = Publisher(self._source.login)

    async def stop(self) -> None:
        """Close what is ours, in a few seconds also where the broker is gone."""
        publisher, self._publisher = self._publisher, None
        try:
            await self._source.close()
        finally:
            if publisher is not None:
                await publisher.close(_CLOSE_TIMEOUT)

    async def flush(self) -> None:
        """Wait until every message has its outcome."""
        if self._publisher is not None:
            await self._publisher.drain()

    async def ping(self) -> None:
        """Open and close a channel.

        Raises:
            ConnectError: the broker does not take part.
        """
        try:
            connection = (await self._source.channel()).connection
            await connection.ready()  # on a blocked connection, closing a channel could end it
            await (await open_channel(connection)).close()
        except EmitRejected as error:
            told = str(error)
        except CLIENT_ERRORS as error:
            told = describe(error, self._source.login)
        else:
            return
        raise ConnectError(f"rabbitmq: no sign of life: {told}", backend="rabbitmq")

    async def send_message(self, out: Outgoing, /) -> Details:
        """Publish one event.

        Returns:
            `exchange`, `routing_key` and `message_id`.

        Raises:
            EmitRejected: certainly not stored: it can't travel, is unroutable or was refused.
            EmitUnknown: the connection ended before a confirmation.
        """
        if self._publisher is None:
            raise EmitRejected("this producer is not started")
        exchange = self._source.choose(None if out.config is None else out.config.exchange)
        message = make_message(out, exchange)
        user_id, login = message.properties.user_id, self._source.login
        if user_id and login and user_id != login:
            raise EmitRejected("user_id must be the login of the connection, or unset")
        await self._publisher.publish(message, lambda: self._source.channel(exchange))
        return {"exchange": exchange, "routing_key": out.topic, "message_id": message.id}

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Publish a batch: one after the other within a key, keys and keyless side by side."""
        return await self.send_lanes(batch)
