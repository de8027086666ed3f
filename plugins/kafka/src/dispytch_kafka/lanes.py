"""What `emit_many` does on Kafka: a lane per partition, with one batch of its own on the way."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dispytch import EmitRejected, Outgoing
from dispytch.producer import Outcome, not_sent
from dispytch_kafka.client import HANDOVER_MARGIN, check_size, not_handed_over
from dispytch_kafka.lane import Entry, Lane
from dispytch_kafka.link import Link
from dispytch_kafka.partitions import known_partition, partition_for, partitions_of
from dispytch_kafka.record import record_of

__all__ = ["send_lanes"]


class _Results:
    """The outcomes so far, and where in the batch each key had its first failure."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._failed: dict[bytes, int] = {}

    def holds_back(self, entry: "_Member") -> bool:
        """Whether an earlier event of its key failed; that is then the event's outcome."""
        key = entry.record.key
        if key is None or self._failed.get(key, entry.index) >= entry.index:
            return False
        self.outcomes[entry.index] = not_sent(entry.out)
        return True

    def take(self, entry: "_Member", outcome: Outcome) -> None:
        """Keep an event's outcome; after an error later events of its key will be held back."""
        self.outcomes[entry.index] = outcome
        if isinstance(outcome, BaseException) and entry.record.key is not None:
            first = self._failed.get(entry.record.key, entry.index)
            self._failed[entry.record.key] = min(first, entry.index)


@dataclass(slots=True, eq=False)
class _Member(Entry):
    """An event of the batch, with its place in it."""

    index: int
    results: _Results

    def is_over(self) -> bool:
        return self.results.holds_back(self)

    def settle(self, outcome: Outcome) -> None:
        self.results.take(self, outcome)


async def send_lanes(link: Link, batch: Sequence[Outgoing]) -> list[Outcome]:
    """Send a batch: partitions side by side, in order within each; an outcome per event."""
    client = link.running()
    results = _Results()
    lanes: dict[tuple[str, int], list[_Member]] = {}
    refused = await _refused_topics(client, batch)
    for index, out in enumerate(batch):
        entry = _Member(out, record_of(out), index, results)
        if entry.is_over():
            continue
        if (refusal := refused.get(out.topic)) is not None:
            entry.settle(EmitRejected(str(refusal), retriable=refusal.retriable))
            continue
        try:
            check_size(client, entry.record)
            partition = known_partition(client, entry.record)
            if partition is None:
                partition = await partition_for(client, entry.record)
        except EmitRejected as error:
            entry.settle(error)
        else:
            lanes.setdefault((out.topic, partition), []).append(entry)
    async with asyncio.TaskGroup() as group:
        for (topic, partition), entries in lanes.items():
            group.create_task(Lane(link, topic, partition, entries).run())
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
