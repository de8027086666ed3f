"""What the dispatcher works on: its runs, limits and counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dispytch.consumer import Delivery
from dispytch.listener.received import Event

__all__ = ["Counts", "Limits", "Run", "Timers"]


class Timers(Protocol):
    """Calls later: the event loop, or what tests put in its place."""

    def call_later(self, delay: float, callback: Callable[[Any], None], item: Any, /) -> Any:
        """Call back after so many seconds; what is returned has a `cancel`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a listener takes upon itself.

    Attributes:
        max_in_flight: how many handlers run at once.
        max_parked: how many runs wait for an attempt or behind others of their key, before intake
            pauses.
    """

    max_in_flight: int = 100
    max_parked: int = 1000

    @property
    def capacity(self) -> int:
        """How many run or are ready to: some are read ahead, so that no worker waits."""
        return 2 * self.max_in_flight

    @property
    def max_held(self) -> int:
        """How many deliveries are held at most."""
        return self.capacity + self.max_parked


@dataclass(slots=True)
class Counts:
    """What happened since the listener was made.

    Attributes:
        handled: runs of handlers that ended well.
        failed: attempts that failed.
        dead_lettered: runs, and messages that reached no handler, sent to a dead-letter topic.
        dropped: runs a handler dropped.
        unmatched: messages that no handler takes.
        unsettled: deliveries that could not be settled, and come again.
    """

    handled: int = 0
    failed: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    unmatched: int = 0
    unsettled: int = 0


class Run:
    """One handler and one event, until it is finished.

    Attributes:
        handler: the Handler; None where the message reached none.
        defect: the Defect for which it must be dead-lettered; None while there is hope.
    """

    __slots__ = (
        "attempt", "burials", "defect", "delivery", "event", "failures", "handler", "lane",
        "segments",
    )  # fmt: skip

    def __init__(
        self,
        delivery: Delivery,
        handler: Any,
        event: Event[Any] | None,
        segments: Mapping[str, str],
        defect: Any = None,
    ) -> None:
        self.delivery, self.handler, self.defect = delivery, handler, defect
        self.event, self.segments = event, segments
        self.lane = None if handler is None else handler.lane(delivery)
        self.attempt = delivery.attempt
        self.failures = self.burials = 0
