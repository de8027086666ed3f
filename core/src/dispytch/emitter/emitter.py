"""EventEmitter: its lifecycle, and the way of an event from `emit` to the producer."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from dispytch.config import Given, checked, merge, own_layer
from dispytch.emitter.batch import Batch, emit_lanes
from dispytch.emitter.context import EmitContext, Middleware, chain, returned
from dispytch.emitter.deadlines import Deadlines
from dispytch.emitter.lifecycle import Lifecycle
from dispytch.emitter.observers import Observers
from dispytch.emitter.outcome import completed, deadline_passed, receipt
from dispytch.emitter.plan import Plans
from dispytch.envelope import Serializer
from dispytch.errors import (
    ConfigError,
    EmitManyError,
    EmitRejected,
)
from dispytch.event import EventBase
from dispytch.producer import Outgoing, Producer, Receipt, past_deadline

__all__ = ["EventEmitter"]

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


class EventEmitter:
    """Emits events through one producer.

    Use it as an asynchronous context manager, or call `start` and `stop`. It belongs to the event
    loop and the process it was started in.

    Args:
        producer: what sends; see `from_url` for the usual way to get one.
        config: defaults for every event: a config of this backend, or a tuple with one of it.
        serializer: replaces the JSON envelope.
        middleware: `async def mw(ctx, call_next) -> Receipt`, the first one outermost.
        timeout: seconds until an emit, hooks and middleware included, has an outcome; also the
            bound of `start`, `flush` and `stop`.

    Raises:
        ConfigError: an argument can't work.
        ConfigMismatchError: `config` is of another backend.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        config: Any = None,
        serializer: Serializer | None = None,
        middleware: Sequence[Middleware] = (),
        timeout: float = 30.0,
    ) -> None:
        _check_producer(producer)
        seconds: object = timeout
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (number and 0 < timeout < float("inf")):
            raise ConfigError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if callable(middleware):
            raise ConfigError("middleware is a list of middleware, in which one may stand alone")
        where = "EventEmitter(config=...)"
        defaults = own_layer(checked(config, where), producer.event_config, producer.backend, where)
        self._producer = producer
        self._timeout = timeout
        self._plans = Plans(producer, defaults, serializer)
        self._observers = Observers()
        self._chain = chain(middleware, self._send_context)
        self._lifecycle, self._deadlines = Lifecycle(producer, timeout), Deadlines()
        from dispytch import plugins  # noqa: PLC0415 - as in from_url

        plugins.announce("dispytch_emitter_created", emitter=self)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        config: Any = None,
        serializer: Serializer | None = None,
        middleware: Sequence[Middleware] = (),
        timeout: float = 30.0,
    ) -> Self:
        """An emitter for the backend that serves this URL's scheme. Connects in `start`.

        Raises:
            ConfigError: the URL or one of its options is wrong; its values are not repeated.
            PluginError: no installed backend serves the scheme, or its plugin can't be loaded.
        """
        from dispytch import plugins  # noqa: PLC0415 - modules that only name the class need none
        from dispytch.url import connect  # noqa: PLC0415

        backend = plugins.backend_for_url(url)
        if backend.connection is None:
            raise ConfigError(
                f"backend {backend.name!r} takes no URL; give EventEmitter a producer"
            )
        producer = backend.make_producer(connect(url, backend.connection))
        return cls(
            producer, config=config, serializer=serializer, middleware=middleware, timeout=timeout
        )

    def __repr__(self) -> str:
        state = "started" if self._lifecycle.running else "not started"
        return f"<EventEmitter {self._producer.backend} {state}>"

    @property
    def producer(self) -> Producer:
        """What sends."""
        return self._producer

    # Emitting

    async def emit(self, event: EventBase, *, config: Any = None) -> Receipt:
        """Emit one event and wait for the broker's confirmation.

        Args:
            event: the event.
            config: for this call alone; wins over the event's, its class's and the emitter's.

        Returns:
            The receipt: the broker has the event.

        Raises:
            EmitRejected: certainly not stored.
            EmitUnknown: it may have arrived; `ProducerTimeout` where the deadline passed.
            EventDefinitionError, TopicError, ConfigError, EncodeError: the event can't be sent as
                it is; nothing was sent.
            Exception: what a `before_emit` hook, a middleware or a producer of your own raised.
            asyncio.CancelledError: the task was cancelled; it may have arrived.
        """
        loop, observers, deadlines = self._running_loop(event), self._observers, self._deadlines
        at = loop.time() + self._timeout
        deadline, vetoable = deadlines.begin(loop, at), bool(observers.before)
        try:
            if vetoable:
                await observers.ask(event)
                vetoable = False
            if self._chain is None:
                emitted = await self._send(self._plans.outgoing(event, config, at))
            else:
                emitted = returned(await self._chain(self._context(event, config)))
        except BaseException as error:
            late = deadlines.end(deadline, error)
            if not late and (vetoable or not isinstance(error, Exception)):
                raise
            failure = self._completed(deadline_passed(event) if late else error, event)
            await observers.tell_failure(event, failure, at)
            if failure is error:
                raise
            raise failure from error
        deadlines.end(deadline)
        if observers.after:
            await observers.tell(observers.after, at, event, emitted)
        return emitted

    async def emit_many(self, events: Iterable[EventBase], *, config: Any = None) -> list[Receipt]:
        """Emit events together: pipelined, and in order per key.

        Sends all it can. After a failure, later events of the same key are not sent.

        Args:
            events: the events; with middleware, each goes through it on its own.
            config: as for `emit`, for each of them.

        Returns:
            A receipt per event, in the order given.

        Raises:
            EmitManyError: at least one was not accepted; `.results` has the outcome of each.
            EmitRejected: nothing was sent: the emitter is not running here.
            asyncio.CancelledError: the task was cancelled; any of them may have arrived.
        """
        if isinstance(events, EventBase):  # iterating it would give its fields
            raise ConfigError(
                "emit_many takes several events, in a list or the like; emit takes one"
            )
        given = list(events)
        if not given:
            return []
        deadline = self._running_loop(given[0]).time() + self._timeout
        results = await (
            self._emit_batch(given, config, deadline)
            if self._chain is None
            else emit_lanes(
                given,
                lambda event: self._plans.ordering_key(event, config),
                lambda event: self.emit(event, config=config),
                deadline,
            )
        )
        for event, result in zip(given, results, strict=True):
            if isinstance(result, BaseException):
                self._completed(result, event)
        receipts = [result for result in results if isinstance(result, Receipt)]
        if len(receipts) < len(results):
            raise EmitManyError(results)
        return receipts

    async def _emit_batch(
        self, events: list[EventBase], config: Given, deadline: float
    ) -> list[Receipt | BaseException]:
        observers, plans = self._observers, self._plans
        vetoes: set[int] = set()  # by identity: the hook that raised one knows

        async def encode(event: EventBase) -> Outgoing:
            try:
                await observers.ask(event)
            except Exception as veto:
                vetoes.add(id(veto))
                raise
            return plans.outgoing(event, config, deadline)

        batch = Batch(
            events, self._producer, encode, lambda event: plans.ordering_key(event, config)
        )
        with self._lifecycle:
            outcomes = await batch.send(deadline)
        results: list[Receipt | BaseException] = []
        for event, result in zip(events, outcomes, strict=True):
            results.append(deadline_passed(event) if result is None else result)
            if isinstance(results[-1], Receipt):
                await observers.tell(observers.after, deadline, event, results[-1])
            elif id(results[-1]) not in vetoes:
                failure = self._completed(results[-1], event)
                await observers.tell_failure(event, failure, deadline)
        return results

    async def _send(self, out: Outgoing) -> Receipt:
        """The one place a single event leaves by."""
        try:
            with self._lifecycle:
                details = await self._producer.send_message(out)
        except TimeoutError as error:  # the producer's own: ours arrives as a cancellation
            raise past_deadline(out) from error
        return receipt(out, details, self._producer)

    def _context(self, event: EventBase, config: Given) -> EmitContext:
        plan = self._plans.of(event)
        return EmitContext(event, plan.topic(event), plan.key(event), plan.config(event, config))

    async def _send_context(self, ctx: EmitContext) -> Receipt:
        """The end of the middleware: encodes the event as it is now, and sends it."""
        producer, plan = self._producer, self._plans.of(ctx.event)
        if ctx.headers and not producer.carries_headers:
            raise ConfigError(
                f"backend {producer.backend!r} has no headers, but a middleware set "
                f"{', '.join(sorted(ctx.headers))}"
            )
        where = "EmitContext.config"
        layer = own_layer(
            checked(ctx.config, where), producer.event_config, producer.backend, where
        )
        deadline = asyncio.get_running_loop().time() + self._timeout  # the emit's own comes first
        out = Outgoing(
            ctx.event.id,
            plan.type,
            ctx.topic,
            plan.payload(ctx.event),
            ctx.key,
            merge((layer,)),
            dict(ctx.headers),
            deadline,
        )
        return await self._send(out)

    def _running_loop(self, event: EventBase) -> asyncio.AbstractEventLoop:
        try:
            return self._lifecycle.loop()
        except EmitRejected as error:
            self._completed(error, event)
            raise

    def _completed(self, error: BaseException, event: EventBase) -> BaseException:
        return completed(error, event, self._plans.topic_of(event), self._producer)

    # Hooks

    def before_emit(self, hook: _Hook) -> _Hook:
        """Call `hook(event)` before an emit; what it raises vetoes the emit, as it is."""
        self._observers.before.append(hook)
        return hook

    def after_emit(self, hook: _Hook) -> _Hook:
        """Call `hook(event, receipt)` after an accepted emit; what it raises is only logged."""
        self._observers.after.append(hook)
        return hook

    def on_error(self, hook: _Hook) -> _Hook:
        """Call `hook(event, error)` when an emit failed; what it raises is only logged.

        A veto is no failure: the hook that raised it knows.
        """
        self._observers.error.append(hook)
        return hook

    def on_timeout(self, hook: _Hook) -> _Hook:
        """Call `hook(event)` instead of `on_error` when the deadline passed."""
        self._observers.timeout.append(hook)
        return hook

    def remove_hook(self, hook: Callable[..., Any]) -> None:
        """Take a hook back, of whatever kind; does nothing where it was not added."""
        self._observers.remove(hook)

    # Lifecycle

    async def start(self) -> None:
        """Start the producer; does nothing when started.

        Raises:
            ConnectError: the broker can't be reached, or not in time.
            ConfigError: it runs in another event loop.
        """
        await self._lifecycle.start()

    async def flush(self) -> None:
        """Wait until every emit under way has an outcome.

        Raises:
            ProducerTimeout: not within `timeout` seconds.
        """
        await self._lifecycle.flush()

    async def stop(self) -> None:
        """Refuse further emits, flush, and stop the producer; returns soon after `timeout`.

        What goes wrong is logged, not raised: each emit under way tells its own outcome.

        Raises:
            ConfigError: it runs in another event loop.
        """
        await self._lifecycle.stop()

    async def ping(self) -> None:
        """Ask the broker for a sign of life.

        Raises:
            ConnectError: there is none, or not within `timeout` seconds.
        """
        await self._lifecycle.ping()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def _check_producer(producer: Any) -> None:
    if not isinstance(producer, Producer):
        raise ConfigError(
            f"expected a Producer, got {type(producer).__name__}; wrap a client in its backend's "
            "producer, or use EventEmitter.from_url"
        )
    kind = type(producer)
    if kind.send is Producer.send and kind.send_message is Producer.send_message:
        raise ConfigError(f"{kind.__name__} must override send or send_message")
