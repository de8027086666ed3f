"""Bulk: what `emit_many` does, in windows that reach each partition as one batch.

Kafka stores a batch or refuses it as a whole, and after a failure no later event of its key may be
sent. librdkafka cuts batches by itself, so that one could be refused while the next, with events of
the same keys, is on its way. Here nothing is on its way but one window, small enough that the
events of a partition fit into one batch, which a client that waits otherwise sends when flushed.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException, Producer

from dispytch import EmitRejected, Outgoing
from dispytch.producer import Outcome, not_sent, past_deadline
from dispytch_confluent.client import MARGIN, produce
from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import as_rejected, fate_of, outcome_of
from dispytch_confluent.link import Link, not_queued, within
from dispytch_kafka.errors import Fate
from dispytch_kafka.record import Record, record_of

__all__ = ["Bulk", "details_of"]

_LINGER_MS = 5_000
"""How long the client waits to be flushed: longer than queueing a window takes."""

_OVERHEAD = 100
"""Bytes of a record beside what it carries, at most."""

_LARGEST = 64 * 1024 * 1024
"""Bytes of a window at most: its events fit into the client's queue, however small they are."""

_LOOK = 0.1
"""Seconds between two looks whether the window was given up."""

_ANSWER = 5.0
"""Seconds that brokers get to tell a topic's partitions."""

_BY_BROKER = 2
"""The type of a timestamp that the broker gave."""


@dataclass(slots=True)
class _Entry:
    """An event of the batch: its place in it, and what of it goes out."""

    index: int
    out: Outgoing
    record: Record


@dataclass(slots=True)
class _Batch:
    """The outcomes so far, and the keys that had a failure."""

    outcomes: dict[int, Outcome] = field(default_factory=dict[int, Outcome])
    failed: set[bytes] = field(default_factory=set[bytes])

    def holds_back(self, entry: _Entry) -> bool:
        """Whether an event of its key failed before it; that is then the event's outcome."""
        held = entry.record.key in self.failed
        if held:
            self.outcomes[entry.index] = not_sent(entry.out)
        return held

    def reject(self, entries: Iterable[_Entry], error: EmitRejected) -> None:
        """Give each of these events an error of its own."""
        for entry in entries:
            if not self.holds_back(entry):
                self.fail(entry, EmitRejected(str(error), retriable=error.retriable))

    def fail(self, entry: _Entry, error: BaseException) -> None:
        """Keep an event's error; later events of its key will be held back."""
        self.outcomes[entry.index] = error
        if entry.record.key is not None:
            self.failed.add(entry.record.key)


@dataclass(slots=True)
class _Window:
    """What is on its way at a time.

    Attributes:
        queued: its events that the client has, in order.
        answers: error and message for each, by its place in `queued`.
        given_up: whether nobody waits for it any more.
    """

    queued: list[_Entry] = field(default_factory=list[_Entry])
    answers: dict[int, tuple[Any, Any]] = field(default_factory=dict[int, tuple[Any, Any]])
    given_up: bool = False


