"""The wire, a connection that many use at once, and the link, which renews it."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from brokers.redis import Redis
from brokers.redis_access import RedisAccess
from dispytch import ConnectError
from dispytch.testing.conformance import Proxy
from plugins.redis.emitting import settings, until, wired

pytest.importorskip("redis")

from redis.exceptions import AuthenticationError, ResponseError

from dispytch_redis.errors import NotSentError, WireError
from dispytch_redis.link import Link
from dispytch_redis.wire import Wire

pytestmark = pytest.mark.redis

MANY = 1000
LARGE = b"x" * 1_000_000


@pytest.fixture
def proxy(own_redis: Redis) -> Iterator[Proxy]:
    with own_redis.proxy() as proxy:
        yield proxy


async def sent(wire: Wire) -> None:
    """Wait until what was asked for is on its way."""
    await until(lambda: not wire._waiting)


async def linked(url: str, **options: Any) -> Link:
    link = Link(settings(url, **options), "redis")
    await link.open()
    return link


# Commands and replies


async def test_each_command_gets_its_own_reply(redis_broker: RedisAccess, unique_name: str) -> None:
    """Many at once, errors in between, each in the order given."""
    redis_broker.call("SET", f"{unique_name}-text", "v")
    async with wired(redis_broker.url) as wire:
        calls = []
        for _ in range(MANY):
            calls += [wire.call("INCR", unique_name), wire.call("INCR", f"{unique_name}-text")]
        told = await asyncio.gather(*calls, return_exceptions=True)
    assert told[::2] == list(range(1, MANY + 1))
    assert {type(error) for error in told[1::2]} == {ResponseError}


async def test_it_reads_while_it_writes(redis_broker: RedisAccess, unique_name: str) -> None:
    """More than any buffer holds, both ways at once: neither side waits for the other for ever."""
    async with wired(redis_broker.url) as wire, asyncio.timeout(30):
        calls = [wire.call("ECHO", LARGE) for _ in range(50)]
        assert set(await asyncio.gather(*calls)) == {LARGE}


async def test_texts_numbers_and_bytes_are_sent_as_they_are(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """A text as UTF-8, a number by its digits, any bytes."""
    async with wired(redis_broker.url) as wire:
        await wire.call("RPUSH", unique_name, "é", 7, b"\x00\r\n\xff", "")
        told = await wire.call("LRANGE", unique_name, 0, -1)
    assert told == ["é".encode(), b"7", b"\x00\r\n\xff", b""]


# Cancelling


async def test_cancelled_before_it_was_sent_it_is_not_sent(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """What was given in the same turn is."""
    async with wired(redis_broker.url) as wire:
        calls = [wire.call("RPUSH", unique_name, number) for number in range(10)]
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls[1::2])
        assert await wire.call("LRANGE", unique_name, 0, -1) == [b"1", b"3", b"5", b"7", b"9"]


async def test_all_of_a_turn_may_be_cancelled(redis_broker: RedisAccess) -> None:
    """Nothing is sent, and the next one is."""
    async with wired(redis_broker.url) as wire:
        wire.call("PING").cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await wire.call("PING") == b"PONG"


async def test_cancelled_after_it_was_sent_the_others_keep_their_replies(
    redis_broker: RedisAccess,
) -> None:
    """Its reply comes, and is nobody else's."""
    async with wired(redis_broker.url) as wire:
        calls = [wire.call("ECHO", number) for number in range(10)]
        await sent(wire)
        for call in calls[::2]:
            call.cancel()
        assert await asyncio.gather(*calls[1::2]) == [b"1", b"3", b"5", b"7", b"9"]
        assert await wire.call("ECHO", "next") == b"next"


# Its end


