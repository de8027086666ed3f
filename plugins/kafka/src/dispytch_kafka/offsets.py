"""Offsets: how far a partition is done without a gap. Pure."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Offsets"]

T = TypeVar("T")


class Offsets(Generic[T]):
    """The records of one partition that were received and are not done.

    Kafka remembers one number per partition: all before it is done. So it is the offset of the
    oldest unfinished record, however many behind it are done. Both operations take constant time,
    and what is done takes no memory.

    Attributes:
        done_to: all offsets before it are done, and it never decreases; None until the first
            record has come, for where a partition begins is not known before.
        next: the offset after the last record received; None before the first.
    """

    __slots__ = ("_unfinished", "done_to", "next")

    def __init__(self) -> None:
        self._unfinished: OrderedDict[int, T] = OrderedDict()  # a dict finds its first one slowly
        self.done_to: int | None = None
        self.next: int | None = None

    def received(self, offset: int, record: T) -> None:
        """Note a record; its offset is greater than those before it. Gaps are no records."""
        if not self._unfinished:
            self.done_to = offset
        self._unfinished[offset] = record
        self.next = offset + 1

    def settle(self, offset: int) -> bool:
        """Note that a record is done, in any order; whether it was not done before."""
        unfinished = self._unfinished
        if unfinished.pop(offset, None) is None:
            return False
        self.done_to = next(iter(unfinished), self.next)
        return True

    def __contains__(self, offset: int) -> bool:
        return offset in self._unfinished

    def unfinished(self) -> Iterable[T]:
        """The records that are not done, oldest first."""
        return self._unfinished.values()

    @property
    def ahead(self) -> int:
        """How far what was received reaches beyond the oldest unfinished record."""
        return (self.next or 0) - (self.done_to or 0)