class Bulk:
    """Sends batches, one window after the other.

    Args:
        connection: how to build the client.
        link: knows the topics.
    """

    def __init__(self, connection: ConfluentConnection, link: Link) -> None:
        settings = connection.librdkafka_producer()
        self._settings = settings | {
            "linger.ms": _LINGER_MS,
            "message.timeout.ms": _LINGER_MS + settings["message.timeout.ms"],
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,  # what ails the brokers, the other client logs
        }
        self._link = link
        self._limit = min(connection.max_batch_bytes, connection.max_request_bytes, _LARGEST)
        self._turn = asyncio.Lock()
        self._producer: Any = None
        self._topics: set[str] = set()

    async def send(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        """Send a batch; an outcome per event, in the order given."""
        results = _Batch()
        refused = await self._refused_topics(batch)
        entries: list[_Entry] = []
        for index, out in enumerate(batch):
            entry = _Entry(index, out, record_of(out))
            if (refusal := refused.get(out.topic)) is None:
                entries.append(entry)
            else:
                results.reject([entry], refusal)
        for window in self._windows(entries):
            await self._send(window, results)
        return [results.outcomes[index] for index in range(len(batch))]

    async def stop(self) -> None:
        """Close the client."""
        producer = self._let_go()
        if producer is not None:
            await asyncio.to_thread(_close, producer, self._link.grace)

    async def _refused_topics(self, batch: Sequence[Outgoing]) -> dict[str, EmitRejected]:
        """Look all topics up together: one that is missing takes a moment to be told."""

        async def look_up(topic: str, deadline: float) -> EmitRejected | None:
            try:
                await self._link.ready(topic, deadline)
            except EmitRejected as error:
                return error
            return None

        deadlines = {out.topic: out.deadline for out in batch}
        refusals = await asyncio.gather(*(look_up(*item) for item in deadlines.items()))
        found = zip(deadlines, refusals, strict=True)
        return {topic: refusal for topic, refusal in found if refusal is not None}

    def _windows(self, entries: Sequence[_Entry]) -> Iterator[list[_Entry]]:
        """As many as go together."""
        window: list[_Entry] = []
        size = 0
        for entry in entries:
            added = _OVERHEAD + entry.record.size
            if window and size + added > self._limit:
                yield window
                window, size = [], 0
            window.append(entry)
            size += added
        if window:
            yield window

    async def _send(self, entries: Sequence[_Entry], results: _Batch) -> None:
        """Send a window; what is refused for one of its records goes again, in halves."""
        window = await self._deliver(entries, results)
        refused: list[_Entry] = []
        for place, entry in enumerate(window.queued):
            if place not in window.answers:
                results.fail(entry, past_deadline(entry.out))
                continue
            error, message = window.answers[place]
            if error is None:
                results.outcomes[entry.index] = details_of(message, entry.record)
            elif fate_of(error) is Fate.RECORD and len(window.queued) > 1:
                refused.append(entry)
            else:
                self._link.forget(entry.out.topic, error)
                results.fail(entry, outcome_of(error, entry.out.topic))
        middle = (len(refused) + 1) // 2
        for half in (refused[:middle], refused[middle:]):
            if half:
                await self._send(half, results)

    async def _deliver(self, entries: Sequence[_Entry], results: _Batch) -> _Window:
        """Have a window's answers, or as many as came before its deadline."""
        window, clock = _Window(), asyncio.get_running_loop().time
        topic, deadline = entries[0].out.topic, min(entry.out.deadline for entry in entries)
        try:
            await within(self._turn.acquire(), topic, deadline)
        except EmitRejected as error:
            results.reject(entries, error)
            return window
        try:
            self._link.running()
        except EmitRejected as error:
            self._turn.release()
            results.reject(entries, error)
            return window
        working = asyncio.ensure_future(
            asyncio.to_thread(self._work, window, entries, results, deadline - clock())
        )
        working.add_done_callback(lambda _: self._turn.release())  # whoever is cancelled meanwhile
        try:
            await asyncio.shield(working)
        finally:
            window.given_up = True
            if not working.done():
                await asyncio.wait({working})
        return window

    def _work(
        self, window: _Window, entries: Sequence[_Entry], results: _Batch, timeout: float
    ) -> None:
        """In a thread: queue a window and wait for its answers."""
        until = time.monotonic() + timeout
        producer = self._producer = self._producer or Producer(self._settings)
        broken = False
        for entry in entries:
            if results.holds_back(entry):
                continue
            if window.given_up or time.monotonic() >= until - MARGIN:
                results.fail(entry, not_queued(entry.out.topic))
                continue
            try:
                self._queue(producer, window, entry, until)
            except KafkaException as error:
                broken = broken or _is_doubtful(error.args[0])
                results.fail(entry, as_rejected(error.args[0], entry.out.topic))
        answers, wanted = window.answers, len(window.queued)
        while len(answers) < wanted and not window.given_up:
            left = until - time.monotonic()
            if left <= 0:
                break
            _flush(producer, min(_LOOK, left))
        broken = broken or any(_is_doubtful(error) for error, _ in answers.values())
        if broken or len(answers) < wanted:
            self._retire()

    def _queue(self, producer: Any, window: _Window, entry: _Entry, until: float) -> None:
        topic = entry.record.topic
        if topic not in self._topics:  # else its first window would have no partitions yet
            producer.list_topics(topic, timeout=min(_ANSWER, until - time.monotonic()))
            self._topics.add(topic)
        place, answers = len(window.queued), window.answers

        def answered(error: Any, message: Any) -> None:
            answers[place] = (error, message)

        produce(producer, entry.record, answered)
        window.queued.append(entry)

    def _retire(self) -> None:
        """Have a new client for the next window; this one ends by itself."""
        producer = self._let_go()
        if producer is not None:
            threading.Thread(target=_close, args=(producer, 0.0), daemon=True).start()

    def _let_go(self) -> Any:
        producer, self._producer = self._producer, None
        self._topics = set()
        return producer


def _close(producer: Any, grace: float) -> None:
    """In a thread: let it send what it holds, for so long, then drop the rest."""
    _flush(producer, grace)
    producer.purge()
    _flush(producer, _LOOK)


def _flush(producer: Any, timeout: float) -> None:
    with contextlib.suppress(KafkaException):  # the end of a client is told by its answers, too
        producer.flush(timeout)


def _is_doubtful(error: Any) -> bool:
    """Whether it says more of the client, or of the way to the brokers, than of the event."""
    return error is not None and fate_of(error) not in {Fate.REFUSED, Fate.RECORD}


def details_of(message: Any, record: Record) -> dict[str, Any]:
    """What the broker told, for the receipt."""
    kind, moment = message.timestamp()
    offset = message.offset()
    return {
        "topic": record.topic,
        "partition": message.partition(),
        # A retry of what was stored long ago is confirmed without its offset.
        "offset": offset if offset is not None and offset >= 0 else None,
        "timestamp_ms": moment if kind == _BY_BROKER else record.timestamp_ms,
    }
