"""What is deleted of old events, and that nothing is which a group still has to settle."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from brokers.redis import Redis
from brokers.redis_access import RedisAccess, connected
from dispytch import Subscription
from dispytch_redis import RedisEventConfig, RedisProducer
from plugins.redis.emitting import commands, out, payloads, producing, settings, streams

pytest.importorskip("redis")

from dispytch_redis import RedisConsumer

pytestmark = pytest.mark.redis


@pytest.fixture
async def producer(redis_broker: RedisAccess) -> AsyncIterator[RedisProducer]:
    """One whose topics have one shard."""
    async with producing(redis_broker.url, shards=1) as producer:
        yield producer


async def trimmed(producer: RedisProducer) -> None:
    """Wait until what it began is done."""
    while tasks := list(producer._trimmer._trimming.values()):
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


async def send(producer: RedisProducer, topic: str, numbers: range, **config: Any) -> None:
    """One after the other, each after what the one before it had deleted."""
    settings = RedisEventConfig(**config) if config else None
    for number in numbers:
        await producer.send_message(out(topic, b"%d" % number, config=settings))
        await trimmed(producer)


def numbers(broker: RedisAccess, topic: str) -> list[int]:
    return [int(payload) for payload in payloads(broker, topic)]


def filled(broker: RedisAccess, stream: str, count: int, size: int = 1) -> None:
    """Append many at once."""
    broker.call(
        "EVAL", "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'payload', ARGV[2]) end",
        1, stream, count, "0" * size,
    )  # fmt: skip


# What is kept


async def test_without_a_limit_nothing_is_deleted(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Whatever their number and age."""
    await send(producer, unique_name, range(250))
    assert numbers(redis_broker, unique_name) == list(range(250))
    assert not producer._trimmer._left