async def test_aborted_what_was_sent_is_unknown_and_the_rest_was_not_sent(
    own_redis: Redis,
) -> None:
    """Each caller is told which; so is whoever calls later."""
    async with wired(own_redis.url) as wire:
        first = wire.call("BLPOP", "nothing", 0)
        await sent(wire)
        second = wire.call("PING")
        wire.abort("the test ended it")
        wire.abort("a second time, which changes nothing")
        third = wire.call("PING")
        errors = await asyncio.gather(first, second, third, return_exceptions=True)
    assert [type(error) for error in errors] == [WireError, NotSentError, NotSentError]
    assert str(errors[0]) == "the test ended it"
    assert await wire.ended == "the test ended it"


async def test_a_refusal_leaves_it_usable(redis_broker: RedisAccess) -> None:
    """An error is a reply as any other."""
    async with wired(redis_broker.url) as wire:
        with pytest.raises(ResponseError):
            await wire.call("NO-SUCH-COMMAND")
        assert await wire.call("PING") == b"PONG"


async def test_a_refusal_on_which_the_client_hangs_up_is_still_a_reply(
    redis_broker: RedisAccess,
) -> None:
    """redis-py disconnects on some: that one was refused, what came after it is unknown."""
    async with wired(redis_broker.url) as wire:
        before, refused, after = (
            wire.call("ECHO", "a"),
            wire.call("AUTH", "nobody", "wr0ng"),
            wire.call("PING"),
        )
        errors = await asyncio.gather(before, refused, after, return_exceptions=True)
        assert errors[0] == b"a"
        assert [type(error) for error in errors[1:]] == [AuthenticationError, WireError]
        assert await wire.ended == "AuthenticationError while reading"


async def test_a_reset_is_noticed_while_nothing_is_under_way(
    own_redis: Redis, proxy: Proxy
) -> None:
    """At once, so that the next command meets a new connection and not this one."""
    async with wired(own_redis.url_for(port=proxy.port)) as wire:
        proxy.reset()
        async with asyncio.timeout(10):
            assert "ConnectionError" in await wire.ended
        with pytest.raises(NotSentError):
            await wire.call("PING")


async def test_a_reset_may_meet_a_command(own_redis: Redis, proxy: Proxy) -> None:
    """Whichever of both asyncio sees first, and whatever it raises then, it is the wire's end."""
    for _ in range(10):
        async with wired(own_redis.url_for(port=proxy.port)) as wire:
            proxy.reset()
            calls = [wire.call("PING") for _ in range(10)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, WireError) for error in errors), errors
            assert wire.ended.done()


async def test_what_meets_a_closing_connection_was_not_sent(redis_broker: RedisAccess) -> None:
    """That is certain, and whoever gave it can give it to the next wire."""
    async with wired(redis_broker.url) as wire:
        writer = wire._connection._writer
        assert writer is not None
        writer.transport.abort()
        with pytest.raises(NotSentError):
            await wire.call("PING")


async def test_a_server_that_dies_ends_it(own_redis: Redis) -> None:
    """As soon as the system knows."""
    async with wired(own_redis.url) as wire:
        own_redis.call("CLIENT", "PAUSE", 10_000)
        call = wire.call("PING")
        await sent(wire)
        own_redis.kill()
        with pytest.raises(WireError):
            await call
        assert wire.ended.done()


# Patience


async def test_without_a_reply_it_is_given_up(own_redis: Redis) -> None:
    """A server that stands still would hold up everything for ever."""
    async with wired(own_redis.url, patience=0.3) as wire:
        own_redis.freeze()
        with pytest.raises(WireError, match=r"no reply for 0.3 s"):
            await wire.call("PING")
        own_redis.thaw()


async def test_nothing_to_wait_for_is_no_reason(redis_broker: RedisAccess) -> None:
    """An idle one stays, and what is asked then has the full time."""
    async with wired(redis_broker.url, patience=0.2) as wire:
        await asyncio.sleep(0.5)
        assert await wire.call("PING") == b"PONG"
        assert not wire.ended.done()


