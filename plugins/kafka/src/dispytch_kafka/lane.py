"""Lane: events for one partition, on their way in batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from dispytch import EmitError, Outgoing
from dispytch.producer import Outcome, past_deadline
from dispytch_kafka.client import HANDOVER_MARGIN, append, not_handed_over
from dispytch_kafka.errors import Fate, as_rejected, fate_of, outcome_of
from dispytch_kafka.link import Link
from dispytch_kafka.record import Record, details_of

__all__ = ["Entry", "Lane"]


@dataclass(slots=True, eq=False)
class Entry:
    """An event in a lane.

    Attributes:
        out: the event.
        record: what of it goes out.
        alone: whether it is to have a batch of its own.
    """

    out: Outgoing
    record: Record
    alone: bool = field(default=False, init=False)

    def is_over(self) -> bool:
        """Whether it need not be sent any more."""
        raise NotImplementedError

    def settle(self, outcome: Outcome) -> None:
        """Take its outcome."""
        raise NotImplementedError


E = TypeVar("E", bound=Entry)


class Lane(Generic[E]):
    """The events for one partition, on their way in batches, the next after the last's outcome.

    Kafka stores a batch or refuses it as a whole. If it refuses one for one of its records, each of
    its events is sent alone: none was stored.

    Args:
        link: the client.
        topic: where to.
        partition: where to.
        entries: the first events; more may come.
    """

    def __init__(self, link: Link, topic: str, partition: int, entries: Iterable[E]) -> None:
        self._link = link
        self._topic, self._partition = topic, partition
        self._waiting = deque(entries)
        self._group: list[E] = []  # those in the batch under way
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._scope = asyncio.timeout(None)  # of the batch under way

    @property
    def entries(self) -> list[E]:
        """Those without an outcome."""
        return [*self._group, *self._waiting]

    def add(self, entry: E) -> None:
        """Have an event sent after the others."""
        self._waiting.append(entry)
        if self._timer is None:
            self._watch()

    async def run(self) -> None:
        """Give every event its outcome."""
        self._watch()
        try:
            while (first := self._first()) is not None:
                self._group = [self._waiting.popleft()]
                await self._send_next(first.out.deadline)
        except BaseException as error:
            cause = error
            self._settle(lambda out: outcome_of(cause, out.topic))
            self._group = [*self._waiting]
            self._settle(lambda out: as_rejected(cause, out.topic))
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _watch(self) -> None:
        """Refuse who waits too long, also while a batch is under way."""
        first, self._timer = self._first(), None
        if first is not None:
            limit = first.out.deadline - HANDOVER_MARGIN
            self._timer = self._loop.call_at(limit, self._watch)

    def _first(self) -> E | None:
        """The first that is still to be sent; those before it have their outcome."""
        waiting, begun = self._waiting, self._loop.time() + HANDOVER_MARGIN
        while waiting:
            entry = waiting[0]
            if not entry.is_over():
                if entry.out.deadline > begun:
                    return entry
                entry.settle(not_handed_over(self._topic))
            waiting.popleft()
        return None

    async def _send_next(self, deadline: float) -> None:
        """Send one batch; its events get their outcome, or go back to be sent otherwise."""
        self._scope = scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                stored = await self._link.deliver(self._queue, self._topic, deadline)
        except TimeoutError:
            if not scope.expired():
                raise
            self._settle(past_deadline)
        except EmitError as error:
            if isinstance(error.__cause__, TimeoutError):  # the first one's: others have more time
                self._put_back()
                return
            told = error  # one error per event: each will name its own
            self._settle(lambda _: type(told)(str(told), retriable=told.retriable))
        except KafkaError as error:
            if fate_of(error) is Fate.RECORD and len(self._group) > 1:
                for entry in self._group:
                    entry.alone = True
                self._put_back()
                return
            problem = error
            self._settle(lambda out: outcome_of(problem, out.topic))
        else:
            for position, entry in enumerate(self._group):
                entry.settle(details_of(stored, entry.record, position))
            self._group = []

    async def _queue(self, client: Any) -> asyncio.Future[Any]:
        """Put as many of the waiting as fit, or are to go, into a batch and queue it."""
        self._put_back()
        builder, group = client.create_batch(), self._group
        while (entry := self._first()) is not None:
            if group and (entry.alone or group[0].alone):
                break
            if not append(builder, entry.record):
                break
            group.append(self._waiting.popleft())
        self._scope.reschedule(max((entry.out.deadline for entry in group), default=0))
        return await self._link.queue_batch(client, builder, self._topic, self._partition)

    def _put_back(self) -> None:
        self._waiting.extendleft(reversed(self._group))
        self._group = []

    def _settle(self, error_of: Callable[[Outgoing], BaseException]) -> None:
        for entry in self._group:
            entry.settle(error_of(entry.out))
        self._group = []
