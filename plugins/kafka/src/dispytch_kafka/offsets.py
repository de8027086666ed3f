"""Offsets: how far a partition is done without a gap. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Offsets", "Tracked"]


class Tracked(Protocol):
    """A record that was received: its place in the partition, and whether it is done."""

    offset: int
    settled: bool


T = TypeVar("T", bound=Tracked)


class Offsets(Generic[T]):
    """The records of one partition that were received and are not done, and those done behind them.

    Kafka remembers one number per partition: all before it is done. So it is the offset of the
    oldest unfinished record, however many behind it are done. Both operations take constant time,
    amortised.

    Attributes:
        done_to: all offsets before it are done, and it never decreases; None until the first
            record has come, for where a partition begins is not known before.
        next: the offset after the last record received; None before the first.
    """

    __slots__ = ("_received", "done_to", "next")

    def __init__(self) -> None:
        self._received: deque[T] = deque()
        self.done_to: int | None = None
        self.next: int | None = None

    def received(self, record: T) -> None:
        """Note a record; its offset is greater than those before it. Gaps are no records."""
        if not self._received:
            self.done_to = record.offset
        self._received.append(record)
        self.next = record.offset + 1

    def settle(self, record: T) -> None:
        """Note that a record is done, in any order; again: nothing changes."""
        record.settled = True
        received = self._received
        while received and received[0].settled:
            self.done_to = received.popleft().offset + 1
        if received:
            self.done_to = received[0].offset

    def unfinished(self) -> Iterator[T]:
        """The records that are not done, oldest first."""
        return (record for record in self._received if not record.settled)