async def test_the_newest_are_kept(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """So many, and a few more until it is worth while to delete them."""
    await send(producer, unique_name, range(200), maxlen=50)
    kept = numbers(redis_broker, unique_name)
    assert kept == list(range(200 - len(kept), 200))
    assert 50 <= len(kept) <= 55


@pytest.mark.parametrize("maxlen", [1, 15, 17])
async def test_a_few_are_kept_by_each_of_many_shards(
    redis_broker: RedisAccess, unique_name: str, maxlen: int
) -> None:
    """A part of less than one is one: no shard is emptied."""
    keep = -(-maxlen // 16)
    async with producing(redis_broker.url) as producer:
        await send(producer, unique_name, range(160), maxlen=maxlen)
    kept = numbers(redis_broker, unique_name)
    assert sorted(kept) == list(range(160 - 16 * keep, 160))


@pytest.mark.parametrize("age", [60, timedelta(minutes=1)])
async def test_the_young_are_kept(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str, age: Any
) -> None:
    """Older ones go with the next event."""
    await producer.send_message(out(unique_name, b"0"))
    (stream,) = streams(redis_broker, unique_name)
    redis_broker.call("DEL", stream)
    now = int(time.time() * 1000)
    for number, seconds in enumerate((10**6, 3600, 61, 30)):
        redis_broker.call("XADD", stream, f"{now - seconds * 1000}-0", "payload", number)
    await send(producer, unique_name, range(4, 5), max_age=age)
    assert numbers(redis_broker, unique_name) == [3, 4]


async def test_the_age_is_by_the_servers_clock(
    producer: RedisProducer,
    redis_broker: RedisAccess,
    unique_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A producer whose clock is wrong deletes nothing that is young."""
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    await send(producer, unique_name, range(3))
    await send(producer, unique_name, range(3, 4), max_age=60)
    assert numbers(redis_broker, unique_name) == [0, 1, 2, 3]


async def test_a_century_is_no_limit(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """It began before 1970."""
    await send(producer, unique_name, range(3))
    await send(producer, unique_name, range(3, 4), max_age=36_525 * 86_400)
    assert numbers(redis_broker, unique_name) == [0, 1, 2, 3]


async def test_batches_are_counted_too(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Each of their events."""
    config = RedisEventConfig(maxlen=100)
    for first in range(0, 1000, 100):
        batch = [out(unique_name, b"%d" % n, config=config) for n in range(first, first + 100)]
        await producer.send_messages(batch)
        await trimmed(producer)
    assert numbers(redis_broker, unique_name) == list(range(900, 1000))


async def test_a_batch_is_trimmed_as_any_of_its_events_wants(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Others without a limit, the last one among them, change nothing."""
    config = RedisEventConfig(maxlen=10)
    for first in range(0, 100, 10):
        batch = [out(unique_name, b"%d" % n, config=config) for n in range(first, first + 9)]
        await producer.send_messages([*batch, out(unique_name, b"%d" % (first + 9))])
        await trimmed(producer)
    assert numbers(redis_broker, unique_name) == list(range(90, 100))


# What a group has not settled

Unsettle = Callable[[RedisAccess, str], object]


def not_read(broker: RedisAccess, stream: str) -> None:
    """A group that has read a part and settled that."""
    broker.call("XGROUP", "CREATE", stream, "slow", "0")
    told = broker.call("XREADGROUP", "GROUP", "slow", "c", "COUNT", 10, "STREAMS", stream, ">")
    broker.call("XACK", stream, "slow", *(id_ for id_, _ in told[0][1]))


def not_acknowledged(broker: RedisAccess, stream: str) -> None:
    """A group that has read everything, and settled all but one."""
    broker.call("XGROUP", "CREATE", stream, "slow", "0")
    told = broker.call("XREADGROUP", "GROUP", "slow", "c", "COUNT", 1000, "STREAMS", stream, ">")
    broker.call("XACK", stream, "slow", *(id_ for n, (id_, _) in enumerate(told[0][1]) if n != 10))


def never_begun(broker: RedisAccess, stream: str) -> None:
    """A group whose first member has not read yet, and begins in the middle."""
    tenth = broker.call("XRANGE", stream, "-", "+", "COUNT", 10)[-1][0]
    broker.call("XGROUP", "CREATE", stream, "slow", tenth)


@pytest.mark.parametrize("unsettle", [not_read, not_acknowledged, never_begun])
@pytest.mark.parametrize("limit", [{"maxlen": 1}, {"max_age": 0.001}], ids=str)
async def test_what_a_group_has_not_settled_is_kept(
    producer: RedisProducer,
    redis_broker: RedisAccess,
    unique_name: str,
    unsettle: Unsettle,
    limit: dict[str, Any],
) -> None:
    """From the first of it on, whatever the other groups have settled."""
    await send(producer, unique_name, range(30))
    (stream,) = streams(redis_broker, unique_name)
    redis_broker.call("XGROUP", "CREATE", stream, "fast", "$")
    unsettle(redis_broker, stream)
    await send(producer, unique_name, range(30, 35), **limit)
    assert numbers(redis_broker, unique_name) == list(range(10, 35))
    redis_broker.call("XGROUP", "DESTROY", stream, "slow")
    told = redis_broker.call("XREADGROUP", "GROUP", "fast", "c", "STREAMS", stream, ">")
    redis_broker.call("XACK", stream, "fast", *(id_ for id_, _ in told[0][1]))
    async with producing(redis_broker.url) as fresh:  # it trims with its first event
        await send(fresh, unique_name, range(35, 36), **limit)
    assert numbers(redis_broker, unique_name) == [35]


async def test_what_was_put_off_is_kept(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """It comes again, although all that came after it is settled."""
    await send(producer, unique_name, range(3))
    consumer = RedisConsumer(settings(redis_broker.url))
    await consumer.start()
    await consumer.subscribe([Subscription(unique_name, "g")])
    taken: list[Any] = []
    while len(taken) < 3:
        taken += await consumer.receive(3)
    taken.sort(key=lambda delivery: int(delivery.payload))
    await taken[0].ack()
    await taken[1].nack(3600)
    await taken[2].ack()
    await send(producer, unique_name, range(3, 6), maxlen=1)
    assert numbers(redis_broker, unique_name) == [1, 2, 3, 4, 5]
    await consumer.stop()


async def test_a_group_that_is_dead_keeps_everything(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Nobody can know that it will not come back."""
    await send(producer, unique_name, range(1))
    (stream,) = streams(redis_broker, unique_name)
    redis_broker.call("XGROUP", "CREATE", stream, "dead", "0")
    await send(producer, unique_name, range(1, 300), maxlen=1, max_age=0.001)
    assert numbers(redis_broker, unique_name) == list(range(300))


@pytest.mark.parametrize("unsettle", [not_read, not_acknowledged, never_begun])
async def test_who_wants_it_so_loses_what_is_not_settled(
    producer: RedisProducer, redis_broker: RedisAccess, unique_name: str, unsettle: Unsettle
) -> None:
    """Memory is worth more to some than events are."""
    await send(producer, unique_name, range(30))
    unsettle(redis_broker, *streams(redis_broker, unique_name))
    await send(producer, unique_name, range(30, 35), maxlen=3, trim_unsettled=True)
    assert numbers(redis_broker, unique_name) == [32, 33, 34]


# How it is done


async def test_a_long_stream_is_trimmed_in_small_steps(own_redis: Redis, unique_name: str) -> None:
    """The server goes on working meanwhile, and in the end all is done."""
    async with producing(own_redis.url, shards=1) as producer:
        await producer.send_message(out(unique_name))
        (stream,) = streams(own_redis, unique_name)
        filled(own_redis, stream, 200_000)
        own_redis.call("CONFIG", "SET", "slowlog-log-slower-than", 100_000)  # microseconds
        own_redis.call("SLOWLOG", "RESET")
        await send(producer, unique_name, range(1), maxlen=10)
        assert own_redis.call("SLOWLOG", "GET", 10) == []
    assert own_redis.call("XLEN", stream) == 10


async def test_large_events_are_trimmed_in_smaller_steps(
    own_redis: Redis, unique_name: str
) -> None:
    """Looking at an event costs as much as it is large."""
    async with producing(own_redis.url, shards=1) as producer:
        await producer.send_message(out(unique_name))
        (stream,) = streams(own_redis, unique_name)
        filled(own_redis, stream, 60, 500_000)
        before = commands(own_redis, "evalsha")
        await send(producer, unique_name, range(1), maxlen=10)
        assert commands(own_redis, "evalsha") - before >= 15
    assert own_redis.call("XLEN", stream) == 10
    own_redis.call("DEL", stream)


async def test_a_refusal_to_trim_is_told_and_harms_no_emit(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The event is stored; that old ones stay is another matter."""
    async with producing(own_redis.url, shards=1) as producer:
        await producer.send_message(out(unique_name))
        with connected(own_redis.user_url) as admin:
            admin.call("ACL", "SETUSER", "default", "-xtrim")
            await send(producer, unique_name, range(3), maxlen=1)
            admin.call("ACL", "SETUSER", "default", "+xtrim")
        assert own_redis.call("XLEN", *streams(own_redis, unique_name)) == 4
        assert "can't delete old events" in caplog.text
        await send(producer, unique_name, range(1), maxlen=1)
    assert own_redis.call("XLEN", *streams(own_redis, unique_name)) == 1


async def test_stopping_does_not_wait_for_it(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another producer goes on with it, some time; nobody is told of a failure."""
    async with producing(own_redis.url, shards=1) as producer:
        await producer.send_message(out(unique_name))
        (stream,) = streams(own_redis, unique_name)
        filled(own_redis, stream, 100_000)
        await producer.send_message(out(unique_name, config=RedisEventConfig(maxlen=10)))
        assert producer._trimmer._trimming
        await producer.stop()
        assert not producer._trimmer._trimming
    assert "can't delete" not in caplog.text
    assert own_redis.call("XLEN", stream) > 10


async def test_shards_that_are_no_longer_used_are_forgotten(
    producer: RedisProducer, unique_name: str
) -> None:
    """A topic for each user must not eat the memory."""
    config = RedisEventConfig(maxlen=1000)
    producer._trimmer._trimming = dict.fromkeys(  # type: ignore[assignment]
        b"%d" % number for number in range(25_000)
    )
    for number in range(25_000):
        producer._trimmer.appended(b"%d" % number, 1, config)
    assert len(producer._trimmer._left) <= 10_000
    producer._trimmer._trimming = {}
