"""Consumer, Delivery, Subscription: what a backend implements to receive."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeAlias

from dispytch.topics import TopicPattern

__all__ = ["Consumer", "Delivery", "Headers", "Subscription"]

Headers: TypeAlias = tuple[tuple[str, bytes], ...]
"""The headers of a message, in order; a name may come twice."""


@dataclass(frozen=True)
class Subscription:
    """What a listener wants to receive.

    Attributes:
        topic: a topic, or a pattern: `"user.{user_id}.events"`, `"orders.*"`. See `pattern`.
        group: listeners of one group share the events; each group gets them all. None: this
            listener gets what is emitted after it subscribed, and leaves nothing behind.
        ordered: whether the events of one key must stay in order among the members of the group.
        delimiter: separates the segments of a topic.
    """

    topic: str
    group: str | None = None
    ordered: bool = True
    delimiter: str = "."

    @cached_property
    def pattern(self) -> TopicPattern:
        """The topic, parsed: a regular expression, a broker's wildcards, or one topic's name."""
        return TopicPattern(self.topic, self.delimiter)


@dataclass(slots=True, eq=False)
class Delivery:
    """A message on its way to the handlers. A backend derives from it and settles.

    Attributes:
        topic: where it was emitted to.
        payload: the bytes.
        key: what keeps it in order with others; None: nothing. Bytes that are no UTF-8 are kept by
            `surrogateescape`.
        headers: (str, bytes) pairs in the order they came. A listener may replace them before
            `nack(delay)`: they come back with the message.
        attempt: 1 for the first delivery, as far as the backend counts.
        via: the topics and patterns it was subscribed to by, where a backend gives an event once
            for each: only their handlers are for it. None: all that match its topic.
        lost: set by the backend when settling has become useless, because the message comes again
            whatever happens (a lost connection, a partition of another member). What the listener
            has not begun it then leaves alone.
        running: kept by the listener: how many handlers work on it at this moment.
        left: kept by the listener: how many handlers have not finished; the last one settles it.
        later: kept by the listener: which handlers want it again, and after how many seconds.
    """

    topic: str
    payload: bytes
    key: str | None = None
    headers: Headers = ()
    attempt: int = 1
    via: tuple[str, ...] | None = None
    lost: bool = field(default=False, init=False)
    running: int = field(default=0, init=False)
    left: int = field(default=1, init=False)
    later: tuple[tuple[str, float], ...] = field(default=(), init=False)

    @abstractmethod
    async def ack(self) -> None:
        """It is done: it must not come again.

        Raises:
            SettleError: the broker could not be told; it will come again.
        """
        raise NotImplementedError

    @abstractmethod
    async def nack(self, delay: float | None = None) -> None:
        """Give it back: it comes again, to this listener or another of its group.

        Args:
            delay: seconds until then, counted by the broker; only where `Consumer.delays`.

        Raises:
            SettleError: the broker could not be told; it will come again, perhaps earlier.
        """
        raise NotImplementedError


class Consumer:
    """Receives from one broker. Override `subscribe` and `receive`.

    A consumer connects again by itself. It belongs to one listener, which calls `start`, then
    `subscribe` once, then `receive` again and again from one task, and at the end `stop`.

    Class attributes; for a consumer made from a URL its `Backend` fills in what they leave out:
        backend: the name in messages.
        topic_delimiter: separates the segments of a topic.
        delays: whether the broker itself waits in `nack(delay)`; if not, the listener waits.

    Attributes:
        max_held: set before `start`: how many deliveries the listener holds at most, those that
            wait behind others of their key included.
        drain_timeout: set before `start`: seconds that handlers under way get to finish when
            their deliveries must be given up.
    """

    backend: str = ""
    topic_delimiter: str = "."
    delays: bool = False

    max_held: int = 1000
    drain_timeout: float = 30.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a consumer that names no backend the name of its class."""
        super().__init_subclass__(**kwargs)
        if not cls.backend:
            cls.backend = cls.__name__

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        """Make a consumer from its backend's validated connection; `start` will open it.

        Raises:
            NotImplementedError: this consumer can't be made from a URL.
        """
        raise NotImplementedError(f"{cls.__name__} can't be made from a URL; construct it")

    async def start(self) -> None:
        """Open what is ours to open. Raises `ConnectError` when the broker can't be reached."""

    async def stop(self) -> None:
        """Give back what is not settled and close what is ours, soon, even with the broker gone.

        What was acknowledged before stays so: the broker is told first.
        """

    async def ping(self) -> None:
        """Ask the broker for a sign of life. Raises `ConnectError` when there is none."""

    @abstractmethod
    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Begin to receive what matches any of these; returns once nothing emitted later is missed.

        Raises:
            ConnectError: the broker can't be reached or refuses us.
            ConfigError: a subscription can't work on this backend, naming it.
        """
        raise NotImplementedError

    @abstractmethod
    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for messages: at least one, at most `limit`. Cancelling it loses none.

        Messages of one key come in the order in which they were emitted.

        Raises:
            ConnectError: there is no connection now, and if it is not `retriable`, never will be.
        """
        raise NotImplementedError

    def dead_letter_producer(self) -> Any:
        """A `Producer` for dead letters, where the listener is given none; None: there is none."""
        return None

    async def backlog(self) -> int | None:
        """How many messages wait for this group, those under way included; None: not known."""
        return None
