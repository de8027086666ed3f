"""Failure: when to try again, and where goes what can't be handled."""

import asyncio
import logging
import math
import random
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from dispytch.consumer import Delivery, Headers
from dispytch.errors import ConfigError, DecodeError
from dispytch.producer import HeaderPairs, Outgoing, Producer
from dispytch.topics import dead_letter_topic

__all__ = [
    "DEAD_LETTER_HEADERS",
    "FOR_GROUP",
    "FOR_HANDLERS",
    "Address",
    "DeadLetters",
    "Defect",
    "Retry",
    "address_of",
    "addressed",
    "described",
    "unreadable",
]

logger = logging.getLogger("dispytch")

DEAD_LETTER_HEADERS = "x-dispytch-dlq-"
"""What the names of a dead letter's own headers begin with: reason, error, message, traceback,
attempts, topic, group, handler, time, id, type."""

FOR_GROUP = "x-dispytch-for-group"
"""A header that names the one group an event is for; others acknowledge it unrun."""

FOR_HANDLERS = "x-dispytch-for-handlers"
"""A header that names the handlers an event is for, joined by commas."""

_TIMEOUT = 10.0
_LONGEST = 1000  # characters of a message in a header
_FRAMES = 5


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a handler that failed is tried again.

    Args:
        attempts: how often it is tried in all, 1 or more.
        base: seconds before the second attempt; each further wait is twice as long.
        cap: seconds a wait is at most.
        on: the exceptions that are worth another attempt; others are dead-lettered at once.
        jitter: whether a wait is a random time between half and all of that, so that many don't
            come back at once.

    Raises:
        ConfigError: a value that can't work, naming it.
    """

    attempts: int = 3
    base: float = 0.1
    cap: float = 30.0
    on: type[Exception] | tuple[type[Exception], ...] = (Exception,)
    jitter: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise ConfigError(f"Retry.attempts must be a whole number, not {self.attempts!r}")
        if self.attempts < 1:
            raise ConfigError(f"Retry.attempts must be 1 or more, not {self.attempts}")
        for name in ("base", "cap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"Retry.{name} must be a number of seconds, not {value!r}")
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"Retry.{name} must be 0 seconds or more, not {value!r}")
        kinds: tuple[object, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise ConfigError(f"Retry.on takes classes of exceptions, not {kind!r}")

    def wait(self, failures: int) -> float:
        """Seconds until the next attempt, after so many have failed."""
        longest = min(self.cap, self.base * 2.0 ** min(failures - 1, 60))
        return random.uniform(longest / 2, longest) if self.jitter else longest  # noqa: S311


@dataclass(frozen=True, slots=True)
class Defect:
    """Why something is dead-lettered.

    Attributes:
        reason: what an operator should read.
        error: the exception behind it, or None.
        attempts: how often it was tried.
        handler: the name of the handler, empty where it reached none.
    """

    reason: str
    error: BaseException | None = None
    attempts: int = 0
    handler: str = ""


class DeadLetters:
    """Sends what can't be handled to its dead-letter topic.

    Args:
        producer: what sends; started and stopped by the listener.
        group: the listener's group, or None.
    """

    def __init__(self, producer: Producer, group: str | None) -> None:
        self.producer = producer
        self._group = group

    async def send(self, delivery: Delivery, defect: Defect, event_id: str, kind: str) -> None:
        """Send it, and return when the broker has it.

        Raises:
            Exception: it may not be there; what the producer raised.
        """
        loop = asyncio.get_running_loop()
        headers: Mapping[str, str | bytes] = {}
        if self.producer.carries_headers:
            told = self._headers(delivery, defect, event_id, kind)
            original = (pair for pair in delivery.headers if pair[0] not in told)
            headers = HeaderPairs((*original, *told.items()))
        out = Outgoing(
            event_id,
            kind,
            dead_letter_topic(delivery.topic, self.producer.topic_delimiter),
            delivery.payload,
            delivery.key,
            None,
            headers,
            loop.time() + _TIMEOUT,
        )
        async with asyncio.timeout_at(out.deadline):
            await self.producer.send_dead_letter(out)
        logger.error(
            "%s: event %s of %s dead-lettered: %s",
            defect.handler or "listener",
            event_id or "without an id",
            delivery.topic,
            defect.reason,
        )

    def _headers(
        self, delivery: Delivery, defect: Defect, event_id: str, kind: str
    ) -> dict[str, str]:
        error, kind_of_error, message, trace = defect.error, "", "", ""
        if error is not None:
            kind_of_error = f"{type(error).__module__}.{type(error).__qualname__}"
            message, trace = _text_of(error), _digest(error)
        told = {
            "reason": defect.reason,
            "error": kind_of_error,
            "message": message,
            "traceback": trace,
            "attempts": str(defect.attempts),
            "topic": delivery.topic,
            "group": self._group or "",
            "handler": defect.handler,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": event_id,
            "type": kind,
        }
        return {DEAD_LETTER_HEADERS + name: _fit(text) for name, text in told.items()}


def addressed(headers: Headers, group: str | None, handlers: Sequence[str]) -> Headers:
    """Headers that let an event reach these handlers of this group alone."""
    kept = tuple(pair for pair in headers if pair[0] not in {FOR_GROUP, FOR_HANDLERS})
    return (
        *kept,
        (FOR_GROUP, (group or "").encode()),
        (FOR_HANDLERS, ",".join(handlers).encode()),
    )


class Address(NamedTuple):
    """Whom an event that comes back is for.

    Attributes:
        group: the one group; None: each.
        handlers: the names of the handlers; empty: all.
    """

    group: str | None = None
    handlers: tuple[str, ...] = ()


_EVERYBODY = Address()


def address_of(headers: Headers) -> Address:
    """What the headers say of that, the last of a name."""
    address = _EVERYBODY
    for name, value in headers:
        if name == FOR_GROUP:
            address = address._replace(group=value.decode(errors="replace"))
        elif name == FOR_HANDLERS:
            names = value.decode(errors="replace")
            address = address._replace(handlers=tuple(names.split(",")) if names else ())
    return address


def described(error: BaseException) -> str:
    """Its type and what it says."""
    return f"{type(error).__name__}: {_text_of(error)}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as wrong:  # noqa: BLE001 - a `__str__` of the user's may raise anything
        return f"(its text can't be told: {type(wrong).__name__})"


def unreadable(error: Exception, handler: str = "", attempts: int = 0) -> Defect:
    """Why an event that can't be read is dead-lettered."""
    known = isinstance(error, DecodeError)
    reason = str(error) if known else f"can't be read: {described(error)}"
    return Defect(reason, error, attempts, handler)


def _digest(error: BaseException) -> str:
    """Where it happened: the innermost frames, without any of their values."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames))


def _fit(text: str) -> str:
    """Short enough for a header, on one line, and valid UTF-8."""
    line = " ".join(text.split())
    shown = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    return shown.encode(errors="replace").decode()
