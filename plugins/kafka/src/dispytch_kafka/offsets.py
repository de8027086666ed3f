"""Offsets: how far a partition is done without a gap. Pure."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Offsets"]

T = TypeVar("T")


class Offsets(Generic[T]):
    """The records of one partition that were received and are not done.

    Kafka remembers one number per partition: all before it is done. So it is the offset of the
    oldest unfinished record, however many behind it are done. All operations take constant time,
    and what is done takes no memory.

    Attributes:
        next: the offset after the last record received; None before the first.
    """

    __slots__ = ("_unfinished", "next")

    def __init__(self) -> None:
        self._unfinished: OrderedDict[int, T] = OrderedDict()  # a dict finds its first one slowly
        self.next: int | None = None

    def received(self, offset: int, record: T) -> None:
        """Note a record; its offset is greater than those before it. Gaps are no records."""
        self._unfinished[offset] = record
        self.next = offset + 1

    def settle(self, offset: int) -> bool:
        """Note that a record is done, in any order; whether it was not done before."""
        return self._unfinished.pop(offset, None) is not None

    def __contains__(self, offset: int) -> bool:
        return offset in self._unfinished

    def unfinished(self) -> Iterable[T]:
        """The records that are not done, oldest first."""
        return self._unfinished.values()

    @property
    def done_to(self) -> int | None:
        """All offsets before it are done, and it never decreases.

        None until the first record has come, for where a partition begins is not known before.
        """
        return next(iter(self._unfinished), self.next)

    @property
    def ahead(self) -> int:
        """How far what was received reaches beyond the oldest unfinished record."""
        return (self.next or 0) - (self.done_to or 0)