async def test_replies_that_come_show_that_it_works(own_redis: Redis, unique_name: str) -> None:
    """One command may wait for longer than that behind others, if these are answered."""
    async with wired(own_redis.url, patience=1.0) as wire:
        calls = [wire.call("BLPOP", unique_name, 0.4) for _ in range(4)]
        assert await asyncio.gather(*calls, wire.call("PING")) == [None] * 4 + [b"PONG"]


async def test_a_process_that_stood_still_does_not_blame_the_server(
    redis_broker: RedisAccess,
) -> None:
    """Its replies are there, unread: they count, however late it is by the clock."""
    async with wired(redis_broker.url, patience=0.4) as wire:
        call = wire.call("PING")
        await sent(wire)
        time.sleep(1.0)  # noqa: ASYNC251 - nothing of this process runs meanwhile
        assert await call == b"PONG"
        assert not wire.ended.done()


# The link


async def test_another_wire_is_opened_when_one_ends(own_redis: Redis, proxy: Proxy) -> None:
    """Who asks meanwhile waits for it."""
    link = await linked(own_redis.url_for(port=proxy.port))
    first = await link.connected()
    proxy.reset()
    assert first is not None
    async with asyncio.timeout(10):
        await first.ended
        second = await link.connected()
    assert second is not None
    assert second is not first
    assert await second.call("PING") == b"PONG"
    await link.close()


async def test_it_keeps_trying_and_tells_why(
    own_redis: Redis, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it is let in again; what is wrong can be asked for."""
    lost, renewed = asyncio.Event(), asyncio.Event()
    url = own_redis.user_url.replace(str(own_redis.port), str(proxy.port))
    link = Link(settings(url, reconnect_interval=0.05), "redis", lost=lost.set, renewed=renewed.set)
    await link.open()
    proxy.refuse()
    async with asyncio.timeout(10):
        await lost.wait()
        await until(lambda: "can't connect" in str(link.down()))
        assert link.wire is None
        assert link.down().retriable
        waiting = [asyncio.create_task(link.connected()) for _ in range(3)]
        proxy.restore()
        wires = await asyncio.gather(*waiting)
    assert renewed.is_set()
    assert set(wires) == {link.wire}
    assert link.problem is None
    assert "orders" not in caplog.text  # of the user's name
    await link.close()


async def test_closing_it_ends_the_waiting(own_redis: Redis, proxy: Proxy) -> None:
    """Nobody waits for a connection that will not come."""
    link = await linked(own_redis.url_for(port=proxy.port), reconnect_interval=0.05)
    proxy.refuse()
    wire = link.wire
    assert wire is not None
    await wire.ended
    waiting = [asyncio.create_task(link.connected()) for _ in range(3)]
    await asyncio.sleep(0)
    await link.close()
    await link.close()
    assert await asyncio.gather(*waiting) == [None] * 3
    assert not link.is_kept


async def test_closed_it_can_be_opened_again(redis_broker: RedisAccess) -> None:
    """With a wire of its own."""
    link = await linked(redis_broker.url)
    await link.close()
    assert link.wire is None
    await link.open()
    wire = await link.connected()
    assert wire is not None
    assert await wire.call("PING") == b"PONG"
    await link.close()


async def test_not_opened_it_is_not_kept(proxy: Proxy) -> None:
    """The first attempt is the caller's, who is told."""
    proxy.refuse()
    link = Link(settings(f"redis://127.0.0.1:{proxy.port}"), "redis")
    with pytest.raises(ConnectError):
        await link.open()
    assert not link.is_kept
    assert await link.connected() is None


def test_what_a_dead_loop_left_is_not_kept(redis_broker: RedisAccess) -> None:
    """A loop that was ended without closing it: in the next one it is opened anew."""
    link = Link(settings(redis_broker.url), "redis")

    async def leave_open() -> None:
        await link.open()

    async def use() -> object:
        assert not link.is_kept
        await link.open()
        wire = await link.connected()
        assert wire is not None
        told = await wire.call("PING")
        await link.close()
        return told

    asyncio.run(leave_open())
    assert asyncio.run(use()) == b"PONG"
