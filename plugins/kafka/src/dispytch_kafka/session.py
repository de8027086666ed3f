"""Session: one client's life between its subscription and its end."""

import asyncio
import logging
from typing import Any, TypeAlias

from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
)

from dispytch_kafka.client import connections_of
from dispytch_kafka.delivery import Inbox
from dispytch_kafka.group import NOBODY, Group
from dispytch_kafka.groupless import Groupless

__all__ = ["FARTHEST_AHEAD", "Session", "Stuck"]

logger = logging.getLogger("dispytch")

_WAIT_MS = 1000
"""Milliseconds that one call waits for records."""

_SHORT_WAIT_MS = 100
"""The same, while partitions are held back that may be let go at any moment."""

FARTHEST_AHEAD = 10_000
"""How far offsets of a partition are fetched beyond its oldest unfinished record: all of that comes
again if this process dies."""

_WATCH = 10.0
"""Seconds between two looks whether the client still works."""

_TOO_OFTEN = 3
"""How many looks in a row find it stuck before it counts as that."""

_UNREACHABLE = 6
"""How many looks in a row find no broker before the URL's addresses are asked again."""

_ANSWER = 5.0
"""Seconds that a broker gets to answer the watch."""


class Stuck(Exception):  # noqa: N818 - a state, told from errors of the client
    """The client neither works nor says why."""


Reader: TypeAlias = Group | Groupless


class Session:
    """A started client, its subscription and the tasks around it.

    Args:
        client: an `AIOKafkaConsumer`, started.
        reader: with or without a group.
        inbox: where deliveries go.
        max_poll_interval: seconds after which the client wants to be asked again.
        replaceable: whether a new client could do better.
    """

    def __init__(
        self,
        client: Any,
        reader: Reader,
        inbox: Inbox,
        *,
        max_poll_interval: float,
        replaceable: bool,
    ) -> None:
        self.client = client
        self.reader = reader
        self._inbox = inbox
        self._nap = min(1.0, max_poll_interval / 3)
        self._replaceable = replaceable
        self._received = 0
        self._held_back: set[Any] = set()

    async def run(self) -> None:
        """Fetch what is wanted and see that the client works, until it does not.

        Raises:
            KafkaError: what the client can't get over.
            Stuck: it does not work and does not say why.
        """
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(work) for work in (self._pump(), self.reader.run(), self._watch())
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in ended:
            if task.cancelled():  # not by us: one of the client's tasks was, and its waiter told
                raise Stuck("a task of it was cancelled")
            task.result()

    async def backlog(self) -> int:
        """How many records there are that are not done, as far as offsets tell.

        Raises:
            KafkaError: the brokers don't answer.
        """
        assigned = list(self.client.assignment())
        ends = await self.client.end_offsets(assigned)
        waiting = 0
        for tp, end in ends.items():
            done_to = self.reader.watermark(tp)
            waiting += end - (await self.client.position(tp) if done_to is None else done_to)
        return max(0, waiting)

    async def _pump(self) -> None:
        """Fetch when somebody wants it; else tell the client now and then that we live."""
        inbox, client = self._inbox, self.client
        while True:
            if inbox.wanted.is_set():
                open_to_more = self._open_to_more()
                wait = _WAIT_MS if open_to_more == () else _SHORT_WAIT_MS
                fetched = await client.getmany(
                    *open_to_more, timeout_ms=wait, max_records=inbox.limit
                )
                for tp, records in fetched.items():
                    self._deliver(tp, records)
                continue
            try:
                async with asyncio.timeout(self._nap):
                    await inbox.wanted.wait()
            except TimeoutError:
                await client.getmany(NOBODY)

    def _open_to_more(self) -> tuple[Any, ...]:
        """The partitions to fetch from; none at all stands for each of them."""
        partitions = self.reader.partitions
        held_back = {tp for tp, each in partitions.items() if each.offsets.ahead > FARTHEST_AHEAD}
        for tp in held_back - self._held_back:
            logger.warning(
                "kafka: %s is %d records ahead of one that is not finished, and waits for it",
                tp,
                partitions[tp].offsets.ahead,
            )
        self._held_back = held_back
        return tuple(self.client.assignment() - held_back) or (NOBODY,) if held_back else ()

    def _deliver(self, tp: Any, records: list[Any]) -> None:
        partition = self.reader.partition(tp)
        if (partition.offsets.next or 0) > records[0].offset:
            logger.warning("kafka: %s starts again at offset %d", tp, records[0].offset)
            partition = self.reader.restart(tp)
        self._received += len(records)
        self._inbox.put(partition.deliveries(records))

    async def _watch(self) -> None:
        """Find out what the client does not tell: its tasks may die or wait for each other."""
        stuck = unreachable = 0
        before: object = None
        while True:
            await asyncio.sleep(_WATCH)
            if self.client._fetcher.error_future.done():
                raise Stuck("its task that fetches has ended")
            if await self._is_answered():
                unreachable = 0
                now = await self._held_up()
                stuck = stuck + 1 if now is not None and now == before else 0
                before = now
            else:
                unreachable += 1
            if unreachable >= _UNREACHABLE and self._replaceable:
                raise Stuck("no broker that it knows has answered for a minute")
            if stuck >= _TOO_OFTEN:
                raise Stuck("records wait and it fetches none")

    async def _is_answered(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER):
                return bool(await connections_of(self.client).force_metadata_update())
        except TimeoutError:
            return False

    async def _held_up(self) -> object:
        """Where we stand, if somebody wants records, there are some, and none come; else None."""
        client, received = self.client, self._received
        if self._held_back or not self._inbox.wanted.is_set():
            return None
        assignment = client._subscription.subscription.assignment
        if assignment is None or client._subscription.reassignment_in_progress:
            return None
        try:
            async with asyncio.timeout(_ANSWER):
                ends = await client.end_offsets(list(assignment.tps))
        except (KafkaError, TimeoutError):
            return None
        states = {tp: assignment.state_value(tp) for tp in assignment.tps}
        at = {
            tp: state.position if state.has_valid_position else -1 for tp, state in states.items()
        }
        return (received, at) if any(at[tp] < end for tp, end in ends.items()) else None
