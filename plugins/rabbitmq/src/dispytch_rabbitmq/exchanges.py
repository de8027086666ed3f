"""Exchanges: aio-pika exchanges that the user opened, and keeps open."""

from collections.abc import Sequence
from typing import Any

from aio_pika.abc import AbstractExchange, AbstractRobustChannel
from aio_pika.exchange import Exchange
from aiormq.abc import AbstractChannel

from dispytch import ConfigError, ConnectError, EmitRejected
from dispytch_rabbitmq.errors import CLIENT_ERRORS
from dispytch_rabbitmq.topology import declare_missing

__all__ = ["Exchanges"]


class Exchanges:
    """Channels of the user's own exchanges.

    Args:
        exchanges: at least one.
        owned: whether closing closes their channels.

    Raises:
        ConfigError: no exchange, two of one name, or a channel without publisher confirms.
    """

    def __init__(self, exchanges: Sequence[AbstractExchange], *, owned: bool) -> None:
        self._owned = owned
        self._by_name: dict[str, Exchange] = {}
        self._login = ""
        for exchange in map(_checked, exchanges):
            if exchange.name in self._by_name:
                raise ConfigError(f"two exchanges are named {exchange.name!r}; give each once")
            self._by_name[exchange.name] = exchange

    @property
    def login(self) -> str:
        """The user's name, as the connection's URL tells; "" where it does not say."""
        return self._login

    async def open(self) -> None:
        """See that the channels are open.

        Raises:
            ConnectError: one is not.
        """
        for name in self._by_name:
            try:
                channel = await self.channel(name)
            except EmitRejected as error:
                raise ConnectError(str(error), backend="rabbitmq", retriable=False) from error
            url = channel.connection.url
            by_password = url.query.get("auth", "plain").lower() != "external"
            self._login = (url.user or "guest") if by_password else ""

    async def close(self) -> None:
        """Close the channels, where they are ours."""
        if self._owned:
            for exchange in self._by_name.values():
                await exchange.channel.close()

    def choose(self, name: str | None) -> str:
        """The exchange for an event whose config names this one, or none.

        Raises:
            EmitRejected: it is none of these, or none is named where there are several.
        """
        known = ", ".join(map(repr, self._by_name))
        if name is None:
            if len(self._by_name) > 1:
                raise EmitRejected(
                    f"which exchange? Set RabbitMQEventConfig(exchange=...) to one of {known}"
                )
            return next(iter(self._by_name))
        if name not in self._by_name:
            raise EmitRejected(f"this producer has no exchange {name!r}; it has {known}")
        return name

    async def keep_queue(self, name: str, arguments: dict[str, Any]) -> None:
        """Declare a queue unless there is one of that name.

        Raises:
            ConnectError: it is missing and can't be declared.
        """
        await declare_missing((await self.channel()).connection, name, arguments)

    async def channel(self, exchange: str | None = None) -> AbstractChannel:
        """The channel of an exchange, or of any; a robust one is waited for while it reconnects.

        Raises:
            EmitRejected: it is closed, and nobody will open it again.
        """
        exchange = next(iter(self._by_name)) if exchange is None else exchange
        outer = self._by_name[exchange].channel
        if isinstance(outer, AbstractRobustChannel):
            await outer.ready()
        closed = f"not sent: the channel of exchange {exchange!r} is closed"
        try:
            channel = await outer.get_underlay_channel()
        except CLIENT_ERRORS as error:
            raise EmitRejected(closed) from error
        if channel.is_closed:
            raise EmitRejected(closed)
        return channel


def _checked(exchange: AbstractExchange) -> Exchange:
    if not isinstance(exchange, Exchange):
        raise ConfigError(
            f"expected an aio-pika exchange, got {type(exchange).__name__}; "
            "await channel.declare_exchange(...) or channel.get_exchange(...) gives one"
        )
    if getattr(exchange.channel, "publisher_confirms", True) is False:
        raise ConfigError(
            f"the channel of exchange {exchange.name!r} has no publisher confirms: nothing would "
            "tell whether an event arrived; open it with publisher_confirms=True"
        )
    return exchange
