"""Options of a listener, checked when it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

from dispytch.envelope import Deserializer
from dispytch.errors import ConfigError
from dispytch.listener.failure import Retry
from dispytch.listener.received import ListenerMiddleware
from dispytch.listener.work import Limits
from dispytch.producer import Producer

__all__ = ["ListenerOptions", "Options"]


class ListenerOptions(TypedDict, total=False):
    """What `EventListener` takes by keyword; see there."""

    group: str | None
    dead_letter: Producer | None
    deserializer: Deserializer | None
    middleware: Sequence[ListenerMiddleware]
    retry: Retry
    unmatched: Literal["ack", "dead_letter"]
    max_in_flight: int
    max_parked: int
    max_threads: int
    drain_timeout: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Options:
    """The same, with the defaults.

    Raises:
        ConfigError: a value that can't work, naming it.
    """

    group: str | None = None
    dead_letter: Producer | None = None
    deserializer: Deserializer | None = None
    middleware: Sequence[ListenerMiddleware] = ()
    retry: Retry = Retry()  # noqa: RUF009 - frozen
    unmatched: Literal["ack", "dead_letter"] = "ack"
    max_in_flight: int = 100
    max_parked: int = 1000
    max_threads: int = 16
    drain_timeout: float = 30.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        group: object = self.group
        if group is not None and not (isinstance(group, str) and group):
            raise ConfigError(f"group must be a non-empty str or None, not {group!r}")
        if self.dead_letter is not None and not isinstance(self.dead_letter, Producer):
            raise ConfigError(
                "dead_letter must be a Producer, for example KafkaProducer(...), not a "
                f"{type(self.dead_letter).__name__}"
            )
        if self.unmatched not in {"ack", "dead_letter"}:
            raise ConfigError(f"unmatched must be 'ack' or 'dead_letter', not {self.unmatched!r}")
        for name in ("max_in_flight", "max_parked", "max_threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number, 1 or more, not {value!r}")
        for name, least in (("drain_timeout", 0), ("timeout", 0.001)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and least <= value < float("inf")):
                raise ConfigError(f"{name} must be a number of seconds, not {value!r}")

    @classmethod
    def of(cls, given: ListenerOptions) -> "Options":
        """The options given, checked.

        Raises:
            ConfigError: an option there is not, or a value that can't work.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise ConfigError(
                f"EventListener has no option {', '.join(unknown)}; it has: "
                f"{', '.join(sorted(known))}"
            )
        return cls(**given)

    @property
    def limits(self) -> Limits:
        """How much is taken on at once."""
        return Limits(self.max_in_flight, self.max_parked)
