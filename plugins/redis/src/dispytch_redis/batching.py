"""Batches: many events appended in few steps, each with an outcome of its own."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from dispytch import EmitRejected, Outgoing
from dispytch.producer import Outcome, held_back, past_deadline, too_late
from dispytch_redis.entry import fields_of, key_of
from dispytch_redis.errors import NotSentError, WireError, as_emit_error
from dispytch_redis.script import APPEND
from dispytch_redis.topics import Topic, stream_of
from dispytch_redis.wire import Argument

if TYPE_CHECKING:
    from dispytch_redis.producer import RedisProducer

__all__ = ["send_batch"]

_AT_ONCE = 200  # events of a shard in one step: the server does nothing else meanwhile
_BYTES = 512 * 1024  # or so many
_ARGUMENTS = 2_000  # or so many: Lua has limits


@dataclass(slots=True)
class _Item:
    index: int
    out: Outgoing
    key: bytes | None
    fields: list[bytes]


@dataclass(slots=True)
class _Lane:
    """The events of a batch that are for one shard."""

    topic: Topic
    stream: bytes
    items: list[_Item] = field(default_factory=list[_Item])

    def steps(self) -> Iterator[list[_Item]]:
        """As many as go in one step."""
        step: list[_Item] = []
        size = arguments = 0
        for item in self.items:
            count = len(item.fields)
            is_full = len(step) >= _AT_ONCE or size >= _BYTES or arguments + count > _ARGUMENTS
            if step and is_full:
                yield step
                step, size, arguments = [], 0, 0
            step.append(item)
            size += sum(map(len, item.fields))
            arguments += count
        yield step


class _Results:
    """The outcomes so far, and where in the batch each key had its first failure."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome] = [None] * count
        self._failed: dict[bytes, int] = {}

    def holds_back(self, index: int, key: bytes | None) -> bool:
        """Whether an earlier event of its key failed; that is then the event's outcome."""
        if key is None or self._failed.get(key, index) >= index:
            return False
        self.outcomes[index] = held_back(key)
        return True

    def fail(self, index: int, key: bytes | None, error: BaseException) -> None:
        """Keep an event's error; later events of its key will be held back."""
        self.outcomes[index] = error
        if key is not None:
            self._failed[key] = min(self._failed.get(key, index), index)


async def send_batch(producer: "RedisProducer", batch: Sequence[Outgoing]) -> list[Outcome]:
    """Append a batch: shards side by side, each in order.

    Returns:
        For each event its details or its error. After a failure, later events of its key are not
        sent; those that went in the same step have the same outcome.
    """
    results = _Results(len(batch))
    topics: dict[str, Topic] = {}
    lanes: dict[bytes, _Lane] = {}
    for index, out in enumerate(batch):
        key: bytes | None = None
        try:
            key = key_of(out)
            if results.holds_back(index, key):
                continue
            fields = fields_of(out, key)
            producer.check_size(out)
            topic = topics.get(out.topic)
            if topic is None:
                _, topic = await producer.ready(out)
                topics[out.topic] = topic
        except EmitRejected as error:
            results.fail(index, key, error)
            continue
        stream = stream_of(topic, key)
        lane = lanes.get(stream) or lanes.setdefault(stream, _Lane(topic, stream))
        lane.items.append(_Item(index, out, key, fields))
    async with asyncio.TaskGroup() as group:
        for lane in lanes.values():
            group.create_task(_append(producer, lane, results))
    return results.outcomes


async def _append(producer: "RedisProducer", lane: _Lane, results: _Results) -> None:
    for step in lane.steps():
        wanted = [item for item in step if not results.holds_back(item.index, item.key)]
        told = await _append_step(producer, lane, wanted) if wanted else []
        for item, outcome in zip(wanted, told, strict=True):
            if isinstance(outcome, BaseException):
                results.fail(item.index, item.key, outcome)
            else:
                results.outcomes[item.index] = outcome
                producer.appended(item.out.config, lane.topic, lane.stream)


async def _append_step(
    producer: "RedisProducer", lane: _Lane, items: list[_Item]
) -> Sequence[Outcome]:
    arguments: list[Argument] = []
    for item in items:
        arguments.append(len(item.fields))
        arguments += item.fields
    name, deadline, sent = lane.stream.decode(), min(item.out.deadline for item in items), False
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                wire, sent = await producer.connected(deadline), True
                try:
                    if len(items) == 1:  # also one with more fields than Lua can hand on
                        ids, rest = [await wire.call("XADD", name, "*", *items[0].fields)], []
                    else:
                        ids, *rest = await APPEND.run(wire, [name], *arguments)
                    break
                except NotSentError:
                    sent = False
    except TimeoutError:
        return [past_deadline(item.out) if sent else too_late() for item in items]
    except EmitRejected as error:
        return [EmitRejected(*error.args, retriable=error.retriable) for _ in items]
    except (RedisError, WireError) as error:
        return [as_emit_error(error) for _ in items]
    outcomes: list[Outcome] = [{"stream": name, "id": entry.decode()} for entry in ids]
    if rest:
        outcomes.append(as_emit_error(rest[0]))
        outcomes += [
            EmitRejected("not sent: an event before it in the batch failed", retriable=True)
            for _ in items[len(outcomes) :]
        ]
    return outcomes
