"""Session: one listener at work, from connecting to draining."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from dispytch.consumer import Consumer, Delivery, Subscription
from dispytch.errors import ConfigError, ConnectError
from dispytch.listener.dispatcher import Dispatcher
from dispytch.listener.failure import Address, DeadLetters, Defect, address_of, unreadable
from dispytch.listener.handler import Handler
from dispytch.listener.health import Health
from dispytch.listener.options import Options
from dispytch.listener.reading import Read
from dispytch.listener.routing import Routes, Station, Target
from dispytch.listener.work import Run

__all__ = ["Session"]

logger = logging.getLogger("dispytch")

_PING_EVERY = 5.0  # seconds between two signs of life, and seconds for one
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before receiving again without a connection
_STOP_TIMEOUT = 10.0  # seconds that disconnecting may take


class Session:
    """Connects, takes deliveries in, and hands them to the dispatcher.

    Args:
        handlers: compiles the handlers, given where sync ones run.
        consumer: what receives.
        options: the listener's.
    """

    def __init__(
        self,
        handlers: Callable[[Executor], list[Handler]],
        consumer: Consumer,
        options: Options,
    ) -> None:
        self._executor = ThreadPoolExecutor(options.max_threads, "dispytch-handler")
        self._handlers = handlers(self._executor)
        if not self._handlers:
            raise ConfigError("the listener has no handlers: declare one with @listener.handler")
        self._consumer, self._options = consumer, options
        self._routes = Routes(self._handlers, options.deserializer)
        self._producer = options.dead_letter or consumer.dead_letter_producer()
        dead_letters = DeadLetters(self._producer, options.group) if self._producer else None
        self.dispatcher = Dispatcher(
            options.limits, dead_letters, consumer.delays, options.group, self._fail
        )
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self._connecting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._end = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._receiving: str | None = None  # what is wrong with it
        self._is_receiving = False
        self._silence: str | None = None

    # Lifecycle

    async def start(self) -> None:
        """Connect, subscribe, begin; does nothing more once it is asked to stop."""
        self._connecting = self._loop.create_task(self._connect(), name="dispytch-connect")
        try:
            await self._connecting
        except asyncio.CancelledError:
            if not self._end.is_set():
                raise
        if self._end.is_set():
            return
        for work in (self._intake(), self._watch()):
            task = self._loop.create_task(work, name="dispytch-listener")
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    async def _connect(self) -> None:
        options, consumer = self._options, self._consumer
        consumer.max_held = options.limits.max_held
        consumer.drain_timeout = options.drain_timeout
        scope = asyncio.timeout(options.timeout)
        try:
            async with scope:
                if self._producer is not None:
                    await self._producer.start()
                await consumer.start()
                subscriptions = self._subscriptions()
                await consumer.subscribe(subscriptions)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ConnectError(
                f"{consumer.backend}: not subscribed within {options.timeout:g} s",
                backend=consumer.backend,
            ) from error
        topics = ", ".join(each.topic for each in subscriptions)
        group = "without a group" if options.group is None else f"as {options.group!r}"
        logger.info("%s: listening to %s %s", consumer.backend, topics, group)

    def _subscriptions(self) -> Sequence[Subscription]:
        options, delimiter = self._options, self._consumer.topic_delimiter
        ordered: dict[str, bool] = {}
        for handler in self._handlers:
            topic = handler.pattern.text
            ordered[topic] = ordered.get(topic, False) or handler.ordered
        return [
            Subscription(topic, options.group, in_order, delimiter)
            for topic, in_order in ordered.items()
        ]

    async def ended(self) -> None:
        """Wait until it is asked to stop; raises what ended it otherwise."""
        await self._end.wait()
        if self._failure is not None:
            raise self._failure

    def request_stop(self) -> None:
        """Begin to drain and disconnect, and let `ended` return."""
        self._end.set()
        self.dispatcher.begin_no_more()
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop(), name="dispytch-stop")

    def is_worker(self) -> bool:
        """Whether a handler asks."""
        return asyncio.current_task() in self.dispatcher.workers

    def check_loop(self) -> None:
        """Refuse another loop than the one it was started in.

        Raises:
            ConfigError: this is another one.
        """
        if self._loop is not asyncio.get_running_loop() or self._process != os.getpid():
            raise ConfigError(
                "this listener runs in another event loop or process; start and stop it there"
            )

    async def stop(self) -> None:
        """Drain and disconnect; a second call waits for the first."""
        self.request_stop()
        assert self._stopping is not None  # noqa: S101 - for type checkers
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        tasks = [*self._tasks, *([] if self._connecting is None else [self._connecting])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if not await self.dispatcher.stop(self._options.drain_timeout):
            logger.warning(
                "handlers still ran after %g s: cancelled, their events come again",
                self._options.drain_timeout,
            )
        await self._attempt("stop", self._consumer.stop)
        if self._producer is not None:
            await self._attempt("stop of the dead-letter producer", self._producer.stop)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _attempt(self, what: str, call: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await call()
        except Exception as error:  # noqa: BLE001 - the rest must be closed too
            logger.warning("%s: %s failed: %r", self._consumer.backend, what, error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            logger.critical("the listener ended: %r", error)
        self._end.set()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    # Taking in

    async def _intake(self) -> None:
        """Receive as much as there is room for."""
        dispatcher, receive, admit = self.dispatcher, self._consumer.receive, self._admit
        pause = _PAUSE
        while True:
            room = await dispatcher.space()
            self._is_receiving = True
            try:
                deliveries = await receive(room)
            except ConnectError as error:
                if not error.retriable:
                    raise
                self._receiving, self._is_receiving = str(error), False
                logger.warning("%s; trying again", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self._receiving, pause = None, _PAUSE
            for delivery in deliveries:
                admit(delivery)

    def _admit(self, delivery: Delivery) -> None:
        """Read a delivery, and add a run for each of its handlers."""
        address = address_of(delivery.headers)
        if address.group is not None and address.group != (self._options.group or ""):
            self.dispatcher.add_done(delivery)
            return
        station = self._routes.to(delivery.topic, delivery.via)
        if station is None:
            self._add_unmatched(delivery, address, "no handler for this topic")
            return
        try:
            read = station.reader.read(delivery.payload)
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            self._add_unreadable(delivery, station, address, error)
            return
        if isinstance(read, str):
            self._add_unmatched(delivery, address, f"no handler for the type {read!r}")
            return
        targets = station.by_type[read["type"]]
        if len(targets) == 1 and not address.handlers:
            handler, segments = targets[0]
            event = handler.event(read, delivery, delivery.attempt)
            self.dispatcher.add(Run(delivery, handler, event, segments))
        else:
            self._add_each(delivery, address, targets, read)

    def _add_each(
        self,
        delivery: Delivery,
        address: Address,
        targets: tuple[Target, ...],
        read: Read | None,
    ) -> None:
        """A run for each handler, with a body of its own; none: it is only acknowledged.

        What was read fits the first of them; None: not even that one could read it.
        """
        reader = targets[0].handler.reader
        targets, missing = self._addressed(delivery, address, targets)
        delivery.left = (len(targets) + len(missing)) or 1
        for handler, segments in targets:
            event = defect = None
            try:
                if read is not None and handler.reader is reader:
                    event, read = handler.event(read, delivery, delivery.attempt), None
                else:
                    event = handler.again(delivery, delivery.attempt)
            except Exception as error:  # noqa: BLE001 - as in `_admit`
                defect = unreadable(error, handler.name)
            self.dispatcher.add(Run(delivery, handler, event, segments, defect))
        for name in missing:
            defect = Defect(
                f"addressed to the handler {name}, which does not handle it", handler=name
            )
            self.dispatcher.add(Run(delivery, None, None, {}, defect))
        if not targets and not missing:
            self.dispatcher.add_done(delivery)

    def _add_unreadable(
        self, delivery: Delivery, station: Station, address: Address, error: Exception
    ) -> None:
        """Bytes that are no event, or an event that not all its handlers can read."""
        kind = station.reader.kind_of(delivery.payload)
        targets = station.by_type.get(kind or "", ())
        if targets:
            self._add_each(delivery, address, targets, None)
        else:
            self.dispatcher.add(Run(delivery, None, None, {}, unreadable(error)))

    def _add_unmatched(self, delivery: Delivery, address: Address, reason: str) -> None:
        self.dispatcher.counts.unmatched += 1
        is_ours = bool(address.handlers) and delivery.via is None  # and must not vanish
        if self._options.unmatched == "ack" and not is_ours:
            logger.debug("%s: %s, acknowledged", delivery.topic, reason)
            self.dispatcher.add_done(delivery)
        else:
            self.dispatcher.add(Run(delivery, None, None, {}, Defect(reason)))

    def _addressed(
        self, delivery: Delivery, address: Address, targets: tuple[Target, ...]
    ) -> tuple[tuple[Target, ...], Sequence[str]]:
        """Those that are to run, and names of handlers that no longer handle this."""
        wanted = address.handlers
        if not wanted:
            return targets, ()
        found = tuple(target for target in targets if target.handler.name in wanted)
        # Of what is subscribed to twice, another copy may be for the others.
        known = {
            handler.name
            for handler in self._handlers
            if handler.kind == targets[0].handler.kind
            and handler.pattern.match(delivery.topic) is not None
        }
        return found, [name for name in wanted if name not in known]

    # Health

    async def _watch(self) -> None:
        """Ask the broker for a sign of life, now and then."""
        while True:
            await asyncio.sleep(_PING_EVERY)
            try:
                async with asyncio.timeout(_PING_EVERY):
                    await self._consumer.ping()
            except Exception as error:  # noqa: BLE001 - whatever it is, there was no sign
                told = str(error) or f"no answer within {_PING_EVERY:g} s"
                if self._silence is None:
                    logger.warning("%s: %s", self._consumer.backend, told)
                self._silence = told
            else:
                self._silence = None
                if self._is_receiving:  # it waits for messages again
                    self._receiving = None

    def health(self) -> Health:
        """How it is."""
        dispatcher = self.dispatcher
        problems = [self._receiving, self._silence, dispatcher.problem]
        if self._failure is not None:
            problems.append(f"ended: {self._failure!r}")
        elif self._end.is_set():
            problems.append("stopping")
        elif not self._tasks:
            problems.append("starting")
        if dispatcher.full:
            problems.append(
                f"intake is paused: {dispatcher.waiting} events wait for their next attempt or "
                f"behind others of their key, max_parked is {self._options.max_parked}"
            )
        return Health(
            tuple(problem for problem in problems if problem),
            dispatcher.running,
            dispatcher.ready,
            dispatcher.waiting,
            dispatcher.parked,
            not dispatcher.full,
            dispatcher.counts,
        )
