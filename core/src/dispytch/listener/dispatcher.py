"""Dispatcher: runs handlers side by side, parks what waits, and settles what is finished.

An event becomes one *run* per handler. A run goes through its lane, so that events of one key pass
one by one, and is taken by one of at most `max_in_flight` workers. A run that waits for its next
attempt is parked: it keeps its lane, and gives its worker back.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, cast

from dispytch.consumer import Delivery
from dispytch.errors import DecodeError
from dispytch.listener.failure import DeadLetters, Defect, addressed, described, unreadable
from dispytch.listener.outcome import DeadLetter, Drop, Outcome, RetryLater
from dispytch.listener.reading import head_of
from dispytch.listener.work import Counts, Limits, Run, Timers

__all__ = ["Dispatcher"]

logger = logging.getLogger("dispytch")

_BURIAL_BASE, _BURIAL_CAP = 0.5, 30.0  # seconds between attempts to reach the dead-letter topic
_CANCELLED_DELAY = 1.0  # seconds until an event comes again whose handler was cancelled from within


class Dispatcher:
    """Takes runs, and runs them.

    Args:
        limits: how many at once.
        dead_letters: where goes what can't be handled; None: nowhere, it is kept and tried again.
        broker_delays: whether `nack(delay)` is the broker's to wait.
        group: the listener's group.
        fail: told of what ends the listener.
    """

    def __init__(
        self,
        limits: Limits,
        dead_letters: DeadLetters | None,
        broker_delays: bool,  # noqa: FBT001
        group: str | None,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._limits, self._dead_letters = limits, dead_letters
        self._broker_delays, self._group, self._fail = broker_delays, group, fail
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self.timers = cast("Timers", self._loop)
        self._ready: deque[Run] = deque()
        self._low = limits.max_in_flight // 2  # where more is taken in
        self._coming = 0  # workers that were woken or begun, and had no turn yet
        self._idle: list[asyncio.Future[None]] = []
        self.workers: set[asyncio.Task[None]] = set()
        self._parked: dict[Run, Any] = {}
        self._space: asyncio.Future[None] | None = None
        self._stopping = False
        self.counts = Counts()
        self.running = 0
        self.waiting = 0
        self.problem: str | None = None
        self.when_idle: Callable[[], None] = lambda: None

    # Taking runs in

    async def space(self) -> int:
        """Wait until there is room, and tell for how many deliveries."""
        while not self._has_space():
            self._space = self._loop.create_future()
            await self._space
        return max(1, self._limits.capacity - self.running - len(self._ready))

    @property
    def full(self) -> bool:
        """Whether so much waits that intake pauses."""
        return self.waiting >= self._limits.max_parked

    @property
    def ready(self) -> int:
        """How many could run at once."""
        return len(self._ready)

    @property
    def parked(self) -> int:
        """How many wait for their next attempt."""
        return len(self._parked)

    def add(self, run: Run) -> None:
        """Run it as soon as its lane is free."""
        if run.lane is not None and not run.handler.lanes.enter(run.lane, run):
            self.waiting += 1
            return
        self._ready.append(run)
        if not self._coming:  # the one that comes will see it too
            self._wake()

    def add_done(self, delivery: Delivery) -> None:
        """Only settle it."""
        self._enqueue(Run(delivery, None, None, {}))

    def _enqueue(self, run: Run) -> None:
        self._ready.append(run)
        if not self._coming:
            self._wake()

    def _has_space(self) -> bool:
        return len(self._ready) <= self._low and not self.full

    def _tell_space(self) -> None:
        if self._space is not None and not self._space.done() and self._has_space():
            self._space.set_result(None)

    def _wake(self) -> None:
        """Have one more worker come, where there may be one more."""
        while self._idle:
            sleeper = self._idle.pop()
            if not sleeper.done():
                self._coming += 1
                sleeper.set_result(None)
                return
        if len(self.workers) < self._limits.max_in_flight:
            worker = self._loop.create_task(
                self._work(), name="dispytch-worker", context=self._context.copy()
            )
            self._coming += 1
            self.workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _arrive(self) -> None:
        """A worker is here. Where there is work for others too, two more come.

        So a burst has all of them soon, and handlers that never wait keep a single one busy.
        """
        self._coming = max(0, self._coming - 1)
        for _ in range(min(2, len(self._ready) - 1)):
            self._wake()

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self.workers.discard(worker)
        if worker.cancelled():
            self._coming = 0  # it may have been one of them; a wake too many does no harm
        error = None if worker.cancelled() else worker.exception()
        if error is not None:
            self._fail(error)
        elif self._ready and not self._stopping:
            self._wake()
        elif not self.running:
            self.when_idle()

    # Running

    async def _work(self) -> None:  # noqa: PLR0912 - one loop that shows what can happen
        ready, context, task = self._ready, self._context, asyncio.current_task()
        assert task is not None  # noqa: S101 - for type checkers
        self._arrive()
        while not self._stopping:
            if not ready:
                await self._sleep()
                continue
            run = ready.popleft()
            if self._space is not None and len(ready) <= self._low:
                self._tell_space()
            delivery = run.delivery
            if delivery.lost:  # it comes again, perhaps to another process
                self._leave_lane(run)
                continue
            self.running += 1
            delivery.running += 1
            try:
                if run.defect is not None:
                    await self._bury(run)
                elif run.handler is None:  # there is nothing to run
                    await self._finish(run.delivery)
                else:
                    result = await run.handler.invoke(run.event, run.segments)
                    if task.cancelling():  # whatever the handler made of that
                        raise asyncio.CancelledError  # noqa: TRY301
                    if result is not None:
                        await self._decide(run, result)
                    else:
                        self.counts.handled += 1
                        self._leave_lane(run)
                        await self._finish(run.delivery)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is its failure
                if task.cancelling():
                    self._cancelled(run)
                    return
                await self._failed(run, error)
            except asyncio.CancelledError:
                self._cancelled(run)
                if task.cancelling():
                    raise
            finally:
                self.running -= 1
                delivery.running -= 1
            if copy_context() != context:  # the next event must not see what this one's handler set
                return

    async def _sleep(self) -> None:
        sleeper = self._loop.create_future()
        self._idle.append(sleeper)
        if not self.running:
            self.when_idle()
        await sleeper
        self._arrive()

    async def _decide(self, run: Run, result: Any) -> None:
        """Do what the handler returned; anything but an outcome is its own business."""
        match result:
            case RetryLater(delay):
                self._again(run, delay)
            case DeadLetter(reason):
                run.defect = Defect(reason, None, run.attempt, _name(run))
                await self._bury(run)
                return
            case _:
                if isinstance(result, type) and issubclass(result, Outcome):
                    raise TypeError(
                        f"the handler returned the class {result.__name__}; "
                        f"return {result.__name__}()"
                    )
                if isinstance(result, Drop):
                    self.counts.dropped += 1
                else:
                    self.counts.handled += 1
                self._leave_lane(run)
        await self._finish(run.delivery)

    def _leave_lane(self, run: Run) -> None:
        """Let the next one of the lane go."""
        if run.lane is None:
            return
        following = run.handler.lanes.leave(run.lane)
        run.lane = None
        if following is not None:
            self.waiting -= 1
            self._enqueue(following)
            self._tell_space()

    # Failing

    def _cancelled(self, run: Run) -> None:
        """Nothing is settled; where it was not we who cancelled it, it comes again here."""
        if not self._stopping:
            self.counts.failed += 1
            logger.warning("%s: cancelled from within; its event is kept", _name(run))
            self._park(run, _CANCELLED_DELAY, self._attempt_again)

    async def _failed(self, run: Run, error: Exception) -> None:
        self.counts.failed += 1
        run.failures += 1
        retry = run.handler.retry
        hopeless = isinstance(error, DecodeError) or not isinstance(error, retry.on)
        if not hopeless and run.failures < retry.attempts:
            logger.warning(
                "%s: attempt %d of %d failed: %s",
                _name(run),
                run.failures,
                retry.attempts,
                described(error),
            )
            self._park(run, retry.wait(run.failures), self._attempt_again)
            return
        times = "once" if run.failures == 1 else f"{run.failures} times"
        reason = f"failed {times}: {described(error)}"
        run.defect = Defect(reason, error, run.attempt, _name(run))
        await self._bury(run)

    async def _bury(self, run: Run) -> None:
        """Dead-letter it; where that fails, it is kept and the dead-letter topic tried again."""
        delivery = run.delivery
        event_id, kind = (
            head_of(delivery.payload) if run.event is None else (run.event.id, run.event.type)
        )
        try:
            if self._dead_letters is None:
                raise RuntimeError("the listener has no dead-letter producer")  # noqa: TRY301
            await self._dead_letters.send(delivery, run.defect, event_id, kind)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not there
            self.problem = f"dead letters can't be sent: {described(error)}"
            logger.error("%s: %s; the event is kept", _name(run), self.problem)  # noqa: TRY400
            wait = min(_BURIAL_CAP, _BURIAL_BASE * 2.0 ** min(run.burials, 60))
            run.burials += 1
            self._park(run, wait, self._enqueue)
            return
        if not any(parked.burials for parked in self._parked):
            self.problem = None
        self.counts.dead_lettered += 1
        self._leave_lane(run)
        await self._finish(run.delivery)

    # Waiting

    def _park(self, run: Run, delay: float, then: Callable[[Run], None]) -> None:
        if self._stopping:
            return  # not settled: it comes again
        self.waiting += 1
        self._parked[run] = self.timers.call_later(delay, self._due(then), run)

    def _due(self, then: Callable[[Run], None]) -> Callable[[Run], None]:
        def due(run: Run) -> None:
            if self._parked.pop(run, None) is not None:
                self.waiting -= 1
                then(run)
                self._tell_space()

        return due

    def _attempt_again(self, run: Run) -> None:
        if run.defect is None:
            run.attempt += 1
            try:
                run.event = run.handler.again(run.delivery, run.attempt)
            except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
                run.defect = unreadable(error, _name(run), run.attempt)
        self._enqueue(run)

    def _again(self, run: Run, delay: float) -> None:
        """The handler wants it later, out of order: the broker waits, or we do."""
        self._leave_lane(run)
        if self._broker_delays:
            run.delivery.later += ((_name(run), delay),)
            return
        run.failures = 0
        run.delivery.left += 1  # the `_finish` that follows does not finish this one
        self._park(run, delay, self._attempt_again)

    # Settling

    async def _finish(self, delivery: Delivery) -> None:
        """One of its runs is finished; settle the delivery with the last one."""
        delivery.left -= 1
        if delivery.left > 0:
            return
        try:
            if later := delivery.later:
                delivery.left, delivery.later = 1, ()  # it may be what comes again
                names = [name for name, _ in later]
                delivery.headers = addressed(delivery.headers, self._group, names)
                await delivery.nack(max(delay for _, delay in later))
            else:
                await delivery.ack()
        except Exception as error:  # noqa: BLE001 - not the handler's failure, and not its to retry
            self.counts.unsettled += 1
            logger.warning("an event of %s could not be settled: %r", delivery.topic, error)

    # Stopping

    def begin_no_more(self) -> None:
        """Begin no run any more; those under way go on."""
        self._stopping = True
        self._ready.clear()

    async def stop(self, timeout: float) -> bool:
        """Begin nothing more, let what runs finish within `timeout` seconds, then cancel it.

        Returns:
            Whether all that ran finished.
        """
        self.begin_no_more()
        for timer in self._parked.values():
            timer.cancel()
        self._parked.clear()
        for sleeper in self._idle:
            sleeper.cancel()
        workers = set(self.workers)
        unfinished: set[asyncio.Task[None]] = set()
        if workers:
            _, unfinished = await asyncio.wait(workers, timeout=timeout)
        for worker in unfinished:
            worker.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=1.0)
        return not unfinished


def _name(run: Run) -> str:
    return "" if run.handler is None else run.handler.name
