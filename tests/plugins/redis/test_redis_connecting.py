"""Emitters of Redis connect: by TLS, as any user, to a server that is not ready yet, and again."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from brokers.fixtures import started
from brokers.process import free_port
from brokers.redis import LIMITED, PASSWORD, USER, Redis
from brokers.redis_access import RedisAccess
from dispytch import ConnectError, EmitRejected, EventEmitter
from dispytch.testing.conformance import Proxy
from plugins.redis.emitting import Note, out, payloads, producing, until

pytest.importorskip("redis")

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def slow_redis() -> Iterator[Redis]:
    """One that takes a while to load what it has."""
    config = {
        "key-load-delay": "20000",  # microseconds
        "loading-process-events-interval-bytes": "1024",
        "rdbcompression": "no",
        "appendonly": "no",  # it looks at its clients more often while it reads a snapshot
    }
    with started(lambda: Redis(config=config)) as broker:
        for number in range(50):
            broker.call("SET", f"kept{number}", "x" * 2000)
        broker.call("SAVE")
        yield broker


def clients(broker: RedisAccess) -> list[dict[str, str]]:
    """What the server says of those that are connected, but for who asks."""
    lines = broker.call("CLIENT", "LIST").decode().splitlines()
    told = [dict(part.partition("=")[::2] for part in line.split()) for line in lines]
    return [client for client in told if client["cmd"] != "client|list"]


async def refusal(url: str) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await EventEmitter.from_url(url, timeout=10).start()
    return caught.value


async def test_tls_and_an_awkward_login_let_us_in(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the authority of the server's certificate; nothing secret is said on the way."""
    caplog.set_level(logging.DEBUG)
    certificates = own_redis.certificates
    url = own_redis.url_for(user=USER, port=own_redis.tls_port, scheme="rediss")
    query = f"cafile={certificates.ca}&certfile={certificates.client.cert}"
    async with EventEmitter.from_url(f"{url}?{query}&keyfile={certificates.client.key}") as emitter:
        await emitter.emit_many([Note(to=unique_name, lane=str(number)) for number in range(100)])
        assert {client["user"] for client in clients(own_redis)} == {USER}
        assert USER not in repr(emitter)
    assert len(payloads(own_redis, unique_name)) == 100
    assert PASSWORD not in caplog.text
    assert USER not in caplog.text


async def test_tls_is_renewed_when_it_is_reset(own_redis: Redis, unique_name: str) -> None:
    """As a plain connection is."""
    with Proxy(own_redis.tls_port) as proxy:
        url = own_redis.url_for(port=proxy.port, scheme="rediss")
        async with producing(url, cafile=own_redis.certificates.ca) as producer:
            for _ in range(3):
                await producer.send_message(out(unique_name))
                wire = producer._link.wire
                assert wire is not None
                proxy.reset()
                await wire.ended
            await producer.send_message(out(unique_name))
    assert len(payloads(own_redis, unique_name)) == 4


async def test_the_wrong_authority_is_refused(own_redis: Redis) -> None:
    """Nothing is sent to a server that can't prove who it is."""
    error = await refusal(f"{own_redis.tls_url}?cafile={own_redis.certificates.wrong_ca}")
    assert "certificate is refused" in str(error)
    assert not error.retriable


async def test_a_database_and_a_name_are_as_asked_for(own_redis: Redis, unique_name: str) -> None:
    """One connection, which an operator can tell from others."""
    async with producing(f"{own_redis.url}/3", client_name="orders-1") as producer:
        await producer.ping()
        (client,) = clients(own_redis)
        assert (client["db"], client["name"], client["user"]) == ("3", "orders-1", "default")
    await until(lambda: not clients(own_redis))


