"""Producer, Outgoing, Receipt: what a backend implements to send."""

import asyncio
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from pydantic import BaseModel

from dispytch.errors import EmitRejected, ProducerTimeout

__all__ = [
    "Details",
    "HeaderPairs",
    "Outcome",
    "Outgoing",
    "Producer",
    "Receipt",
    "held_back",
    "not_sent",
    "past_deadline",
    "too_late",
]

Details: TypeAlias = Mapping[str, Any] | None
"""What a broker says of an accepted event (Kafka: partition and offset), or None."""

Outcome: TypeAlias = Details | BaseException
"""The details of an accepted event of a batch, or the error it met."""


class HeaderPairs(dict[str, str | bytes]):
    """Headers of which a name may come twice: `items()` has every pair, a look-up the last one.

    Args:
        pairs: names and values, in order.
    """

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        self._pairs = tuple(pairs)
        super().__init__(self._pairs)

    def items(self) -> Any:
        """All pairs, in order."""
        return self._pairs


@dataclass(slots=True)
class Outgoing:
    """An event ready to be sent.

    Attributes:
        event_id: unique; lets a receiver drop a second copy.
        type: the event's type.
        topic: where to.
        payload: the envelope's bytes.
        key: what must stay in order, from the event's `__key__`; None: nothing.
        config: the merged config, of the producer's own schema; None: its defaults.
        headers: set by middleware; empty unless the producer carries headers.
        deadline: on the clock of the running loop (`loop.time()`), when the outcome must be known.
    """

    event_id: str
    type: str
    topic: str
    payload: bytes
    key: str | None = None
    config: Any = None
    headers: Mapping[str, str | bytes] = field(default_factory=dict[str, str | bytes])
    deadline: float = float("inf")


@dataclass(slots=True)  # making a frozen one takes as long as writing the body
class Receipt:
    """The broker has the event.

    Attributes:
        event_id: the id of the event.
        topic: where it went.
        backend: the name of the backend that has it.
        details: what the broker told (Kafka: topic, partition, offset, timestamp).
    """

    event_id: str
    topic: str
    backend: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Producer:
    """Sends to one broker. Override `send`, or `send_message` for all that is known of an event.

    Both return details for the `Receipt`, or None, once the broker *has* the event. They raise
    `EmitRejected` when it certainly is not stored and `EmitUnknown` when it may be; anything else
    they raise reaches the caller of `emit` as it is. They may be cancelled at the deadline.

    Class attributes; for a producer made from a URL its `Backend` fills in what they leave out:
        backend: the name in receipts and errors.
        event_config: the schema of configs this producer takes; None takes any.
        carries_headers: whether `Outgoing.headers` travel; if not, setting one is an error.
        topic_delimiter: separates the segments of a topic; no placeholder's value may hold it.
    """

    backend: str = ""
    event_config: type[BaseModel] | None = None
    carries_headers: bool = False
    topic_delimiter: str = "."

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a producer that names no backend the name of its class."""
        super().__init_subclass__(**kwargs)
        if not cls.backend:
            cls.backend = cls.__name__

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        """Make a producer from its backend's validated connection; `start` will open it.

        Raises:
            NotImplementedError: this producer can't be made from a URL.
        """
        raise NotImplementedError(f"{cls.__name__} can't be made from a URL; construct it")

    async def start(self) -> None:
        """Open what is ours to open. Raises `ConnectError` when the broker can't be reached."""

    async def stop(self) -> None:
        """Close what is ours to close; must return soon even with the broker gone."""

    async def flush(self) -> None:
        """Wait until everything handed over has an outcome."""

    async def ping(self) -> None:
        """Ask the broker for a sign of life. Raises `ConnectError` when there is none."""

    async def send(self, topic: str, payload: bytes, config: Any = None) -> Details:
        """Send one payload; the simple form."""
        raise NotImplementedError(f"{type(self).__name__} must override send or send_message")

    async def send_message(self, out: Outgoing, /) -> Details:
        """Send one event; by default through `send`, leaving out key and headers."""
        return await self.send(out.topic, out.payload, out.config)

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Send a batch; one outcome each, in the order given. Errors are returned, not raised.

        After a failure no later event of the same key is sent. By default one after the other
        through `send_message`, each until its own deadline.
        """
        outcomes: list[Outcome] = []
        failed: set[Hashable] = set()
        for out in batch:
            key = self.ordering_key(out)
            outcome = not_sent(out) if key in failed else await self._outcome_of(out)
            if isinstance(outcome, BaseException) and key is not None:
                failed.add(key)
            outcomes.append(outcome)
        return outcomes

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Send what could not be handled to its dead-letter topic, `out.topic`.

        It must be kept there although nobody may be subscribed to that topic yet.
        """
        return await self.send_message(out)

    async def send_lanes(
        self, batch: Sequence[Outgoing], /, max_in_flight: int = 1000
    ) -> Sequence[Outcome]:
        """What `send_messages` does, for brokers that take several events at once.

        Events of one key go one after the other, different keys and keyless events side by side.
        """
        lanes: dict[Hashable, list[int]] = {}
        for index, out in enumerate(batch):
            key = self.ordering_key(out)
            lanes.setdefault(("keyless", index) if key is None else ("key", key), []).append(index)
        outcomes: dict[int, Outcome] = {}
        waiting = iter(lanes.values())

        async def work() -> None:
            for lane in waiting:
                failed = False
                for index in lane:
                    out = batch[index]
                    outcomes[index] = not_sent(out) if failed else await self._outcome_of(out)
                    failed = failed or isinstance(outcomes[index], BaseException)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_in_flight, len(lanes))):
                group.create_task(work())
        return [outcomes[index] for index in range(len(batch))]

    def ordering_key(self, out: Outgoing, /) -> Hashable | None:
        """What keeps this event in order with others: by default its key."""
        return out.key

    async def _outcome_of(self, out: Outgoing) -> Outcome:
        if asyncio.get_running_loop().time() >= out.deadline:
            return too_late()
        try:
            async with asyncio.timeout_at(out.deadline):
                return await self.send_message(out)
        except TimeoutError as error:  # ours or the producer's own: unknown in both cases
            late = past_deadline(out)
            late.__cause__ = error
            return late
        except Exception as error:  # noqa: BLE001 - it is this event's outcome
            return error


def held_back(key: Hashable) -> EmitRejected:
    """The outcome of an event not sent because an earlier one of its key failed."""
    return EmitRejected(
        f"not sent: an earlier event of the batch with the key {key!r} failed", retriable=True
    )


def not_sent(out: Outgoing) -> EmitRejected:
    """The same, for an event that is ready."""
    return held_back(out.key)


def too_late() -> EmitRejected:
    """The outcome of an event of a batch whose turn never came."""
    return EmitRejected("not sent: the deadline passed before its turn", retriable=True)


def past_deadline(out: Outgoing) -> ProducerTimeout:
    """The outcome of an event whose deadline passed: unknown, never failed."""
    return ProducerTimeout(
        f"no confirmation for event {out.event_id} on {out.topic!r} before the deadline; "
        "it may still arrive",
        retriable=True,
    )
