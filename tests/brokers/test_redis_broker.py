"""The harness keeps its promises about Redis."""

import asyncio
import ssl
from contextlib import AbstractContextManager

import pytest

from brokers.fixtures import started
from brokers.redis import USER, Redis
from brokers.redis_access import ErrorReply, RedisAccess, connected

pytestmark = pytest.mark.redis


def _add(broker: RedisAccess, stream: str, value: str = "v") -> str:
    """Append an entry and return its id."""
    return str(broker.call("XADD", stream, "*", "field", value).decode())


def test_what_was_written_can_be_read(own_redis: Redis) -> None:
    """Entries come back in order, with their bytes as they were."""
    assert own_redis.entries("all") == []
    first = own_redis.call("XADD", "all", "*", "a", b"\xff\r\n", "b", "").decode()
    second = _add(own_redis, "all")
    assert [entry.id for entry in own_redis.entries("all")] == [first, second]
    assert own_redis.entries("all")[0].fields == {b"a": b"\xff\r\n", b"b": b""}


def test_published_messages_are_pushed(own_redis: Redis) -> None:
    """A subscribed connection reads what others publish."""
    with connected(own_redis.url) as connection:
        assert connection.call("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        assert own_redis.call("PUBLISH", "news", "v") == 1
        assert connection.read() == [b"message", b"news", b"v"]


def test_users_with_awkward_names(own_redis: Redis) -> None:
    """One may do all, one nothing, and a wrong password lets nobody in."""
    with connected(own_redis.user_url) as connection:
        assert connection.call("ACL", "WHOAMI") == USER.encode()
        assert connection.call("XLEN", "nothing") == 0
    with connected(own_redis.limited_url) as connection:
        assert connection.call("PING") == b"PONG"
        with pytest.raises(ErrorReply, match=r"^NOPERM"):
            connection.call("XADD", "forbidden", "*", "field", "v")
    with (
        pytest.raises(ErrorReply, match=r"^WRONGPASS"),
        connected(own_redis.url_for(user=USER, password="wrong")),
    ):
        pass


def test_tls_and_the_wrong_authority(own_redis: Redis) -> None:
    """TLS works with and without a client's certificate, for those who trust the right one."""
    certificates = own_redis.certificates
    for context in certificates.context(with_client=True), certificates.context():
        with connected(own_redis.tls_url, context=context) as connection:
            assert connection.call("PING") == b"PONG"
    wrong = certificates.context(wrong_ca=True)
    with pytest.raises(ssl.SSLError), connected(own_redis.tls_url, context=wrong):
        pass


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (Redis.out_of_memory, "OOM"),
        (Redis.read_only, "READONLY"),
        (Redis.failing_disk, "MISCONF"),
    ],
)
def test_trouble_refuses_writes_until_it_ends(own_redis: Redis, trouble: object, code: str) -> None:
    """Each trouble shows with its own error, and leaves nothing behind."""
    assert callable(trouble)
    context = trouble(own_redis)
    assert isinstance(context, AbstractContextManager)
    with context, pytest.raises(ErrorReply, match=rf"^{code} "):
        _add(own_redis, code)
    kept = _add(own_redis, code)
    assert [entry.id for entry in own_redis.entries(code)] == [kept]


def test_clients_of_the_proxy_are_cut_off_by_it(own_redis: Redis) -> None:
    """What goes through the proxy is counted, and ends when it says so."""
    with own_redis.proxy() as proxy, connected(own_redis.url_for(port=proxy.port)) as connection:
        connection.call("XADD", "proxied", "*", "field", "x" * 5000)
        assert proxy.connections == 1
        assert proxy.bytes_up > 5000
        proxy.reset()
        with pytest.raises(ConnectionError):
            connection.call("PING")


async def test_data_and_users_survive_a_kill_and_a_restart(own_redis: Redis) -> None:
    """What was confirmed is there again, at the same address; connections are not."""
    kept = [_add(own_redis, "kept") for _ in range(100)]
    with connected(own_redis.user_url) as connection:
        await asyncio.to_thread(own_redis.kill)
        assert own_redis.processes() == set()
        assert not own_redis.usable()
        with pytest.raises(ConnectionError):
            connection.call("PING")
    await asyncio.to_thread(own_redis.start)
    assert [entry.id for entry in own_redis.entries("kept")] == kept
    await asyncio.to_thread(own_redis.restart)
    assert [entry.id for entry in own_redis.entries("kept")] == kept
    with connected(own_redis.user_url) as connection:
        assert connection.call("XLEN", "kept") == len(kept)


def test_a_frozen_broker_takes_connections_and_does_not_answer(own_redis: Redis) -> None:
    """Freezing is silence, not an end, and healing ends it."""
    own_redis.freeze()
    assert own_redis.running
    with pytest.raises(TimeoutError):
        own_redis._ask(0.3)
    own_redis.heal()
    assert own_redis.usable()


def test_a_started_broker_has_read_its_data() -> None:
    """Starting waits until commands are no longer refused with `LOADING`."""
    slow = {
        "key-load-delay": "20000",  # microseconds
        "loading-process-events-interval-bytes": "1024",
        "rdbcompression": "no",
        "appendonly": "no",  # it looks at its clients more often while it reads a snapshot
    }
    with started(lambda: Redis(config=slow)) as broker:
        for number in range(20):
            _add(broker, f"kept{number}", "x" * 2000)
        broker.call("SAVE")
        broker.kill()
        broker.start()
        assert broker.call("DBSIZE") == 20


def test_options_reach_the_broker_and_stop_leaves_nothing() -> None:
    """A setting overrides ours, a stopped broker has no process, a closed one no files."""
    with started(lambda: Redis(config={"appendfsync": "always"})) as broker:
        assert broker.call("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]
        broker.stop()
        assert not broker.running
        assert broker.processes() == set()
        home = broker.home
    assert not home.exists()


def test_the_shared_broker_is_there(redis_broker: RedisAccess, unique_name: str) -> None:
    """Tests that do no harm have a Redis that they share."""
    kept = _add(redis_broker, unique_name)
    assert [entry.id for entry in redis_broker.entries(unique_name)] == [kept]
    redis_broker.call("DEL", unique_name)