async def test_a_wrong_password_is_told_and_not_repeated(
    own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is the user; it is final."""
    error = await refusal(own_redis.url_for(user=USER, password="wr0ng-secret"))
    assert not error.retriable
    assert error.backend == "redis"
    told = f"{error!r} {error.__cause__!r} {error.__context__!r} {caplog.text}"
    assert not any(secret in told for secret in ("wr0ng", USER))
    assert not clients(own_redis)


async def test_who_hangs_up_at_once_is_not_called_again_and_again() -> None:
    """A connection that ends as soon as it is there is one more attempt that failed."""
    calls = [0]

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls[0] += 1
        while (asked := await reader.read(4096)) and b"PING" not in asked:
            writer.write(b"+OK\r\n" * asked.count(b"*"))
        writer.write(b"+PONG\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with producing(f"redis://127.0.0.1:{port}", reconnect_interval=0.1):
            await asyncio.sleep(0.5)  # in which hundreds would fit
    assert 2 <= calls[0] <= 8


async def test_a_password_that_was_changed_is_told_to_emits(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is not let in again; what waits succeeds as soon as it is."""
    own_redis.call("ACL", "SETUSER", "changing", "on", ">one", "~*", "&*", "+@all")
    url = own_redis.url_for(user="changing", password="one")
    async with EventEmitter.from_url(f"{url}?reconnect_interval=0.05", timeout=0.5) as emitter:
        await emitter.emit(Note(to=unique_name))
        own_redis.call("ACL", "SETUSER", "changing", "<one", ">two")
        own_redis.call("CLIENT", "KILL", "USER", "changing")
        await until(lambda: "refused the user or the password" in caplog.text)
        with pytest.raises(EmitRejected, match="refused the user or the password") as caught:
            await emitter.emit(Note(to=unique_name))
        assert caught.value.retriable
        with pytest.raises(ConnectError, match="refused the user or the password"):
            await emitter.ping()
        waiting = asyncio.create_task(emitter.emit(Note(to=unique_name)))
        await asyncio.sleep(0)
        own_redis.call("ACL", "SETUSER", "changing", ">one")
        await waiting
        await emitter.ping()
    assert len(payloads(own_redis, unique_name)) == 2
    assert "changing" not in caplog.text


async def test_who_may_do_nothing_is_told_by_its_emits(own_redis: Redis, unique_name: str) -> None:
    """It is let in, and each of many emits is refused, for good and without the user's name."""
    async with EventEmitter.from_url(own_redis.limited_url) as emitter:
        emits = [emitter.emit(Note(to=unique_name, lane=str(number))) for number in range(100)]
        results = await asyncio.gather(*emits, return_exceptions=True)
    assert {type(result) for result in results} == {EmitRejected}
    assert LIMITED not in str(results)
    assert not any(result.retriable for result in results if isinstance(result, EmitRejected))


async def test_a_server_that_loads_may_be_ready_later(slow_redis: Redis, unique_name: str) -> None:
    """Who starts then is told; who was connected before waits, and its emits succeed."""
    async with EventEmitter.from_url(
        f"{slow_redis.url}?reconnect_interval=0.05", timeout=60
    ) as emitter:
        await emitter.emit(Note(to=unique_name))
        slow_redis.kill()
        starting = asyncio.create_task(asyncio.to_thread(slow_redis.start))
        error = None
        while error is None or "loading" not in str(error):
            assert not starting.done()
            error = await refusal(slow_redis.url)
            assert error.retriable
        event = Note(to=unique_name)
        await emitter.emit(event)
        await starting
    (payload,) = payloads(slow_redis, unique_name)  # what came after the snapshot is lost
    assert event.id.encode() in payload
    assert slow_redis.call("HGET", "dispytch:topics", unique_name) == b"16"


async def test_a_server_that_is_not_there_is_told(unique_name: str) -> None:
    """With its address; it may come."""
    port = free_port()
    error = await refusal(f"redis://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in str(error)
    assert error.retriable


async def test_cancelled_while_it_connects_it_leaves_nothing(own_redis: Redis) -> None:
    """Neither a connection nor a task."""
    own_redis.freeze()
    tasks = asyncio.all_tasks()
    emitter = EventEmitter.from_url(own_redis.url)
    starting = asyncio.create_task(emitter.start())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    own_redis.thaw()
    await until(lambda: not clients(own_redis))
    assert asyncio.all_tasks() == tasks
