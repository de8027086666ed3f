"""What `emit_many` does: one batch through the producer, or keys side by side."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from copy import copy
from typing import Generic, TypeAlias, TypeVar

from dispytch.emitter.observers import GRACE
from dispytch.emitter.outcome import deadline_passed, receipt
from dispytch.errors import EmitUnknown
from dispytch.event import EventBase
from dispytch.producer import Outgoing, Producer, Receipt, held_back, past_deadline, too_late

__all__ = ["Batch", "Result", "emit_lanes"]

logger = logging.getLogger("dispytch")

Result: TypeAlias = Receipt | BaseException
_T = TypeVar("_T")


class Batch(Generic[_T]):
    """Events on their way together, in whatever form they come.

    Args:
        events: the events.
        producer: what sends them.
        encode: makes one ready to be sent; what it raises is that event's outcome.
        key_of: what an event that could not be encoded would have stayed in order with, or None.
    """

    def __init__(
        self,
        events: Sequence[_T],
        producer: Producer,
        encode: Callable[[_T], Awaitable[Outgoing]],
        key_of: Callable[[_T], Hashable | None],
    ) -> None:
        self._events, self._producer = events, producer
        self._encode_one, self._key_of = encode, key_of
        self._results: dict[int, Result] = {}

    async def send(self, deadline: float) -> list[Result | None]:
        """Hand over all that can be sent at once; a result per event, in order.

        None stands for an event whose outcome was still open after the deadline.
        """
        ready: dict[int, Outgoing] | None = None
        scope = asyncio.timeout_at(deadline + GRACE)
        try:
            async with scope:
                ready = await self._encode()
                await self._hand_over(ready)
        except Exception as error:  # noqa: BLE001 - the producer's: each open event met it
            if not scope.expired():
                for index, out in (ready or {}).items():
                    own = past_deadline(out) if isinstance(error, TimeoutError) else copy(error)
                    self._results.setdefault(index, own)
        if scope.expired():
            logger.warning("%s: a batch outlived its deadline", self._producer.backend)
        if ready is None:
            for index in range(len(self._events)):
                self._results.setdefault(index, too_late())
        return [self._results.get(index) for index in range(len(self._events))]

    async def _hand_over(self, ready: dict[int, Outgoing]) -> None:
        outcomes = await self._producer.send_messages(list(ready.values()))
        if len(outcomes) != len(ready):
            raise EmitUnknown(
                f"the producer gave {len(outcomes)} outcomes for {len(ready)} events: which are "
                "stored can't be told"
            )
        for (index, out), outcome in zip(ready.items(), outcomes, strict=True):
            self._results[index] = (
                outcome
                if isinstance(outcome, BaseException)
                else receipt(out, outcome, self._producer)
            )

    async def _encode(self) -> dict[int, Outgoing]:
        """What can be sent, by position; the errors of the others are results already."""
        ready: dict[int, Outgoing] = {}
        failed: set[Hashable] = set()
        for index, event in enumerate(self._events):
            try:
                out = await self._encode_one(event)
                key = self._producer.ordering_key(out)
            except Exception as error:  # noqa: BLE001 - it is this event's outcome
                self._results[index] = error
                failed.add(self._key_of(event))
                continue
            if key is not None and key in failed:
                self._results[index] = held_back(key)
            else:
                ready[index] = out
        return ready


async def emit_lanes(
    events: Sequence[EventBase],
    key_of: Callable[[EventBase], Hashable | None],
    emit: Callable[[EventBase], Awaitable[Receipt]],
    deadline: float,
) -> list[Result]:
    """Emit one by one within a key and keys side by side; keyless events are one lane.

    For emitters with middleware, which may wait for anything between two events. All of them
    share one deadline, after which nothing more is begun.
    """
    clock = asyncio.get_running_loop().time
    results: dict[int, Result] = {}
    lanes: dict[Hashable, list[int]] = {}
    for index, event in enumerate(events):
        lanes.setdefault(key_of(event), []).append(index)

    async def run(key: Hashable, lane: list[int]) -> None:
        failed = False
        for index in lane:
            if failed and key is not None:
                results[index] = held_back(key)
                continue
            if clock() >= deadline:
                results[index], failed = too_late(), True
                continue
            scope = asyncio.timeout_at(deadline + GRACE)  # its own deadline may be much later
            try:
                async with scope:
                    results[index] = await emit(events[index])
            except Exception as error:  # noqa: BLE001 - it is this event's outcome
                expired = scope.expired() and isinstance(error, TimeoutError)
                results[index] = deadline_passed(events[index]) if expired else error
                failed = True

    async with asyncio.TaskGroup() as group:
        for key, lane in lanes.items():
            group.create_task(run(key, lane))
    return [results[index] for index in range(len(events))]
