"""Supervisor: worker processes, started again when they die, and drained at the end."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["KILLED", "Supervisor", "delay_after"]

logger = logging.getLogger("dispytch")

KILLED = 3
"""Exit status: handlers did not finish in time and were killed."""

ERROR, USAGE = 1, 2

_STEADY = 10.0  # seconds after which a death is not taken for the last one's consequence
_BASE, _CAP = 0.5, 30.0  # seconds until a worker that died at once is started again
_LOOK_EVERY = 0.5  # seconds between two looks at the files


class Supervisor:
    """Keeps worker processes running until SIGTERM or SIGINT.

    A worker's standard input is one end of a socket: it says there how many seconds its handlers
    get at the end, and sees there when the supervisor is gone, which ends it too. Workers are in
    process groups of their own, so that Ctrl-C reaches them once, from here.

    Args:
        command: starts a worker.
        workers: how many.
        watched: workers start again when a Python file under this directory changes; one that
            failed waits for that.
        grace: seconds beyond the drain timeout until a worker is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        *,
        watched: Path | None = None,
        grace: float = 15.0,
    ) -> None:
        self._command, self._workers = command, workers
        self._watched, self._grace = watched, grace
        self._halt = asyncio.Event()  # set: workers of now shall end; a reload makes a new one
        self._at_once = asyncio.Event()
        self._stopping = False

    async def run(self) -> int:
        """Run until it is told to stop, or all workers ended.

        Returns:
            The exit status: 0 all ended in order, 1 one by an error, 2 one was called wrongly (all
            are ended then), 3 one had to be killed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        watch = loop.create_task(self._watch(self._watched)) if self._watched else None
        try:
            codes = await asyncio.gather(*(self._keep(n + 1) for n in range(self._workers)))
        finally:
            if watch is not None:
                watch.cancel()
        for status in (KILLED, USAGE):
            if status in codes:
                return status
        return ERROR if any(code not in {0, -signal.SIGTERM} for code in codes) else 0

    def _signalled(self) -> None:
        if self._stopping:
            self._at_once.set()
        else:
            logger.info("stopping: %d worker(s) finish what they have begun", self._workers)
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._halt.set()

    # One worker

    async def _keep(self, number: int) -> int:
        """Run a worker, again and again; the status of the last one."""
        clock, deaths = asyncio.get_running_loop().time, 0
        while True:
            halt, began = self._halt, clock()
            code = await self._once(number, halt)
            if self._stopping:
                return code
            if halt.is_set():
                continue
            if self._watched is not None:
                logger.warning("worker %d %s; waiting for a change", number, _told(code))
                await halt.wait()
            elif code == 0:
                logger.info("worker %d ended by itself", number)
                return code
            elif code == USAGE:
                self._stop()
                return code
            else:
                deaths = 1 if clock() - began >= _STEADY else deaths + 1
                delay = delay_after(deaths)
                logger.error(
                    "worker %d %s; starting it again%s",
                    number, _told(code), f" in {delay:g} s" if delay else "",
                )  # fmt: skip
                await _wait(halt, delay)
            if self._stopping:
                return code

    async def _once(self, number: int, halt: asyncio.Event) -> int:
        """Run a worker until it ends or shall end; its status, KILLED if it had to be."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=theirs.fileno(), process_group=0
                )
            logger.info("worker %d started: process %d", number, process.pid)
            ended = asyncio.create_task(process.wait())
            try:
                await _first(ended, halt)
                if not ended.done():
                    _unless_gone(process.terminate)
                    await _first(ended, self._at_once, self._grace + _drain_timeout(ours))
                if not ended.done():
                    _unless_gone(process.kill)
                    await ended
                    logger.error("worker %d did not end in time: killed", number)
                    return KILLED
                return ended.result()
            finally:
                if not ended.done():  # this task was cancelled
                    _unless_gone(process.kill)

    # Files

    async def _watch(self, directory: Path) -> None:
        seen = await asyncio.to_thread(_times, directory)
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now = await asyncio.to_thread(_times, directory)
            changed = sorted(
                path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)
            )
            seen = now
            if changed and not self._stopping:
                logger.info("%s changed: starting again", ", ".join(changed))
                halt, self._halt = self._halt, asyncio.Event()
                halt.set()


def _unless_gone(send: Callable[[], None]) -> None:
    """Send a signal; a process that has ended at this moment needs none."""
    with suppress(ProcessLookupError):
        send()


def delay_after(deaths: int) -> float:
    """Seconds until a worker is started again, after so many deaths one right after the other."""
    return 0.0 if deaths == 1 else min(_CAP, _BASE * 2.0 ** min(deaths - 2, 60))


async def _first(
    ended: "asyncio.Task[int]", event: asyncio.Event, timeout: float | None = None
) -> None:
    """Wait until the process has ended, the event is set, or so many seconds have passed."""
    told = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({ended, told}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        pass


def _drain_timeout(worker: socket.socket) -> float:
    """What the worker said; nothing: it has not begun to handle."""
    worker.settimeout(0)
    try:
        return float(worker.recv(64) or 0)
    except OSError:
        return 0.0


def _told(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _times(directory: Path) -> Mapping[str, int]:
    """When each Python file was last changed, in nanoseconds, by its path within the directory."""
    return {os.path.relpath(path, directory): modified for path, modified in _files(str(directory))}


def _files(directory: str) -> Iterator[tuple[str, int]]:
    for parent, folders, names in os.walk(directory):
        folders[:] = [
            each for each in folders
            if not each.startswith((".", "__pycache__")) and each != "site-packages"
        ]  # fmt: skip
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(parent, name)
                try:
                    yield path, os.stat(path).st_mtime_ns
                except OSError:  # gone meanwhile
                    continue
