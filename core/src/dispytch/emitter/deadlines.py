"""Deadlines: end what an emitter is late with, with one timer for all of it.

All emits of an emitter have the same time, so the first to begin is the first to be late. A timer
for each of them, as `asyncio.timeout` has, costs as much as encoding an event.
"""

import asyncio
from typing import Any

__all__ = ["Deadline", "Deadlines"]


class Deadline:
    """When the task that began it is late. Made by `Deadlines.begin`.

    Attributes:
        at: on the loop's clock.
    """

    __slots__ = ("_cancelling", "_expired", "_task", "at")

    def __init__(self, task: "asyncio.Task[Any]", at: float) -> None:
        self._task, self.at = task, at
        self._cancelling = task.cancelling()  # by others, before
        self._expired = False

    def expire(self) -> None:
        """It has come: cancel what the task waits for."""
        self._expired = True
        self._task.cancel()

    def has_ended(self, error: BaseException | None) -> bool:
        """Whether it is what this error comes from, and nobody else has cancelled the task."""
        return (
            self._expired
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        )


class Deadlines:
    """The deadlines of one emitter, in the order in which they began."""

    def __init__(self) -> None:
        self._pending: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, at: float) -> Deadline:
        """Cancel the current task at that time, unless it has come to the end by then.

        Raises:
            RuntimeError: no task runs.
        """
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("emit needs a task to run in")
        if loop is not self._loop:  # an emitter can be started again in another one
            self._loop, self._timer = loop, None
            self._pending.clear()
        deadline = Deadline(task, at)
        self._pending[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(at, self._end_late, loop)
        return deadline

    def end(self, deadline: Deadline, error: BaseException | None = None) -> bool:
        """It has come to the end, where need be with an error; to be called once.

        Returns:
            Whether being late is what the error comes from.
        """
        self._pending.pop(deadline, None)
        return deadline.has_ended(error)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        late: list[Deadline] = []
        for deadline in self._pending:
            if deadline.at > now:
                self._timer = loop.call_at(deadline.at, self._end_late, loop)
                break
            late.append(deadline)
        for deadline in late:
            del self._pending[deadline]
            deadline.expire()
