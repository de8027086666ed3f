"""What `emit_many` does on Kafka: a lane per partition, with one batch of its own on the way."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from dispytch import EmitError, EmitRejected, Outgoing
from dispytch.producer import Outcome, not_sent, past_deadline
from dispytch_kafka.client import (
    HANDOVER_MARGIN,
    append,
    check_size,
    not_handed_over,
    partition_for,
    partitions_of,
)
from dispytch_kafka.errors import Fate, fate_of, outcome_of
from dispytch_kafka.link import Link
from dispytch_kafka.record import Record, details_of, record_of

__all__ = ["send_lanes"]


@dataclass(slots=True)
class _Entry:
    """An event of the batch: its place in it, and what of it goes out."""

    index: int
    out: Outgoing
    record: Record


class _Results:
    """The outcomes so far, and where in the batch each key had its first failure."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._failed: dict[bytes, int] = {}

    def holds_back(self, entry: _Entry) -> bool:
        """Whether an earlier event of its key failed; that is then the event's outcome."""
        key = entry.record.key
        if key is None or self._failed.get(key, entry.index) >= entry.index:
            return False
        self.outcomes[entry.index] = not_sent(entry.out)
        return True

    def fail(self, entry: _Entry, error: BaseException) -> None:
        """Keep an event's error; later events of its key will be held back."""
        self.outcomes[entry.index] = error
        if entry.record.key is not None:
            first = self._failed.get(entry.record.key, entry.index)
            self._failed[entry.record.key] = min(first, entry.index)


async def send_lanes(link: Link, batch: Sequence[Outgoing]) -> list[Outcome]:
    """Send a batch: partitions side by side, in order within each; an outcome per event."""
    client = link.running()
    results = _Results()
    lanes: dict[tuple[str, int], deque[_Entry]] = {}
    refused = await _refused_topics(client, batch)
    for index, out in enumerate(batch):
        entry = _Entry(index, out, record_of(out))
        if results.holds_back(entry):
            continue
        if (refusal := refused.get(out.topic)) is not None:
            results.fail(entry, EmitRejected(str(refusal), retriable=refusal.retriable))
            continue
        try:
            check_size(client, entry.record)
            partition = await partition_for(client, entry.record)
        except EmitRejected as error:
            results.fail(entry, error)
        else:
            lanes.setdefault((out.topic, partition), deque()).append(entry)
    async with asyncio.TaskGroup() as group:
        for (topic, partition), waiting in lanes.items():
            group.create_task(_Lane(link, topic, partition, waiting, results).run())
    return [results.outcomes[index] for index in range(len(batch))]


async def _refused_topics(client: Any, batch: Sequence[Outgoing]) -> dict[str, EmitRejected]:
    """Look all topics up together: one that is missing takes a moment to be told from a new one."""

    async def look_up(topic: str, deadline: float) -> EmitRejected | None:
        try:
            async with asyncio.timeout_at(deadline - HANDOVER_MARGIN):
                await partitions_of(client, topic)
        except EmitRejected as error:
            return error
        except TimeoutError:
            return not_handed_over(topic)
        return None

    deadlines = {out.topic: out.deadline for out in batch}
    refusals = await asyncio.gather(*(look_up(*item) for item in deadlines.items()))
    found = zip(deadlines, refusals, strict=True)
    return {topic: refusal for topic, refusal in found if refusal is not None}


class _Lane:
    """The events for one partition, on their way in batches, the next after the last's outcome.

    Kafka stores a batch or refuses it as a whole. If it refuses one for one of its records, each of
    its events is sent alone: none was stored.
    """

    def __init__(
        self, link: Link, topic: str, partition: int, waiting: deque[_Entry], results: _Results
    ) -> None:
        self._link = link
        self._topic, self._partition = topic, partition
        self._waiting, self._results = waiting, results
        self._group: list[_Entry] = []  # those of the waiting that are in the batch under way
        self._alone = 0  # how many of the waiting are to be sent alone

    async def run(self) -> None:
        """Give every event its outcome."""
        clock = asyncio.get_running_loop().time
        while self._waiting:
            first = self._waiting[0]
            if self._results.holds_back(first):
                self._done(1)
            elif clock() >= first.out.deadline - HANDOVER_MARGIN:
                self._results.fail(first, not_handed_over(self._topic))
                self._done(1)
            else:
                await self._send_next(first.out.deadline)

    async def _send_next(self, deadline: float) -> None:
        """Send one batch; its events get their outcome, or are to be sent alone."""
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                stored = await self._link.deliver(self._queue, self._topic, deadline)
        except TimeoutError:
            if not scope.expired():
                raise
            self._fail(past_deadline)
        except EmitError as error:
            told = error  # one error per event: each will name its own
            self._fail(lambda _: type(told)(str(told), retriable=told.retriable))
        except KafkaError as error:
            if fate_of(error) is Fate.RECORD and len(self._group) > 1:
                self._alone = len(self._group)
                return
            problem = error
            self._fail(lambda out: outcome_of(problem, out.topic))
        else:
            for position, entry in enumerate(self._group):
                details = details_of(stored, entry.record, position)
                self._results.outcomes[entry.index] = details
        self._done(len(self._group))

    async def _queue(self, client: Any) -> asyncio.Future[Any]:
        """Put as many of the waiting as fit, or are to go, into a batch and queue it."""
        builder = client.create_batch()
        self._group = []
        for entry in islice(self._waiting, 1 if self._alone else None):
            if not append(builder, entry.record):
                break
            self._group.append(entry)
        return await self._link.queue_batch(client, builder, self._topic, self._partition)

    def _fail(self, error_of: Callable[[Outgoing], BaseException]) -> None:
        for entry in self._group or [self._waiting[0]]:
            self._results.fail(entry, error_of(entry.out))

    def _done(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()
        self._alone = max(self._alone - count, 0)
