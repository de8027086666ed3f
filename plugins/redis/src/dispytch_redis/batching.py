"""Batches: many events appended in few steps, each with an outcome of its own."""

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from dispytch import EmitRejected, Outgoing
from dispytch.producer import Outcome, held_back, past_deadline, too_late
from dispytch_redis.entry import fields_of
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
            if step and (len(step) >= _AT_ONCE or size >= _BYTES or arguments >= _ARGUMENTS):
                yield step
                step, size, arguments = [], 0, 0
            step.append(item)
            size += sum(map(len, item.fields))
            arguments += len(item.fields)
        yield step


async def send_batch(producer: "RedisProducer", batch: Sequence[Outgoing]) -> list[Outcome]:
    """Append a batch: shards side by side, each in order.

    Returns:
        For each event its details or its error. After a failure, later events of its key are not
        sent; those that went in the same step have the same outcome.
    """
    outcomes: list[Outcome] = [None] * len(batch)
    failed: set[Hashable] = set()
    lanes: dict[bytes, _Lane] = {}
    topics: dict[str, Topic] = {}
    for index, out in enumerate(batch):
        key: Hashable = out.key
        try:
            key, fields = fields_of(out)
            if key is not None and key in failed:
                outcomes[index] = held_back(key)
                continue
            producer.check_size(out)
            topic = topics.get(out.topic)
            if topic is None:
                topic = topics[out.topic] = await _topic(producer, out)
        except EmitRejected as error:
            outcomes[index] = error
            failed.add(key)
            continue
        stream = stream_of(topic, key)
        lane = lanes.get(stream) or lanes.setdefault(stream, _Lane(topic, stream))
        lane.items.append(_Item(index, out, key, fields))
    async with asyncio.TaskGroup() as group:
        for lane in lanes.values():
            group.create_task(_append(producer, lane, outcomes))
    return outcomes


async def _topic(producer: "RedisProducer", out: Outgoing) -> Topic:
    try:
        async with asyncio.timeout_at(out.deadline):
            while True:
                topic = await producer.topic(out.topic)
                if topic is not None:
                    return topic
    except TimeoutError as error:
        raise too_late() from error


async def _append(producer: "RedisProducer", lane: _Lane, outcomes: list[Outcome]) -> None:
    failed: set[bytes | None] = set()  # keys; those of a lane are in no other
    for step in lane.steps():
        wanted: list[_Item] = []
        for item in step:
            if item.key is not None and item.key in failed:
                outcomes[item.index] = held_back(item.key)
            else:
                wanted.append(item)
        told = await _append_step(producer, lane, wanted) if wanted else []
        for item, outcome in zip(wanted, told, strict=True):
            outcomes[item.index] = outcome
            if isinstance(outcome, BaseException):
                failed.add(item.key)
        if stored := [item for item in wanted if not isinstance(outcomes[item.index], Exception)]:
            producer.appended(stored[-1].out.config, lane.topic, lane.stream, len(stored))


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
                wire, sent = await producer.connected(), False
                try:
                    sent = True
                    ids, *rest = await APPEND.run(wire, [name], *arguments)
                    break
                except NotSentError:
                    continue
    except TimeoutError:
        return [past_deadline(item.out) if sent else too_late() for item in items]
    except EmitRejected as error:
        return [error] * len(items)
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
