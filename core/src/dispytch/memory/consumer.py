"""MemoryConsumer: receives from a `MemoryBroker`, with the semantics of a broker."""

from collections.abc import Sequence
from typing import Any, Self

from dispytch.consumer import Consumer, Delivery, Subscription
from dispytch.errors import ConnectError, SettleError
from dispytch.memory.broker import Group, Item, Member, MemoryBroker
from dispytch.memory.producer import MemoryProducer

__all__ = ["MemoryConsumer", "MemoryDelivery"]


class MemoryDelivery(Delivery):
    """A message from a `MemoryBroker`."""

    __slots__ = ("_consumer", "_item")

    def __init__(self, item: Item, consumer: "MemoryConsumer") -> None:
        message = item.message
        super().__init__(message.topic, message.payload, message.key, item.headers, item.attempt)
        self._item, self._consumer = item, consumer

    async def ack(self) -> None:
        """It is done."""
        self._consumer.settle(self._item)

    async def nack(self, delay: float | None = None) -> None:
        """It comes again, before those emitted after it; with a `delay`, after so many seconds."""
        self._consumer.give_back(self._item, self.headers, delay or 0.0)


class MemoryConsumer(Consumer):
    """Receives from a `MemoryBroker`.

    A new group begins with the first message the broker has. The messages of one key go to one
    member of a group at a time. What a member holds when it stops goes to the others.

    Args:
        broker: where from; None makes one of its own.
    """

    backend = "memory"
    delays = True

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self._member: Member | None = None
        self._group: Group | None = None

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        """The consumer of the broker a URL names."""
        return cls(MemoryBroker.named("".join(connection.hosts)))

    def dead_letter_producer(self) -> MemoryProducer:
        """A producer on the same broker."""
        return MemoryProducer(self.broker)

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Join the group."""
        self._member = Member()
        self._group = self.broker.join(self._member, subscriptions)

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for messages."""
        member, group = self._member, self._group
        if member is None or group is None:
            raise ConnectError("subscribe first", backend=self.backend, retriable=False)
        while not (items := group.take(member, limit)):
            await member.news()
        return [MemoryDelivery(item, self) for item in items]

    async def stop(self) -> None:
        """Leave the group."""
        if self._member is not None and self._group is not None:
            self.broker.leave(self._member, self._group)
        self._member = self._group = None

    async def backlog(self) -> int | None:
        """How many messages wait for this group, those under way included."""
        return None if self._group is None else self._group.unsettled

    def settle(self, item: Item) -> None:
        """A delivery is done.

        Raises:
            SettleError: it is no longer ours.
        """
        if self._member is None or self._group is None:
            raise SettleError("the consumer was stopped; the message comes again")
        if not self._group.settle(self._member, item):
            raise SettleError("it was settled before, or is with another member by now")

    def give_back(self, item: Item, headers: Any, delay: float) -> None:
        """A delivery comes again.

        Raises:
            SettleError: it is no longer ours.
        """
        if self._member is None or self._group is None:
            raise SettleError("the consumer was stopped; the message comes again")
        if not self._group.give_back(self._member, item, headers, delay):
            raise SettleError("it was settled before, or is with another member by now")
