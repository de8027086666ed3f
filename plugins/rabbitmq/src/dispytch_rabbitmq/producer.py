"""RabbitMQProducer: emits to RabbitMQ, by URL or on exchanges of the user's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

from aio_pika.abc import AbstractExchange
from aiormq.abc import AbstractChannel

from dispytch import ConfigError, ConnectError, EmitRejected, Outgoing, Producer
from dispytch.producer import Details, Outcome
from dispytch_rabbitmq.channels import Channels
from dispytch_rabbitmq.config import RabbitMQConnection, RabbitMQEventConfig
from dispytch_rabbitmq.connection import round_trip
from dispytch_rabbitmq.errors import CLIENT_ERRORS, describe, unroutable
from dispytch_rabbitmq.exchanges import Exchanges
from dispytch_rabbitmq.properties import Forms
from dispytch_rabbitmq.publisher import Publisher
from dispytch_rabbitmq.queues import Queues
from dispytch_rabbitmq.topology import dead_letter_arguments

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

    async def keep_queue(self, name: str, arguments: dict[str, Any]) -> None:
        """Declare a queue unless there is one of that name."""


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
        self._meeting: Channels | None = None
        self._publisher: Publisher | None = None
        self._queues, self._forms = Queues(self._source), Forms()

    @classmethod
    def from_connection(cls, connection: RabbitMQConnection, /) -> Self:
        """A producer with a connection of its own, which `start` opens and `stop` closes."""
        producer = cls.__new__(cls)
        producer._source = channels = Channels(connection)
        producer._meeting = channels if channels.falls_back else None
        producer._publisher = None
        producer._queues, producer._forms = Queues(channels), Forms()
        return producer

    async def start(self) -> None:
        """Connect; with exchanges of your own, see that their channels are open.

        Raises:
            ConnectError: no host could be reached or let us in, or the exchange is missing.
        """
        if self._publisher is None:
            await self._source.open()
            self._queues.forget()
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
            await round_trip((await self._source.channel()).connection)
        except EmitRejected as error:
            told = str(error)
        except CLIENT_ERRORS as error:
            told = describe(error, self._source.login)
        else:
            return
        raise ConnectError(f"rabbitmq: no sign of life: {told}", backend="rabbitmq")

    async def send_message(self, out: Outgoing, /) -> Details:
        """Publish one event.

        Where neither its config nor the URL names an exchange, it goes to the exchange `dispytch`,
        and if no queue receives it there, to the queue that has the topic's name.

        Returns:
            `exchange`, `routing_key` and `message_id`.

        Raises:
            EmitRejected: certainly not stored: it can't travel, is unroutable or was refused.
            EmitUnknown: the connection ended before a confirmation.
        """
        if self._publisher is None:
            raise EmitRejected("this producer is not started")
        named = None if out.config is None else out.config.exchange
        exchange = self._source.choose(named)
        if named is None and self._meeting is not None:
            return await self._send_to_meeting(out, self._publisher, self._meeting)
        if await self._send_to(exchange, out, self._publisher):
            return _details(exchange, out)
        raise unroutable(exchange, out.topic)

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Put it into the durable queue that has the topic's name, declared where it is missing.

        Raises:
            ConnectError: the queue is missing and can't be declared.
            EmitRejected, EmitUnknown: as for `send_message`.
        """
        if self._publisher is None:
            raise EmitRejected("this producer is not started")
        message = self._forms.message(replace(out, config=None), "", mandatory=True)
        arguments = dead_letter_arguments((await self._source.channel()).connection)
        await self._queues.publish(message, arguments, self._publisher)
        return _details("", out)

    async def _send_to_meeting(
        self, out: Outgoing, publisher: Publisher, meeting: Channels
    ) -> Details:
        """To where emitters and listeners meet, else to the queue of the topic's name."""
        shared = meeting.choose(None)
        if meeting.meets and await self._met(shared, out, publisher, meeting):
            return _details(shared, out)
        if await self._send_to("", out, publisher):
            return _details("", out)
        absent = not meeting.meets and shared not in publisher.forbidden
        if (
            absent
            and await meeting.look_again()
            and await self._met(shared, out, publisher, meeting)
        ):
            return _details(shared, out)
        raise unroutable(shared, out.topic)

    async def _met(
        self, shared: str, out: Outgoing, publisher: Publisher, meeting: Channels
    ) -> bool:
        """Whether a queue receives it there; if the exchange refuses us, none does."""
        try:
            return await self._send_to(shared, out, publisher, mandatory=True)
        except EmitRejected:
            if shared not in publisher.forbidden | publisher.missing:
                raise
            meeting.avoid()
            return False

    async def _send_to(
        self, exchange: str, out: Outgoing, publisher: Publisher, *, mandatory: bool = False
    ) -> bool:
        """Publish; whether a queue receives it, as far as it is mandatory."""
        message = self._forms.message(out, exchange, mandatory=mandatory)
        user_id, login = message.user_id, self._source.login
        if user_id and login and user_id != login:
            raise EmitRejected("user_id must be the login of the connection, or unset")
        return await publisher.publish(message, lambda: self._source.channel(exchange))

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Publish a batch: one after the other within a key, keys and keyless side by side."""
        return await self.send_lanes(batch)


def _details(exchange: str, out: Outgoing) -> Details:
    config = out.config
    message_id = (config and config.message_id) or out.event_id
    return {"exchange": exchange, "routing_key": out.topic, "message_id": message_id}
