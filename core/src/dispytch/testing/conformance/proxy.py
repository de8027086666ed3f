"""A TCP proxy that fails on command, between a client and a broker that knows nothing of it.

It lives on an event loop in a thread of its own, so tests control it with plain calls, also while
their own loop is busy.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

__all__ = ["LOCALHOST", "Proxy", "free_port"]

T = TypeVar("T")

LOCALHOST = "127.0.0.1"

_given: set[int] = set()
"""Ports that `free_port` returned."""

_CHUNK = 64 * 1024


class Proxy:
    """Forwards to a port of this machine until told otherwise.

    `connections`, `bytes_up` (towards the broker) and `bytes_down` count what really went through.
    """

    def __init__(self, target_port: int, listen_port: int = 0) -> None:
        self.target_port = target_port
        self.port = listen_port or free_port()
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.delayed = 0.0
        self.swallowing = False
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy")
        self._thread.start()
        self._run(self._listen())

    def reset(self) -> None:
        """Reset all connections; new ones work."""
        self._run(self._reset(self._links))

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        self._run(self._refuse())

    def black_hole(self) -> None:
        """Swallow all bytes: connections stay open, new ones are accepted, nothing arrives."""
        self.swallowing = True

    def delay(self, seconds: float) -> None:
        """Let all bytes arrive later, in each direction, without limiting their rate."""
        self.delayed = seconds

    def restore(self) -> None:
        """Forward again; connections that lost bytes are reset, as their streams have holes."""
        self._run(self._restore())

    def close(self) -> None:
        """Reset all connections and free the port."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        # Not asyncio's server: closed just after it accepted a connection, it leaks the socket.
        self._listener = socket.create_server((LOCALHOST, self.port))
        self._listener.settimeout(0)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client may be gone already
            client, _ = listener.accept()
            serving = self._loop.create_task(self._serve(client))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        if self._listener is None:  # it came in just before `refuse()`
            _send_reset(writer)
            return
        self.connections += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def _end(self) -> None:
        """Refuse, and see to it that what was accepted just before is closed too."""
        await self._refuse()
        while self._serving:
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next iteration

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._reset(self._links)

    async def _restore(self) -> None:
        self.delayed = 0.0
        self.swallowing = False
        await self._reset({link for link in self._links if link.has_hole})
        if self._listener is None:
            await self._listen()

    async def _reset(self, links: set["_Link"]) -> None:
        chosen = list(links)
        for link in chosen:
            link.reset()
        await asyncio.gather(*(link.ended.wait() for link in chosen))


class _Link:
    """One client's connection and the one made for it to the broker."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.has_hole = False
        self.ended = asyncio.Event()
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Forward both ways until one side is done or `reset()` is called."""
        self._work = asyncio.create_task(self._forward())
        try:
            await asyncio.wait([self._work])
        finally:
            for writer in self._writers:
                _send_reset(writer)
            self.ended.set()

    def reset(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _forward(self) -> None:
        reader, writer = self._client
        if self._proxy.swallowing:
            self.has_hole = True  # nothing to talk to, ever: the client shall find that out itself
            await self._ignore(reader)
            return
        with contextlib.suppress(OSError):
            broker = await asyncio.open_connection(LOCALHOST, self._proxy.target_port)
            self._writers.append(broker[1])
            await _together(
                self._pump(reader, broker[1], upwards=True),
                self._pump(broker[0], writer, upwards=False),
            )
            for done in self._writers:
                done.close()
                await done.wait_closed()

    async def _ignore(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(_CHUNK):
                pass

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        """Read and write in two tasks, so that a delay does not slow the reading down."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        loop = asyncio.get_running_loop()

        async def fill() -> None:
            data = b"any"
            while data:
                data = await reader.read(_CHUNK)
                await due.put((loop.time() + self._proxy.delayed, data))

        async def drain() -> None:
            while True:
                when, data = await due.get()
                await asyncio.sleep(when - loop.time())
                if self._proxy.swallowing:
                    self.has_hole = True
                elif data:
                    self._count(len(data), upwards=upwards)
                    writer.write(data)
                    await writer.drain()
                elif writer.can_write_eof():
                    writer.write_eof()
                if not data:
                    return

        await _together(fill(), drain())

    def _count(self, size: int, *, upwards: bool) -> None:
        if upwards:
            self._proxy.bytes_up += size
        else:
            self._proxy.bytes_down += size


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until all are done; if a connection breaks, end the others and raise one error."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* OSError:
        raise ConnectionError("the connection broke") from None


def _send_reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST; a connection that is closed already stays as it is."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        no_linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()


def free_port() -> int:
    """A port nobody listens on, outside the range the system picks from for connecting sockets.

    A port inside that range could be taken by any client while its broker is down, even by the very
    client that tries to reconnect: TCP then connects the socket to itself. A process gets none
    twice: whoever got it first may be about to listen there.
    """
    while True:
        port = random.randrange(15_000, 32_000)  # noqa: S311 - no secret
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((LOCALHOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
