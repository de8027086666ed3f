"""Inbox: deliveries that were read ahead."""

import asyncio
from bisect import insort
from collections import deque

from dispytch import Delivery, SettleError
from dispytch.consumer import Headers
from dispytch_redis.channels import Route

__all__ = ["Inbox", "PubSubDelivery"]


class PubSubDelivery(Delivery):
    """A message of which the server keeps no copy."""

    __slots__ = ("_inbox", "number")

    def __init__(
        self, route: Route, payload: bytes, key: str | None, headers: Headers, inbox: "Inbox"
    ) -> None:
        super().__init__(route.topic, payload, key, headers, via=route.via)
        self._inbox, self.number = inbox, inbox.next_number()

    async def ack(self) -> None:
        """Do nothing: the server has forgotten it already."""

    async def nack(self, delay: float | None = None) -> None:
        """Receive it again at once, with `attempt` one higher: from here, with no other copy.

        Raises:
            SettleError: its consumer was stopped, and it is lost.
        """
        self._inbox.add_again(self)


class Inbox:
    """Deliveries in the order in which they were published.

    Args:
        limit: how many may wait.

    Attributes:
        news: set when there is something to be taken.
        room: set while fewer than `limit` wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._numbers = limit, 0
        self._waiting: deque[PubSubDelivery] = deque()
        self._closed = False
        self.news, self.room = asyncio.Event(), asyncio.Event()
        self.room.set()

    def next_number(self) -> int:
        """The place of the next delivery among all."""
        self._numbers += 1
        return self._numbers

    def add(self, delivery: PubSubDelivery) -> None:
        """Let it wait behind all others."""
        self._waiting.append(delivery)
        self.news.set()
        if len(self._waiting) >= self._limit:
            self.room.clear()

    def add_again(self, delivery: PubSubDelivery) -> None:
        """Let it wait where it was.

        Raises:
            SettleError: nobody will take it.
        """
        if self._closed:
            raise SettleError("the consumer was stopped, and with Pub/Sub the event is lost")
        delivery.attempt += 1
        insort(self._waiting, delivery, key=lambda each: each.number)
        self.news.set()

    def take(self, limit: int) -> list[PubSubDelivery]:
        """The first ones, at most `limit`."""
        waiting = self._waiting
        taken = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
        if len(waiting) < self._limit:
            self.room.set()
        return taken

    def close(self) -> None:
        """Forget them."""
        self._closed = True
        self._waiting.clear()
        self.news.set()
