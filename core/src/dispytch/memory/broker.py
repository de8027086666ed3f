"""MemoryBroker: what was emitted, and the groups that receive it."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dispytch.consumer import Headers, Subscription

__all__ = ["Group", "Item", "Member", "MemoryBroker", "MemoryMessage", "Timers"]


@dataclass(slots=True)
class MemoryMessage:
    """What was emitted, as a broker would have it.

    Attributes:
        topic: where it went.
        payload: the envelope's bytes.
        key: the event's key, or None.
        headers: set by middleware.
        config: the merged config, or None; several in a tuple where the event has several.
        event_id: the event's id.
        type: the event's type.
    """

    topic: str
    payload: bytes
    key: str | None
    headers: Mapping[str, str | bytes]
    config: Any
    event_id: str
    type: str


class Timers(Protocol):
    """Calls later: the event loop, or what tests put in its place."""

    def call_later(self, delay: float, callback: Callable[[Any], None], item: Any, /) -> Any:
        """Call back after so many seconds."""
        ...


class MemoryBroker:
    """Keeps what was emitted, in order; `named` gives the same one for the same name.

    Attributes:
        messages: everything emitted since it was made or cleared.
        timers: what delayed redeliveries wait on; None: the event loop.
    """

    _named: ClassVar[dict[str, "MemoryBroker"]] = {}

    def __init__(self) -> None:
        self.messages: list[MemoryMessage] = []
        self.timers: Timers | None = None
        self._groups: dict[str, Group] = {}
        self._alone: set[Group] = set()

    @classmethod
    def named(cls, name: str) -> "MemoryBroker":
        """The broker of `memory://name` in this process."""
        return cls._named.setdefault(name, cls())

    def on(self, topic: str) -> list[MemoryMessage]:
        """The messages of one topic, in order."""
        return [message for message in self.messages if message.topic == topic]

    def clear(self) -> None:
        """Forget all messages, those that wait for a group included."""
        self.messages.clear()
        for group in self._all():
            group.clear()

    def append(self, message: MemoryMessage) -> int:
        """Keep a message, and offer it to the groups; its position."""
        position = len(self.messages)
        self.messages.append(message)
        for group in self._groups.values():
            group.offer(position, message)
        for group in self._alone:
            group.offer(position, message)
        return position

    def join(self, member: "Member", subscriptions: Sequence[Subscription]) -> "Group":
        """Let a member receive. A new group begins with the first message there is."""
        name = subscriptions[0].group
        if name is None:
            group = Group(self)
            self._alone.add(group)
            group.add(member, subscriptions, ())
        else:
            group = self._groups.setdefault(name, Group(self))
            group.add(member, subscriptions, self.messages)
        return group

    def leave(self, member: "Member", group: "Group") -> None:
        """Take a member out; what it did not settle goes to others, or waits for one."""
        group.remove(member)
        self._alone.discard(group)

    @property
    def unsettled(self) -> int:
        """How many messages wait for a group or are not settled, counted once per group."""
        return sum(group.unsettled for group in self._all())

    @property
    def undelivered(self) -> int:
        """How many of those could be received at once."""
        return sum(group.undelivered for group in self._all())

    def _all(self) -> Iterable["Group"]:
        return (*self._groups.values(), *self._alone)


@dataclass(slots=True, eq=False)
class Item:
    """A message on its way to one group."""

    position: int
    message: MemoryMessage
    lane: tuple[str, str] | None
    headers: Headers
    attempt: int = 1


class Member:
    """One who receives for a group."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.assigned: deque[Item] = deque()  # of keys that this member has under way
        self.held: dict[Item, None] = {}
        self._waiter: asyncio.Future[None] | None = None

    async def news(self) -> None:
        """Wait until there may be something."""
        self._waiter = self.loop.create_future()
        await self._waiter

    def wake(self) -> bool:
        """Whether it was waiting."""
        if self._waiter is None or self._waiter.done():
            return False
        self._waiter.set_result(None)
        return True


