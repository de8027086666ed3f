"""Consumers with one fault each."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from core.conformance.timed import TimedConsumer
from core.conformance.twin import TwinConsumer
from dispytch.consumer import Delivery, Subscription
from dispytch.memory import MemoryBroker, MemoryDelivery
from dispytch.memory.broker import Item
from dispytch.topics import TopicPattern


def _item_of(delivery: Delivery) -> Item:
    assert isinstance(delivery, MemoryDelivery)
    return delivery._item


class DropsKey(TwinConsumer):
    """Events come without their key."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            delivery.key = None
        return came


class CutsPayload(TwinConsumer):
    """A payload ends at its first 64 KiB."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            delivery.payload = delivery.payload[: 1 << 16]
        return came


class ChangesKey(TwinConsumer):
    """Keys lose what is not ASCII."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            delivery.key = delivery.key and delivery.key.encode("ascii", "ignore").decode()
        return came


class ReordersKey(TwinConsumer):
    """Of the events that are taken at once, the last comes first."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        return [*came[-1:], *came[:-1]]


class ExceedsLimit(TwinConsumer):
    """It takes in twos."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        return await super().receive(limit + limit % 2)


class ReturnsNothing(TwinConsumer):
    """Where nothing is there at the moment, it returns an empty list."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        await asyncio.sleep(0.001)
        assert self._group is not None
        return await super().receive(limit) if self._group.undelivered else []


class CancelledReceiveLoses(TwinConsumer):
    """What a receive had taken when it was cancelled, nobody gets."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for _ in range(3):
            await asyncio.sleep(0)
        return came


class _SettledDelivery(MemoryDelivery):
    __slots__ = ()

    async def ack(self) -> None:
        return

    async def nack(self, delay: float | None = None) -> None:
        return


class AcksOnReceive(TwinConsumer):
    """What is received is settled; `ack` and `nack` do nothing."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            self.settle(_item_of(delivery))
        return [_SettledDelivery(_item_of(delivery), self) for delivery in came]


class SwallowsNacks(TwinConsumer):
    """`nack` is done, and nothing comes again."""

    def give_back(self, item: Item, headers: Any, delay: float) -> None:
        self.settle(item)


class SwallowsAcks(TwinConsumer):
    """`ack` does nothing: all comes again to whoever is next."""

    def settle(self, item: Item) -> None:
        return


class AttemptNeverRises(TwinConsumer):
    """Every delivery is the first."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            delivery.attempt = 1
        return came


class NackChangesPayload(TwinConsumer):
    """What comes again was written anew."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        for delivery in came:
            if delivery.attempt > 1:
                delivery.payload = delivery.payload.decode(errors="replace").encode()
        return came


class ComesEarly(TwinConsumer):
    """What is to wait waits half as long."""

    def give_back(self, item: Item, headers: Any, delay: float) -> None:
        super().give_back(item, headers, delay / 2)


class IgnoresDelay(TwinConsumer):
    """What is to wait comes at once."""

    def give_back(self, item: Item, headers: Any, delay: float) -> None:
        super().give_back(item, headers, 0.0)


class BothMembersGet(TwinConsumer):
    """What one member of a group takes, the others get too."""

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        came = await super().receive(limit)
        group, member = self._group, self._member
        assert group is not None
        originals = [item for item in map(_item_of, came) if not isinstance(item, _Copy)]
        for other in [other for other in group._members if other is not member]:
            for item in originals:
                other.assigned.append(_Copy(item.position, item.message, None, item.headers))
            group.unsettled += len(originals)
            other.wake()
        return came


class _Copy(Item):
    __slots__ = ()


class OneQueue(TwinConsumer):
    """All groups share one queue for the same topics: what one gets, the others don't."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        queue = " ".join(each.topic for each in subscriptions)
        await super().subscribe(
            [replace(each, group=each.group and queue) for each in subscriptions]
        )


class AloneGetsEarlier(TwinConsumer):
    """Without a group it begins with the first event there is."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe(
            [replace(each, group=each.group or f"alone-{id(self)}") for each in subscriptions]
        )


class BeginsNow(TwinConsumer):
    """A new group begins with what is emitted from now on."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        earlier, self.broker.messages[:] = list(self.broker.messages), []
        try:
            await super().subscribe(subscriptions)
        finally:
            self.broker.messages[:] = earlier


class NoOrder(TwinConsumer):
    """The events of a key go to whoever is free."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe([replace(each, ordered=False) for each in subscriptions])


class NoPatterns(TwinConsumer):
    """A pattern is a topic's name like any other."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe(_matching(_Literally, subscriptions))


class PatternsOvermatch(TwinConsumer):
    """A placeholder stands for any number of segments."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe(_matching(_Widely, subscriptions))


class PatternsMatchDeadLetters(TwinConsumer):
    """Patterns match dead-letter topics too."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe(_matching(_Deadly, subscriptions))


class RestIsOneSegment(TwinConsumer):
    """A `*` stands for one segment, not for more."""

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        await super().subscribe(_matching(_Narrowly, subscriptions))


class _Literally(TopicPattern):
    __slots__ = ()

    def match(self, topic: str) -> tuple[str, ...] | None:
        return () if topic == self.text else None


class _Widely(TopicPattern):
    __slots__ = ()

    @property
    def regex(self) -> str:
        return super().regex.replace(r"([^\.]+)", "(.+)")


class _Narrowly(TopicPattern):
    __slots__ = ()

    @property
    def regex(self) -> str:
        return super().regex.removesuffix(r"(?:\.[^\.]+)*")


class _Deadly(TopicPattern):
    __slots__ = ()

    @property
    def regex(self) -> str:
        return super().regex.removeprefix(r"(?!.*\.dlq$)")


def _matching(
    kind: type[TopicPattern], subscriptions: Sequence[Subscription]
) -> Sequence[Subscription]:
    """The subscriptions, whose patterns match in another way."""
    changed = [replace(each) for each in subscriptions]
    for each in changed:
        each.__dict__["pattern"] = kind(each.topic, each.delimiter)
    return changed


class StopWaitsForReceive(TwinConsumer):
    """`stop` waits for its turn, which a pending receive has."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        super().__init__(broker)
        self._turn = asyncio.Lock()

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        async with self._turn:
            return await super().receive(limit)

    async def stop(self) -> None:
        async with self._turn:
            await super().stop()


class StopAcksHeld(TwinConsumer):
    """`stop` settles what it holds, as a client that commits by itself does."""

    async def stop(self) -> None:
        for item in list(self._member.held) if self._member else ():
            self.settle(item)
        await super().stop()


class AckSettlesEarlier(TwinConsumer):
    """An ack settles all that came before, as a position that is moved on does."""

    def settle(self, item: Item) -> None:
        held = self._member.held if self._member else ()
        for earlier in [each for each in held if each.position < item.position]:
            super().settle(earlier)
        super().settle(item)


class StopKeepsHeld(TwinConsumer):
    """`stop` leaves what it holds in its hands: nobody gets it."""

    async def stop(self) -> None:
        if self._group is not None and self._member in self._group._members:
            self._group._members.remove(self._member)


class AckAfterStopBreaks(TwinConsumer):
    """Settling after `stop` meets what is no longer there."""

    def settle(self, item: Item) -> None:
        assert self._group is not None
        assert self._member is not None
        super().settle(item)


class IgnoresTtl(TimedConsumer):
    """What has expired comes like anything else."""

    def has_expired(self, item: Item) -> bool:
        return False


class IgnoresPriority(TimedConsumer):
    """What was there first comes first."""

    def rank_of(self, item: Item) -> int:
        return 0
