"""What a handler may return instead of nothing: Ack, RetryLater, DeadLetter, Drop."""

from dataclasses import dataclass

__all__ = ["Ack", "DeadLetter", "Drop", "Outcome", "RetryLater"]


class Outcome:
    """The base of what a handler may return to say what becomes of its event."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Ack(Outcome):
    """Done; the same as returning None."""


@dataclass(frozen=True, slots=True)
class RetryLater(Outcome):
    """Not now: this handler gets the event again, with the next `attempt`.

    It gives up the order of this event: others of its key go ahead. It does not count as a failure.

    Args:
        delay: seconds until then, at least; brokers that wait themselves may round up.
    """

    delay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay < float("inf"):
            raise ValueError(f"RetryLater needs a number of seconds, 0 or more, not {self.delay!r}")


@dataclass(frozen=True, slots=True)
class DeadLetter(Outcome):
    """It can't be handled: it goes to the dead-letter topic at once.

    Args:
        reason: for those who will read it there.
    """

    reason: str = "rejected by its handler"


@dataclass(frozen=True, slots=True)
class Drop(Outcome):
    """It need not be handled: it is acknowledged and counted as dropped."""
