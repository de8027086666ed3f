"""Lifecycle: where and when an emitter may emit, and how it starts, flushes and stops."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from types import TracebackType

from dispytch.emitter.observers import GRACE
from dispytch.errors import ConfigError, ConnectError, EmitRejected, ProducerTimeout
from dispytch.producer import Producer

__all__ = ["Lifecycle"]

logger = logging.getLogger("dispytch")


class Lifecycle:
    """Starts and stops a producer, within bounds, and knows what is under way.

    As a context manager it counts one send, or one batch, as under way.

    Args:
        producer: what is started and stopped.
        timeout: seconds that each of `start`, `flush`, `ping` and `stop` may take.
    """

    def __init__(self, producer: Producer, timeout: float) -> None:
        self._producer, self._timeout = producer, timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._under_way = 0
        self._bind(None)

    @property
    def running(self) -> bool:
        """Whether the producer is started."""
        return self._loop is not None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop this runs in, which must be the one that asks.

        Raises:
            EmitRejected: not started, stopped, or of another loop or process.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop and self._process == os.getpid():
            return loop
        problem = (
            "is not running: use `async with emitter`, or start it first and stop it last"
            if self._loop is None
            else "belongs to another event loop or process; make one where you emit"
        )
        raise EmitRejected(f"this emitter {problem}")

    def __enter__(self) -> None:
        self._under_way += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    def _bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Make what waits anew for another loop: asyncio's locks belong to one."""
        self._bound = loop
        self._changing, self._idle = asyncio.Lock(), asyncio.Event()

    async def start(self) -> None:
        """Start the producer; does nothing when started."""
        if not self._here() and self._bound is not asyncio.get_running_loop():
            self._bind(asyncio.get_running_loop())
        async with self._changing:
            if self._here():
                return
            try:
                await self._within(self._producer.start, self._unreachable("not connected"))
            except BaseException:
                await self._attempt("stop", self._producer.stop, GRACE)
                raise
            self._loop, self._process = asyncio.get_running_loop(), os.getpid()

    async def flush(self) -> None:
        """Wait until all that is under way has an outcome."""
        late = ProducerTimeout(
            f"not everything was confirmed within {self._timeout} s",
            backend=self._producer.backend,
            retriable=True,
        )
        await self._within(self._drain, late)

    async def ping(self) -> None:
        """Ask the broker for a sign of life."""
        await self._within(self._producer.ping, self._unreachable("no answer"))

    async def stop(self) -> None:
        """Refuse what comes, wait for what is under way, and stop the producer."""
        if not self._changing.locked() and not self._here():
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        self._loop = None
        async with self._changing:
            self._loop = None  # a start that was under way has ended meanwhile
            try:
                await self._attempt("flush", self._drain, self._timeout)
            finally:  # cancelled while it flushes, it still closes what is open
                await self._attempt("stop", self._producer.stop, max(deadline - clock(), GRACE))

    def _here(self) -> bool:
        """Whether this runs, in this loop and process; what a dead loop or a fork left does not.

        Raises:
            ConfigError: it runs in another loop, which alone can start or stop it.
        """
        if self._loop is None or self._loop.is_closed() or self._process != os.getpid():
            return False
        if self._loop is not asyncio.get_running_loop():
            raise ConfigError("this emitter runs in another event loop; start and stop it there")
        return True

    async def _drain(self) -> None:
        await self._producer.flush()  # first: it knows of a broker that is gone
        self._idle.clear()
        if self._under_way:
            await self._idle.wait()

    def _unreachable(self, problem: str) -> ConnectError:
        backend = self._producer.backend
        return ConnectError(f"{backend}: {problem} within {self._timeout} s", backend=backend)

    async def _within(self, call: Callable[[], Awaitable[None]], late: Exception) -> None:
        """Run `call`; raise `late` when it does not return in time, else what it raises."""
        scope = asyncio.timeout(self._timeout)
        try:
            async with scope:
                await call()
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise late from error

    async def _attempt(
        self, what: str, call: Callable[[], Awaitable[None]], seconds: float
    ) -> None:
        """Run `call` as far as it goes: it may hang, fail, or be cancelled from within."""

        async def run() -> None:
            await call()

        task = asyncio.ensure_future(run())
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        finally:
            task.cancel()
        what = f"{self._producer.backend}: {what}"
        if not done:
            logger.warning("%s gave up after %.1f s", what, seconds)
        elif task.cancelled():
            logger.warning("%s was cancelled from within", what)
        elif (failure := task.exception()) is not None:
            logger.warning("%s failed: %r", what, failure)
