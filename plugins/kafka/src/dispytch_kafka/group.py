"""Group: partitions shared with other members, and what is done with them committed."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from aiokafka.abc import ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    CommitFailedError,
    IllegalStateError,
    KafkaError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]

from dispytch import ConnectError
from dispytch_kafka.delivery import Inbox, Partition
from dispytch_kafka.errors import BACKEND, Reading, reading_of, told
from dispytch_kafka.topics import Wanted

__all__ = ["NOBODY", "Group"]

logger = logging.getLogger("dispytch")

NOBODY = TopicPartition("", -1)
"""A partition that is nobody's. Asking the client for its records takes none, raises what went
wrong in the background, and counts as a poll."""

_NO_GENERATION = -1

_COMMIT_GRACE = 5.0
"""Seconds that a last commit may take."""

_BETWEEN_LOOKS = 0.02
"""Seconds between two looks whether handlers have ended: what ends without an ack tells nobody."""

_PATIENCE = 5.0
"""Seconds to wait for the group before it is waited for while we go on."""

_RETRY = 1.0
"""Seconds until a failed commit is tried again."""


class Group(ConsumerRebalanceListener):  # type: ignore[misc]
    """Our membership in a consumer group, whichever client we have it through.

    Args:
        wanted: the topics.
        inbox: where deliveries wait.
        drain_timeout: seconds that handlers under way get when partitions are revoked.
        commit_interval: seconds that something done may wait to be committed.
        commit_every: how many may wait. Half of them are committed without waiting longer, so that
            a commit is done before there are as many.
    """

    def __init__(
        self,
        wanted: Wanted,
        inbox: Inbox,
        *,
        drain_timeout: float,
        commit_interval: float,
        commit_every: int,
    ) -> None:
        self._wanted = wanted
        self._inbox = inbox
        self._drain_timeout = drain_timeout
        self._commit_interval = commit_interval
        self._commit_at = (commit_every + 1) // 2
        self._client: Any = None
        self._generation = _NO_GENERATION  # of the assignment
        self.partitions: dict[Any, Partition] = {}
        self._joined = asyncio.Event()
        self._committing = asyncio.Lock()
        self._uncommitted = 0
        self._any_done = asyncio.Event()
        self._many_done = asyncio.Event()

    async def join(self, client: Any) -> None:
        """Become a member; returns when partitions are assigned and their positions known.

        A group takes a member in when those that it has have given up their partitions, or died.
        If that takes longer than a few seconds it goes on meanwhile: nothing is missed by then,
        unless the group begins at the end.

        Raises:
            ConnectError: the group did not take us in.
            KafkaError: it, or the brokers, refused us.
        """
        self._client = client
        self._joined.clear()
        if self._wanted.pattern is None:
            client.subscribe(topics=self._wanted.literals, listener=self)
        else:
            client.subscribe(pattern=self._wanted.pattern.pattern, listener=self)
        begins_at_end = client._auto_offset_reset == "latest"
        longest = self._rebalance_timeout + 10.0 if begins_at_end else _PATIENCE
        scope = asyncio.timeout(longest)
        try:
            async with scope:
                while not self._joined.is_set() or not await self._is_positioned():
                    await client.getmany(NOBODY, timeout_ms=100)
        except TimeoutError as error:
            if not scope.expired():
                raise
            told_later = f"the group {client._group_id!r} has not taken us in within {longest:g} s"
            if begins_at_end:
                raise ConnectError(told_later, backend=BACKEND) from error
            logger.warning("kafka: %s; its members may be finishing or dead; waiting", told_later)
        if begins_at_end:
            await self._commit_beginnings()

    async def _commit_beginnings(self) -> None:
        """Tell the broker where a group begins at the end.

        Else what comes until the first commit would be skipped by who begins at a later end.
        """
        client = self._client
        beginnings = {
            tp: OffsetAndMetadata(await client.position(tp), "")
            for tp in client.assignment()
            if await client.committed(tp) is None
        }
        if beginnings:
            await client._coordinator._do_commit_offsets(None, beginnings)

    async def _is_positioned(self) -> bool:
        """Wait for the position in each partition: where a group begins at the end, it is now."""
        try:
            for tp in self._client.assignment():
                await self._client.position(tp)
        except IllegalStateError:
            return False  # meanwhile they were revoked
        return True

    def partition(self, tp: Any) -> Partition:
        """The assignment that records of a partition come under."""
        return self.partitions.get(tp) or self._begin(tp)

    def restart(self, tp: Any) -> Partition:
        """Begin anew with a partition whose records come from farther back."""
        self.partitions[tp].lose()
        return self._begin(tp)

    async def run(self) -> None:
        """Commit what is done, again and again.

        Raises:
            KafkaError: the client is broken, or we may not commit.
        """
        while True:
            await self._any_done.wait()
            if self._uncommitted < self._commit_at:
                try:
                    async with asyncio.timeout(self._commit_interval):
                        await self._many_done.wait()
                except TimeoutError:
                    pass
            try:
                await self._commit()
            except KafkaError as error:
                if reading_of(error) not in {Reading.PASSES, Reading.REJOINS}:
                    raise
                logger.warning("kafka: a commit failed and is tried again: %s", told(error))
                await asyncio.sleep(_RETRY)
                self._note_done(0)

    async def leave(self, grace: float) -> bool:
        """Commit a last time within `grace` seconds and end all assignments.

        Returns:
            Whether the brokers answer, as far as was seen.
        """
        committed = await self._flush(grace)
        self._end()
        return committed

    def watermark(self, tp: Any) -> int | None:
        """Before this all is done; None: not known here."""
        partition = self.partitions.get(tp)
        return None if partition is None else partition.offsets.done_to

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Any:
        """Called by the client, which awaits it, with all partitions."""
        return self._revoke()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> Any:
        """Called by the client, which awaits it, with all partitions."""
        return self._assign(assigned)

    async def _revoke(self) -> None:
        """Let handlers under way finish, commit, and end all assignments."""
        for partition in self.partitions.values():
            partition.lose()
        if self.partitions and self._is_member():
            await self._drain()
            await self._flush(_COMMIT_GRACE)
        self._end()

    async def _assign(self, assigned: Iterable[Any]) -> None:
        """Begin with partitions."""
        self._generation = self._client._coordinator.generation
        for tp in assigned:
            self.partition(tp)
        self._joined.set()

    async def _drain(self) -> None:
        """Wait for handlers under way, as long as that may take and is of use."""
        clock = asyncio.get_running_loop().time
        longest = min(self._drain_timeout, self._longest_drain)
        deadline = clock() + longest
        while any(partition.busy for partition in self.partitions.values()):
            if clock() > deadline:
                logger.warning(
                    "kafka: partitions are given up with handlers still running after %.1f s; "
                    "their events come again",
                    longest,
                )
                return
            if not self._is_member():
                return
            await asyncio.sleep(_BETWEEN_LOOKS)

    def _begin(self, tp: Any) -> Partition:
        partition = self.partitions[tp] = Partition(tp, self._note_done, self._inbox)
        return partition

    def _end(self) -> None:
        for partition in self.partitions.values():
            partition.lose()
        self.partitions = {}  # what is done of them no longer counts
        self._generation = _NO_GENERATION

    def _note_done(self, count: int) -> None:
        self._uncommitted += count
        self._any_done.set()
        if self._uncommitted == self._commit_at:
            self._many_done.set()

    def _is_member(self) -> bool:
        """Whether the group still knows us under the generation of our assignment."""
        return bool(self._client._coordinator.generation == self._generation != _NO_GENERATION)

    @property
    def _rebalance_timeout(self) -> float:
        return float(self._client._rebalance_timeout_ms) / 1000

    @property
    def _longest_drain(self) -> float:
        """Seconds to drain so that committing and joining again still fit into the rebalance."""
        heartbeat = self._client._heartbeat_interval_ms / 1000
        whole = self._rebalance_timeout
        return float(max(whole / 2, whole - heartbeat - _COMMIT_GRACE))

    async def _flush(self, grace: float) -> bool:
        """Commit, if that is possible within `grace` seconds; whether it was."""
        if not any(partition.to_commit is not None for partition in self.partitions.values()):
            return True
        try:
            async with asyncio.timeout(grace):
                await self._commit()
        except (KafkaError, TimeoutError) as error:
            logger.warning("kafka: the last commit failed; events come again: %s", told(error))
            return False
        return True

    async def _commit(self) -> None:
        """Tell the broker what is done.

        Not by the client's `commit`: that goes on trying after a rebalance, under the new
        generation, and so could set back what the new owner of a partition has committed.

        Raises:
            KafkaError: it was not told, or did not answer.
        """
        async with self._committing:
            coordinator = self._client._coordinator
            await coordinator.ensure_coordinator_known()
            self._uncommitted = 0
            self._any_done.clear()
            self._many_done.clear()
            done = [
                (partition, offset)
                for partition in self.partitions.values()
                if (offset := partition.to_commit) is not None
            ]
            if not done:
                return
            if not self._is_member():
                raise CommitFailedError("the group has gone on without this member")
            offsets = {partition.tp: OffsetAndMetadata(offset, "") for partition, offset in done}
            await coordinator._do_commit_offsets(None, offsets)
            for partition, offset in done:
                partition.committed = offset