class Group:
    """Members that share messages; those of one key are with one member at a time."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._subscriptions: list[Subscription] = []
        self._topics: dict[str, Subscription | None] = {}
        self._queue: deque[Item] = deque()
        self._members: list[Member] = []
        self._owners: dict[tuple[str, str], tuple[Member, list[None]]] = {}
        self.unsettled = 0

    @property
    def undelivered(self) -> int:
        """How many can be received at once."""
        return len(self._queue) + sum(len(member.assigned) for member in self._members)

    def add(
        self,
        member: Member,
        subscriptions: Sequence[Subscription],
        earlier: Sequence[MemoryMessage],
    ) -> None:
        """Let a member in; topics that are new to the group begin with what came earlier."""
        for ghost in [each for each in self._members if each.loop.is_closed()]:
            self.remove(ghost)
        known, self._topics = self._subscriptions, {}
        self._subscriptions = [*known, *(each for each in subscriptions if each not in known)]
        self._members.append(member)
        for position, message in enumerate(earlier):
            if not any(each.pattern.match(message.topic) is not None for each in known):
                self.offer(position, message)

    def remove(self, member: Member) -> None:
        """Take a member out, and what it holds back."""
        self._members.remove(member)
        for item in member.held:
            item.attempt += 1
        back = sorted((*member.held, *member.assigned), key=lambda item: item.position)
        for item in back:
            self._release(item)
        member.held.clear()
        member.assigned.clear()
        self._queue.extendleft(reversed(back))
        self._wake()

    def clear(self) -> None:
        """Forget what was not received yet."""
        self.unsettled -= self.undelivered
        self._queue.clear()
        for member in self._members:
            for item in member.assigned:
                self._release(item)
            member.assigned.clear()

    def offer(self, position: int, message: MemoryMessage) -> None:
        """Take a message that is subscribed to."""
        subscription = self._subscription(message.topic)
        if subscription is None:
            return
        key = message.key if subscription.ordered else None
        lane = None if key is None else (message.topic, key)
        headers = tuple(
            (name, value.encode() if isinstance(value, str) else value)
            for name, value in message.headers.items()
        )
        self._queue.append(Item(position, message, lane, headers))
        self.unsettled += 1
        self._wake()

    def take(self, member: Member, limit: int) -> list[Item]:
        """What this member may have now."""
        taken: list[Item] = []
        while len(taken) < limit:
            if member.assigned:
                item = member.assigned.popleft()
            elif self._queue:
                item = self._queue.popleft()
                if item.lane is not None:
                    owner, under_way = self._owners.setdefault(item.lane, (member, []))
                    under_way.append(None)
                    if owner is not member:
                        owner.assigned.append(item)
                        owner.wake()
                        continue
            else:
                break
            member.held[item] = None
            taken.append(item)
        if self._queue:
            self._wake()
        return taken

    def settle(self, member: Member, item: Item) -> bool:
        """It is done; whether it was this member's."""
        if item not in member.held:
            return False
        del member.held[item]
        self._release(item)
        self.unsettled -= 1
        return True

    def give_back(self, member: Member, item: Item, headers: Headers, delay: float) -> bool:
        """It comes again after `delay` seconds; whether it was this member's."""
        if item not in member.held:
            return False
        del member.held[item]
        self._release(item)
        item.attempt += 1
        item.headers = headers
        if delay > 0:
            timers = self._broker.timers or asyncio.get_running_loop()
            timers.call_later(delay, self._requeue, item)
        else:
            self._requeue(item)
        return True

    def _requeue(self, item: Item) -> None:
        later = (i for i, other in enumerate(self._queue) if other.position > item.position)
        self._queue.insert(next(later, len(self._queue)), item)
        self._wake()

    def _release(self, item: Item) -> None:
        if item.lane is not None:
            _, under_way = self._owners[item.lane]
            under_way.pop()
            if not under_way:
                del self._owners[item.lane]

    def _subscription(self, topic: str) -> Subscription | None:
        if topic not in self._topics:
            fitting = [
                each for each in self._subscriptions if each.pattern.match(topic) is not None
            ]
            ordered = [each for each in fitting if each.ordered]
            self._topics[topic] = next(iter((*ordered, *fitting)), None)
        return self._topics[topic]

    def _wake(self) -> None:
        for member in self._members:
            if member.wake():
                self._members.remove(member)  # the next one's turn
                self._members.append(member)
                return
