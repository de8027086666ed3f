"""The proxy fails as it says, seen from a client of a plain echo server."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from dispytch.testing.conformance import Proxy, free_port

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
    except ConnectionError:
        pass  # what most tests here are about
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def _connect(proxy: Proxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def _say(streams: Streams, word: bytes, timeout: float = 5) -> bytes:
    reader, writer = streams
    writer.write(word)
    return await asyncio.wait_for(reader.readexactly(len(word)), timeout)


async def _end(*connections: Streams) -> None:
    for _, writer in connections:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_it_forwards_and_counts(proxy: Proxy) -> None:
    one, two = await _connect(proxy), await _connect(proxy)
    assert await _say(one, b"hello") == b"hello"
    assert await _say(two, b"you") == b"you"
    assert (proxy.connections, proxy.bytes_up, proxy.bytes_down) == (2, 8, 8)
    await _end(one, two)


async def test_an_end_is_passed_on_with_all_that_came_before_it(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"x" * 1_000_000)
    writer.write_eof()
    assert len(await reader.read(-1)) == 1_000_000
    await _end((reader, writer))


async def test_a_reset_ends_what_is_there_and_lets_new_ones_in(proxy: Proxy) -> None:
    old = await _connect(proxy)
    await _say(old, b"works")
    await asyncio.to_thread(proxy.reset)
    with pytest.raises(ConnectionResetError):
        await old[0].read(1)
    new = await _connect(proxy)
    assert await _say(new, b"works") == b"works"
    await _end(old, new)


async def test_refused_until_restored(proxy: Proxy) -> None:
    old = await _connect(proxy)
    await _say(old, b"works")
    await asyncio.to_thread(proxy.refuse)
    with pytest.raises(ConnectionResetError):
        await old[0].read(1)
    with pytest.raises(ConnectionRefusedError):
        await _connect(proxy)
    await asyncio.to_thread(proxy.restore)
    new = await _connect(proxy)
    assert await _say(new, b"works") == b"works"
    await _end(old, new)


async def test_a_black_hole_swallows_until_restored(proxy: Proxy) -> None:
    old = await _connect(proxy)
    await _say(old, b"works")
    proxy.black_hole()
    new = await _connect(proxy)
    for streams in (old, new):
        with pytest.raises(TimeoutError):
            await _say(streams, b"lost", timeout=0.2)
    await asyncio.to_thread(proxy.restore)
    for streams in (old, new):
        with pytest.raises(ConnectionResetError):
            await streams[0].read(1)
    fresh = await _connect(proxy)
    assert await _say(fresh, b"works") == b"works"
    assert proxy.bytes_up == len(b"works") * 2
    await _end(old, new, fresh)


async def test_a_delay_holds_up_each_direction(proxy: Proxy) -> None:
    streams = await _connect(proxy)
    proxy.delay(0.1)
    before = time.monotonic()
    assert await _say(streams, b"slow") == b"slow"
    assert time.monotonic() - before >= 0.2
    await _end(streams)


def test_a_free_port_is_given_once() -> None:
    ports = [free_port() for _ in range(2_000)]  # of 17,000: two alike would be near certain
    assert len(set(ports)) == len(ports)
