"""EventListener: handlers, a consumer, and the loop between them."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from dispytch.consumer import Consumer
from dispytch.errors import ConfigError, HandlerDefinitionError
from dispytch.listener.handler import Handler, Surroundings, pattern_of
from dispytch.listener.health import Health
from dispytch.listener.options import ListenerOptions, Options
from dispytch.listener.received import ListenerMiddleware
from dispytch.listener.router import Declared, Placed, Router, already
from dispytch.listener.signature import located, name_of
from dispytch.listener.work import Counts, Timers

if TYPE_CHECKING:
    from dispytch.listener.session import Session

__all__ = ["EventListener", "Override"]

_Route: TypeAlias = tuple[str, str, str]
"""A handler's name, its whole topic, and the type it handles."""


class EventListener(Router):
    """Handles events: declares handlers, receives through one consumer, and runs.

    Use `run()`, which ends with a signal; inside another application `async with listener`.

    Args:
        consumer: what receives; see `from_url` for the usual way to get one.
        options: by keyword:

            - group: listeners of one group share the events; each group gets them all. None (the
              default): this listener gets what is emitted after it subscribed.
            - dead_letter: the producer of dead letters, which the listener starts and stops. None:
              one for the consumer's broker, where the consumer knows how to reach it (not with a
              Kafka client of your own); where there is none, what can't be handled is kept,
              unacknowledged, and tried again.
            - deserializer: replaces the JSON envelope.
            - middleware: `async def mw(ctx, call_next)`, around each attempt of each handler, the
              first one outermost.
            - retry: for handlers that name none. Default: `Retry()`, three attempts.
            - unmatched: `"ack"` (the default) acknowledges and counts what no handler takes,
              `"dead_letter"` sends it to the dead-letter topic.
            - max_in_flight: handlers that run at once. Default: 100.
            - max_parked: runs that wait for an attempt, or behind others of their key, before
              intake pauses. Default: 1,000.
            - max_threads: threads for handlers that are no coroutine functions. Default: 16.
            - drain_timeout: seconds that handlers get to finish at the end. Default: 30.
            - timeout: seconds that starting, and a sign of life, may take. Default: 30.

    Raises:
        ConfigError: an argument can't work.
    """

    def __init__(self, consumer: Consumer, **options: Unpack[ListenerOptions]) -> None:
        if not isinstance(consumer, Consumer):
            raise ConfigError(
                f"expected a Consumer, got {type(consumer).__name__}; wrap a client in its "
                "backend's consumer, or use EventListener.from_url"
            )
        self.options = Options.of(options)
        super().__init__(middleware=self.options.middleware, retry=self.options.retry)
        self.consumer = consumer
        self.overrides: dict[Any, Callable[..., Any]] = {}
        self._taken: dict[_Route, Declared] = {}  # by its handlers and those of included routers
        self._session: Session | None = None
        self.counts = Counts()
        self.timers: Timers | None = None
        from dispytch import plugins  # noqa: PLC0415 - as in from_url

        plugins.announce("dispytch_listener_created", listener=self)

    @classmethod
    def from_url(cls, url: str, **options: Unpack[ListenerOptions]) -> Self:
        """A listener for the backend that serves this URL's scheme. Connects in `start`.

        Dead letters go to the same broker, through a producer of its own.

        Raises:
            ConfigError: the URL or an option is wrong; the URL's values are not repeated.
            PluginError: no installed backend serves the scheme, or its plugin can't be loaded.
        """
        from dispytch import plugins  # noqa: PLC0415 - modules that declare handlers need no URLs
        from dispytch.url import connect  # noqa: PLC0415

        backend = plugins.backend_for_url(url)
        if backend.connection is None:
            raise ConfigError(
                f"backend {backend.name!r} takes no URL; give EventListener a consumer"
            )
        connection = connect(url, backend.connection)
        consumer = backend.make_consumer(connection)
        if options.get("dead_letter") is None and consumer.dead_letter_producer() is None:
            options["dead_letter"] = backend.make_producer(connection)
        return cls(consumer, **options)

    def __repr__(self) -> str:
        state = "started" if self._session is not None else "not started"
        return f"<EventListener {self.consumer.backend} {state}>"

    # Declaring

    def add_middleware(self, middleware: ListenerMiddleware) -> None:
        """Put a middleware around all others; for tracing and the like. Before `start`."""
        self._refuse_late("add_middleware")
        self.middleware = (middleware, *self.middleware)

    def override(
        self, dependency: Callable[..., Any], replacement: Callable[..., Any]
    ) -> "Override":
        """Use `replacement` wherever handlers depend on `dependency`; for tests, before `start`.

        It holds from now on; as a context manager, until its end.
        """
        self._refuse_late("override")
        return Override(self.overrides, dependency, replacement)

    def include_router(self, router: Router) -> None:
        """Take in the handlers of a router, those declared later included; `start` checks these.

        Raises:
            ConfigError: it is no router.
            HandlerDefinitionError: one of its handlers can't work under this listener's topics.
        """
        self._refuse_late("include_router")
        super().include_router(router)
        try:
            taken = dict(self._taken)
            for placed in router.placed():
                self._check(placed)
                taken[self._free(placed, taken)] = placed.declared
        except HandlerDefinitionError:
            self.routers.pop()
            raise
        self._taken = taken

    def _refuse_late(self, what: str) -> None:
        if self._session is not None:
            raise ConfigError(f"{what} has no effect on a listener that is started; call it before")

    def _declare(self, declared: Declared) -> None:
        if self._session is not None:
            raise HandlerDefinitionError(
                f"handler {located(declared.fn)}: the listener is started; declare it before"
            )
        placed = Placed(declared, (), (), None)
        self._check(placed)
        route = self._free(placed, self._taken)
        super()._declare(declared)
        self._taken[route] = declared

    def _check(self, placed: Placed) -> None:
        placed.declared.plan(pattern_of(placed, self.consumer.topic_delimiter).names, {})

    def _free(self, placed: Placed, taken: dict[_Route, Declared]) -> _Route:
        """The route; refused where the function stands already: each event would run it twice."""
        declared = placed.declared
        topic = declared.topic_under(placed.prefixes, self.consumer.topic_delimiter)
        route = name_of(declared.fn), topic, declared.kind
        if route in taken:
            raise already(declared, taken[route], topic)
        return route

    def rebound(self, consumer: Consumer, **options: Unpack[ListenerOptions]) -> "EventListener":
        """A listener with the same handlers and overrides on another consumer; for tests.

        Args:
            consumer: what receives.
            options: those that differ.
        """
        ours: Any = {name: getattr(self.options, name) for name in self.options.__slots__}
        twin = EventListener(consumer, **(ours | options))
        twin.middleware = self.middleware
        twin.declared, twin.routers = self.declared, self.routers
        twin._routes, twin._taken = self._routes, self._taken
        twin.overrides = self.overrides
        return twin

    # Lifecycle

    async def run(self) -> None:
        """Handle events until SIGINT, SIGTERM or `stop()`, then drain.

        Raises:
            ConnectError: the broker can't be reached, or refuses us for good.
            HandlerDefinitionError, ConfigError: handlers or subscriptions can't work.
            Exception: what ended the receiving.
        """
        with _signals(self._request_stop):
            await self.start()
            session = self._session
            try:
                if session is not None:
                    await session.ended()
            finally:
                await self.stop()

    async def start(self) -> None:
        """Connect, subscribe, and begin to handle; does nothing when started.

        Raises:
            ConnectError: the broker can't be reached, or not in time.
            HandlerDefinitionError, ConfigError: handlers or subscriptions can't work.
        """
        if self._session is not None:
            self._session.check_loop()
            return
        from dispytch.listener.session import Session  # noqa: PLC0415 - to run, not to declare

        session = self._session = Session(self._handlers, self.consumer, self.options)
        session.dispatcher.counts = self.counts
        if self.timers is not None:
            session.dispatcher.timers = self.timers
        try:
            await session.start()
        except BaseException:
            self._session = None
            await session.stop()
            raise

    def _handlers(self, executor: Executor) -> list[Handler]:
        taken: dict[_Route, Declared] = {}
        for placed in self.placed():  # what routers got since they were included, too
            taken[self._free(placed, taken)] = placed.declared
        options = self.options
        around = Surroundings(
            options.group,
            self.consumer.topic_delimiter,
            options.deserializer,
            executor,
            self.overrides,
        )
        return [Handler(placed, around) for placed in self.placed()]

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call back whenever no handler runs any more and none is ready to; while started."""
        if self._session is not None:
            self._session.dispatcher.when_idle = callback

    def health(self) -> Health:
        """How it is, for a readiness probe: true where nothing is wrong."""
        if self._session is None:
            return Health(("not started",), 0, 0, 0, 0, False, self.counts)  # noqa: FBT003
        return self._session.health()

    async def stop(self) -> None:
        """Take in nothing more, let handlers finish within `drain_timeout`, settle, disconnect.

        What is not finished then is cancelled and comes again. Called by a handler, it only asks
        for this and returns.
        """
        session = self._session
        if session is None:
            return
        session.check_loop()
        if session.is_worker():
            self._request_stop()
            return
        await session.stop()
        if self._session is session:
            self._session = None

    def _request_stop(self) -> None:
        if self._session is not None:
            self._session.request_stop()

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


class Override:
    """A dependency that is replaced; as a context manager, until its end."""

    def __init__(
        self,
        overrides: dict[Any, Callable[..., Any]],
        dependency: Callable[..., Any],
        replacement: Callable[..., Any],
    ) -> None:
        for fn in (dependency, replacement):
            if not callable(fn):
                raise ConfigError(f"override takes two things that can be called, not {fn!r}")
        self._overrides, self._dependency = overrides, dependency
        self._before = overrides.get(dependency)
        overrides[dependency] = replacement

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            self._overrides.pop(self._dependency, None)
        else:
            self._overrides[self._dependency] = self._before


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGINT or SIGTERM; a second one does what it always does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def first() -> None:
        restore()
        stop()

    for number in before:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()
