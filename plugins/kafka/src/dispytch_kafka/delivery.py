"""From a Kafka record to a delivery: its partition, and where it waits to be received."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dispytch import Delivery
from dispytch_kafka.offsets import Offsets

__all__ = ["Inbox", "KafkaDelivery", "Partition"]


@dataclass(slots=True, eq=False)
class KafkaDelivery(Delivery):
    """A record, and the assignment of its partition that it came under.

    Attributes:
        partition: the assignment; it keeps count of what is done.
        offset: the record's offset.
    """

    partition: "Partition" = field(kw_only=True)
    offset: int = field(kw_only=True)

    async def ack(self) -> None:
        """Count it as done; the broker is told soon, of many at once. Never raises."""
        self.partition.settle(self)

    async def nack(self, delay: float | None = None) -> None:
        """Receive it again, with `attempt` one higher: from here, for Kafka takes nothing back."""
        self.partition.give_back(self)


class Partition:
    """One partition during one assignment to us.

    Args:
        tp: the client's name of it.
        settled: called with the number of deliveries that are done, after each.
        inbox: where what is given back waits.

    Attributes:
        offsets: what is done.
        committed: what the broker was told last; None: nothing yet.
    """

    __slots__ = ("_inbox", "_settled", "committed", "offsets", "tp")

    def __init__(self, tp: Any, settled: Callable[[int], None], inbox: "Inbox") -> None:
        self.tp = tp
        self.offsets: Offsets[KafkaDelivery] = Offsets()
        self.committed: int | None = None
        self._settled = settled
        self._inbox = inbox

    def deliveries(self, records: Sequence[Any]) -> list[KafkaDelivery]:
        """Deliveries for the client's records, in their order."""
        note = self.offsets.received
        made = []
        for record in records:
            key, headers = record.key, record.headers
            delivery = KafkaDelivery(
                record.topic,
                record.value or b"",
                None if key is None else key.decode(errors="surrogateescape"),
                tuple((name, value or b"") for name, value in headers) if headers else (),
                partition=self,
                offset=record.offset,
            )
            note(record.offset, delivery)
            made.append(delivery)
        if self.committed is None:
            self._settled(0)  # where it begins is told, too: else another may begin at the end
        return made

    def settle(self, delivery: KafkaDelivery) -> None:
        """A delivery is done."""
        if self.offsets.settle(delivery.offset):
            self._settled(1)

    def give_back(self, delivery: KafkaDelivery) -> None:
        """A delivery is to be received again."""
        if not delivery.lost and delivery.offset in self.offsets:
            delivery.attempt += 1
            self._inbox.put([delivery])

    def lose(self) -> None:
        """What is not done now will come again, here or elsewhere."""
        for delivery in self.offsets.unfinished():
            delivery.lost = True

    @property
    def busy(self) -> bool:
        """Whether handlers work on something that is not done yet."""
        return any(delivery.running for delivery in self.offsets.unfinished())

    @property
    def to_commit(self) -> int | None:
        """The offset to tell the broker; None: it knows."""
        done_to = self.offsets.done_to
        return None if done_to == self.committed else done_to


class Inbox:
    """Deliveries between the client and `receive`.

    Nothing is fetched until somebody waits: that is the backpressure.

    Attributes:
        wanted: set while somebody waits.
        limit: how many deliveries are wanted.
    """

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.limit = 1
        self._waiting: deque[KafkaDelivery] = deque()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None

    def put(self, deliveries: Iterable[KafkaDelivery]) -> None:
        """Add deliveries."""
        self._waiting.extend(deliveries)
        self.wanted.clear()
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Nothing will come any more."""
        self._failure = error
        self._news.set()

    async def take(self, limit: int) -> list[KafkaDelivery]:
        """Wait for deliveries; at least one, at most `limit`. Cancelling it loses none.

        Raises:
            ConnectError: nothing will come any more.
        """
        while True:
            if taken := self._pop(limit):
                return taken
            if self._failure is not None:
                raise self._failure
            self.limit = limit
            self._news.clear()
            self.wanted.set()
            await self._news.wait()

    def _pop(self, limit: int) -> list[KafkaDelivery]:
        """What waits and is still ours."""
        waiting = self._waiting
        taken: list[KafkaDelivery] = []
        while waiting and len(taken) < limit:
            delivery = waiting.popleft()
            if not delivery.lost:
                taken.append(delivery)
        return taken
