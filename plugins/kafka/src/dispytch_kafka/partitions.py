"""Partitions: those of a topic, as a client knows them, and which one a record goes to."""

import asyncio
import random
from functools import lru_cache
from typing import Any

from aiokafka.errors import ProducerClosed  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]

from dispytch import EmitRejected
from dispytch_kafka.record import Record, check_topic

__all__ = ["choose_partition", "known_partition", "partition_for", "partitions_of"]

_CREATION = 1.2
"""Seconds that brokers get to create a topic on demand: asking for it starts that, and until it
is done the answer is the same as where nothing creates it."""

_LONGEST_KEPT = 200
"""Bytes of a key whose hash is kept."""

_CLOSED_CHECK = 0.5
"""Seconds between looks whether the client that is waited for was closed."""


def choose_partition(key: bytes | None, partitions: list[int], available: list[int]) -> int:
    """The partition for a key, as Java's default partitioner has it; without one, any."""
    if key is None:
        return random.choice(available or partitions)  # noqa: S311
    hash_of = _kept_hash if len(key) <= _LONGEST_KEPT else _hash
    return partitions[hash_of(key) % len(partitions)]


def _hash(key: bytes) -> int:
    return int(murmur2(key) & 0x7FFFFFFF)


_kept_hash = lru_cache(maxsize=10_000)(_hash)
"""In pure Python it takes longer than all else that sends a record."""


async def partitions_of(client: Any, topic: str) -> set[int]:
    """The numbers of a topic's partitions, asked for where they are not known yet.

    Raises:
        EmitRejected: the name is not legal, there is no such topic, or we may not know of it.
        ProducerClosed: the client was closed meanwhile.
    """
    cluster = client.client.cluster
    known: set[int] | None = cluster.partitions_for_topic(topic)
    if known:
        return known
    check_topic(topic)
    client.client.add_topic(topic)
    clock = asyncio.get_running_loop().time
    first_answer = None
    while True:
        answered = await _updated(client)
        known = cluster.partitions_for_topic(topic)
        if known:
            return known
        if topic in cluster.unauthorized_topics:
            raise EmitRejected(f"not authorised for topic {topic!r}")
        if answered:
            first_answer = first_answer or clock()
            if clock() - first_answer > _CREATION:
                raise EmitRejected(
                    f"no topic {topic!r}: create it, or let the brokers do so "
                    "(auto.create.topics.enable)",
                    retriable=True,
                )
        await asyncio.sleep(0.1)


async def _updated(client: Any) -> bool:
    """Ask for the cluster's layout; whether there was an answer. A closed client never has one."""
    asking: asyncio.Future[bool] = client.client.force_metadata_update()
    while not client._closed:
        done, _ = await asyncio.wait({asking}, timeout=_CLOSED_CHECK)
        if done:
            return asking.result()
    raise ProducerClosed


def known_partition(client: Any, record: Record) -> int | None:
    """The partition a record goes to: its own, or by the client's partitioner; None: not known."""
    cluster = client.client.cluster
    partitions: set[int] | None = cluster.partitions_for_topic(record.topic)
    if not partitions:
        return None
    if record.partition is None:
        if client._partitioner is choose_partition and record.key is not None:
            return _hash(record.key) % len(partitions)
        available = cluster.available_partitions_for_topic(record.topic)
        chosen: int = client._partitioner(record.key, sorted(partitions), list(available or ()))
        return chosen
    return record.partition if record.partition in partitions else None


async def partition_for(client: Any, record: Record) -> int:
    """The same, asked for where it is not known yet.

    Raises:
        EmitRejected: there is no such topic or partition.
    """
    partitions = await partitions_of(client, record.topic)
    if record.partition is not None and record.partition not in partitions:
        await _updated(client)  # it may be newer than what we know
        partitions = await partitions_of(client, record.topic)
    partition = known_partition(client, record)
    if partition is None:
        raise EmitRejected(
            f"topic {record.topic!r} has no partition {record.partition}, only 0 to "
            f"{max(partitions)}"
        )
    return partition
