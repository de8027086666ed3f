"""Lanes: what must wait for what. Events of one key pass one by one."""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes(Generic[T]):
    """Keeps those that wait behind another one of their lane."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[T] | None] = {}  # a lane exists while one is inside

    def enter(self, lane: Hashable, item: T) -> bool:
        """Whether this one may go at once; if not, it waits for its turn."""
        if lane not in self._lines:
            self._lines[lane] = None
            return True
        line = self._lines[lane]
        if line is None:
            line = self._lines[lane] = deque()
        line.append(item)
        return False

    def leave(self, lane: Hashable) -> T | None:
        """The one inside is done: the next one, which may go now."""
        line = self._lines[lane]
        if not line:
            del self._lines[lane]
            return None
        return line.popleft()
