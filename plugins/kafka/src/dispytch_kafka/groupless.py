"""Groupless: all partitions of the topics from now on, leaving nothing behind on the brokers."""

import asyncio
import logging
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaError  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition  # type: ignore[import-untyped]

from dispytch_kafka.client import connections_of
from dispytch_kafka.delivery import Inbox, Partition
from dispytch_kafka.errors import Reading, reading_of, told
from dispytch_kafka.topics import Wanted

__all__ = ["Groupless"]

logger = logging.getLogger("dispytch")


class Groupless:
    """All partitions that there are and that will be, without a group.

    Its positions outlive the client, so a new one goes on where the old one was.

    Args:
        wanted: the topics.
        inbox: where deliveries wait.
        discovery_interval: seconds between two looks for new topics and partitions.
    """

    def __init__(self, wanted: Wanted, inbox: Inbox, *, discovery_interval: float) -> None:
        self._wanted = wanted
        self._inbox = inbox
        self._discovery_interval = discovery_interval
        self._client: Any = None
        self.partitions: dict[Any, Partition] = {}
        self._starts: dict[Any, int] = {}
        self._began = False

    async def join(self, client: Any) -> None:
        """Fix the position in each partition: the first time at its end, later where we were.

        Raises:
            KafkaError: the brokers don't answer or refuse us.
        """
        self._client = client
        await self._discover(assign=True)
        self._began = True

    def partition(self, tp: Any) -> Partition:
        """What keeps count of a partition."""
        return self.partitions[tp]

    def restart(self, tp: Any) -> Partition:
        """Begin anew with a partition whose records come from farther back."""
        partition = self.partitions[tp] = self._new(tp)
        return partition

    async def run(self) -> None:
        """Look for new topics and partitions, again and again.

        Raises:
            KafkaError: the client is broken, or we may not read.
        """
        while True:
            await asyncio.sleep(self._discovery_interval)
            try:
                await self._discover()
            except KafkaError as error:
                if reading_of(error) is not Reading.PASSES:
                    raise
                logger.warning("kafka: can't look for new partitions: %s", told(error))

    async def leave(self, grace: float) -> bool:
        """Nothing to do: no broker knows of us."""
        return True

    def watermark(self, tp: Any) -> int | None:
        """Before this all is done; None: not known here."""
        done_to = self.partitions[tp].offsets.done_to if tp in self.partitions else None
        return self._starts.get(tp) if done_to is None else done_to

    async def _discover(self, *, assign: bool = False) -> None:
        """Begin with the partitions that are new; one that was there once is kept."""
        client, connections = self._client, connections_of(self._client)
        # An empty set means all topics.
        connections.set_topics(() if self._wanted.pattern else self._wanted.literals)
        if not await connections.force_metadata_update():
            raise KafkaConnectionError("no broker answers")
        cluster = connections.cluster
        there = {
            TopicPartition(topic, number)
            for topic in self._wanted.among(cluster.topics())
            for number in cluster.partitions_for_topic(topic) or ()
        }
        new = there - self.partitions.keys()
        if not (new or assign):
            return
        # What appears after the beginning holds only what was emitted after it.
        where = client.beginning_offsets if self._began else client.end_offsets
        self._starts |= await where(list(new))
        self.partitions |= {tp: self._new(tp) for tp in new}
        # Nothing may be awaited here: an assignment begins without positions.
        client.assign(list(self.partitions))
        for tp, partition in self.partitions.items():
            client.seek(tp, partition.offsets.next or self._starts[tp])
        if self._wanted.pattern:
            connections.set_topics(())

    def _new(self, tp: Any) -> Partition:
        return Partition(tp, _nothing, self._inbox)


def _nothing(_: int) -> None:
    """Nobody is told what is done."""
