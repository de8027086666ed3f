"""Health: what a listener tells of itself."""

from dataclasses import dataclass

from dispytch.listener.work import Counts

__all__ = ["Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a listener is; true where nothing is wrong.

    Attributes:
        problems: what is wrong now, for an operator; empty: nothing.
        running: handlers that run.
        ready: runs that wait for a free slot.
        waiting: runs that wait for their next attempt, or behind others of their key.
        parked: those of them that wait for their next attempt.
        accepting: whether there is room for more.
        counts: what happened since the start.
    """

    problems: tuple[str, ...]
    running: int
    ready: int
    waiting: int
    parked: int
    accepting: bool
    counts: Counts

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.healthy
