"""What emitting to Redis Streams stores, and what each outcome means."""

import asyncio
import gc
import sys
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from brokers.redis import Redis
from brokers.redis_access import RedisAccess
from dispytch import (
    ConfigError,
    ConnectError,
    EmitContext,
    EmitRejected,
    EmitUnknown,
    EventEmitter,
    ProducerTimeout,
    Receipt,
    Subscription,
)
from dispytch.testing.conformance.flow import no_tasks_left
from dispytch_redis import RedisEventConfig, RedisProducer
from plugins.redis.emitting import (
    Note,
    ids,
    out,
    payloads,
    producing,
    settings,
    streams,
    until,
)

pytest.importorskip("redis")

from dispytch_redis import RedisConsumer
from dispytch_redis.keys import Keys
from dispytch_redis.topics import Topics
from dispytch_redis.wire import Wire

pytestmark = pytest.mark.redis

SECRET = "s3cret-payload"


@pytest.fixture
async def emitter(redis_broker: RedisAccess) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(redis_broker.url, timeout=60) as emitter:
        yield emitter


def producer_of(emitter: EventEmitter) -> RedisProducer:
    assert isinstance(emitter.producer, RedisProducer)
    return emitter.producer


def linked(emitter: EventEmitter) -> bool:
    return producer_of(emitter)._link.wire is not None


def wire_of(emitter: EventEmitter) -> Wire:
    wire = producer_of(emitter)._link.wire
    assert wire is not None
    return wire


# What is stored


async def test_a_receipt_tells_where_the_event_is(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """The stream of its key's shard, and the id of its entry."""
    event = Note(to=unique_name, lane="user é")
    receipt = await emitter.emit(event)
    shard = zlib.crc32("user é".encode()) % 16
    stream = f"dispytch:stream:{unique_name}:{shard}"
    (entry,) = redis_broker.entries(stream)
    assert receipt == Receipt(event.id, unique_name, "redis", {"stream": stream, "id": entry.id})
    assert entry.fields[b"key"] == "user é".encode()
    assert ids(redis_broker, unique_name) == [event.id]


async def test_topics_may_have_any_characters(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Those that separate the parts of our keys are percent-encoded, so that none meets another."""
    topics = [f"{unique_name}{rest}" for rest in (":1", "%3A1", " é\n", "{x}", ":1:1")]
    receipts = [await emitter.emit(Note(to=topic)) for topic in topics]
    found = {receipt.details["stream"] for receipt in receipts}
    assert len(found) == len(topics)
    for receipt in receipts:
        assert redis_broker.call("XLEN", receipt.details["stream"]) == 1


async def test_headers_are_stored_under_their_names(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """In order, also twice, apart from our own fields; those of a middleware win."""

    async def middleware(
        ctx: EmitContext, call_next: Callable[[EmitContext], Awaitable[Receipt]]
    ) -> Receipt:
        ctx.headers |= {"who": "middleware", "trace": b"\xff"}
        return await call_next(ctx)

    config = RedisEventConfig(
        headers=[("payload", "p"), ("key", b"\x00"), ("twice", "1"), ("twice", "2"), ("who", "c")]
    )
    url = redis_broker.url
    async with EventEmitter.from_url(url, middleware=[middleware]) as emitter:
        await emitter.emit(Note(to=unique_name), config=config)
    (stream,) = streams(redis_broker, unique_name)
    ((_, fields),) = redis_broker.call("XRANGE", stream, "-", "+")
    assert fields[::2] == [
        b"payload", b"key", b"header:payload", b"header:key", b"header:twice", b"header:twice",
        b"header:who", b"header:trace",
    ]  # fmt: skip
    assert fields[5::2] == [b"p", b"\x00", b"1", b"2", b"middleware", b"\xff"]


@pytest.mark.parametrize("key", [b"", b"\xff\x00", b"a\r\nb"])
async def test_a_key_is_any_bytes(redis_broker: RedisAccess, unique_name: str, key: bytes) -> None:
    """An empty one is a key, too."""
    config = RedisEventConfig(partition_key=key)
    async with producing(redis_broker.url) as producer:
        for _ in range(3):
            await producer.send_message(out(unique_name, b"", config=config))
    (stream,) = streams(redis_broker, unique_name)
    assert stream.endswith(f":{zlib.crc32(key) % 16}")
    entries = redis_broker.entries(stream)
    assert [entry.fields for entry in entries] == [{b"payload": b"", b"key": key}] * 3


async def test_events_without_a_key_are_spread(redis_broker: RedisAccess, unique_name: str) -> None:
    """Each in turn, so that every member of a group gets some."""
    async with producing(redis_broker.url, shards=4) as producer:
        for _ in range(8):
            await producer.send_message(out(unique_name))
    assert [redis_broker.call("XLEN", stream) for stream in streams(redis_broker, unique_name)] == [
        2, 2, 2, 2,
    ]  # fmt: skip


async def test_what_was_added_by_hand_arrives(redis_broker: RedisAccess, unique_name: str) -> None:
    """Its fields are headers; with a payload and a key of our names it is as ours are."""
    consumer = RedisConsumer(settings(redis_broker.url, shards=1))
    await consumer.start()
    await consumer.subscribe([Subscription(unique_name, "g")])
    stream = f"dispytch:stream:{unique_name}:0"
    redis_broker.call("XADD", stream, "*", "user", "7", "user", "8")
    redis_broker.call(
        "XADD", stream, "*", "payload", "{}", "key", b"\xff", "expires_ms", "9" * 5000
    )
    taken: list[Any] = []
    async with asyncio.timeout(10):
        while len(taken) < 2:
            taken += await consumer.receive(2)
    assert [(each.payload, each.key, each.headers) for each in taken] == [
        (b"", None, (("user", b"7"), ("user", b"8"))),
        (b"{}", "\udcff", (("expires_ms", b"9" * 5000),)),
    ]
    await consumer.stop()


# Many at once


@pytest.mark.parametrize("count", [1_000, 10_000])
async def test_many_at_once_all_succeed(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str, count: int
) -> None:
    """With the defaults, over one connection, each stored once."""
    events = [Note(to=unique_name, lane=str(number % 100)) for number in range(count)]
    before = redis_broker.call("INFO", "clients")
    receipts = await asyncio.gather(*(emitter.emit(event) for event in events))
    assert [receipt.event_id for receipt in receipts] == [event.id for event in events]
    assert sorted(ids(redis_broker, unique_name)) == sorted(event.id for event in events)
    after = redis_broker.call("INFO", "clients")
    assert after.split(b"\r\n")[1] == before.split(b"\r\n")[1]  # connected_clients


async def test_awaited_one_after_the_other_a_keys_events_are_in_order(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Beside those of other keys."""
    events = [[Note(to=unique_name, lane=str(lane)) for _ in range(50)] for lane in range(20)]

    async def emit(lane: list[Note]) -> None:
        for event in lane:
            await emitter.emit(event)

    await asyncio.gather(*(emit(lane) for lane in events))
    places = {id_: place for place, id_ in enumerate(ids(redis_broker, unique_name))}
    for lane in events:
        found = [places[event.id] for event in lane]
        assert found == sorted(found)


async def test_a_new_topic_is_made_known_once(redis_broker: RedisAccess, unique_name: str) -> None:
    """Whoever of many emitters at once is the first; its shards are those of that one."""
    redis_broker.call("DEL", "dispytch:topics:new")
    urls = [f"{redis_broker.url}?shards={shards}" for shards in (4, 8)]
    async with (
        EventEmitter.from_url(urls[0]) as one,
        EventEmitter.from_url(urls[1]) as two,
    ):
        receipts = await asyncio.gather(
            *(
                emitter.emit(Note(to=unique_name, lane=str(n)))
                for n in range(100)
                for emitter in (one, two)
            )
        )
    shards = int(redis_broker.call("HGET", "dispytch:topics", unique_name))
    assert shards in {4, 8}
    assert {int(each.details["stream"].rpartition(":")[2]) for each in receipts} == set(
        range(shards)
    )
    news = redis_broker.entries("dispytch:topics:new")
    assert [entry.fields for entry in news] == [{b"topic": unique_name.encode()}]


# Topics that were lost, and many


async def test_a_server_that_came_back_empty_is_told_its_topics(
    own_redis: Redis, unique_name: str
) -> None:
    """With the first event after the connection is renewed: who looks for topics finds them."""
    with own_redis.proxy() as proxy:
        url = own_redis.url_for(port=proxy.port)
        async with EventEmitter.from_url(url) as emitter:
            await emitter.emit(Note(to=unique_name))
            own_redis.call("FLUSHALL")
            proxy.reset()
            await until(lambda: not linked(emitter))
            await emitter.emit(Note(to=unique_name))
    assert own_redis.call("HGET", "dispytch:topics", unique_name) == b"16"


async def test_a_topic_is_made_known_again_after_a_while(
    own_redis: Redis, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a server that lost its data behind an open connection; with the shards it has by then."""
    async with EventEmitter.from_url(own_redis.url) as emitter:
        await emitter.emit(Note(to=unique_name))
        own_redis.call("FLUSHALL")
        own_redis.call("HSET", "dispytch:topics", unique_name, 1)
        later = time.monotonic() + 31
        monkeypatch.setattr(time, "monotonic", lambda: later)
        receipt = await emitter.emit(Note(to=unique_name))
    assert receipt.details["stream"] == f"dispytch:stream:{unique_name}:0"


async def test_a_topic_that_is_lost_keeps_its_shards(
    own_redis: Redis, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an emitter whose URL has another number: listeners go by the one they know."""
    own_redis.call("HSET", "dispytch:topics", unique_name, 4)
    async with EventEmitter.from_url(own_redis.url) as emitter:
        await emitter.emit(Note(to=unique_name))
        own_redis.call("FLUSHALL")
        later = time.monotonic() + 31
        monkeypatch.setattr(time, "monotonic", lambda: later)
        await emitter.emit(Note(to=unique_name))
    assert own_redis.call("HGET", "dispytch:topics", unique_name) == b"4"


async def test_many_topics_do_not_eat_memory() -> None:
    """A topic for each user: those that were used last are remembered, and cost little."""

    class Known:
        """A server that knows all topics."""

        def call(self, *_: Any) -> "asyncio.Future[Any]":
            reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            reply.set_result(256)
            return reply

    topics, wire = Topics(Keys("dispytch"), 256), Known()

    async def learn(first: int, end: int) -> None:
        names = [f"user.{number}.events" for number in range(first, end)]
        await asyncio.gather(*(topics.learn(name, wire) for name in names))  # type: ignore[arg-type]

    tracemalloc.start()
    try:
        await learn(0, 2000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()
    for first in range(2000, 30_000, 1000):
        await learn(first, first + 1000)
    assert len(topics._known) <= 10_000
    assert not topics._learning


# Outcomes


@pytest.mark.parametrize(
    ("state", "code"),
    [("out_of_memory", "OutOfMemory"), ("read_only", "ReadOnly"), ("failing_disk", "MISCONF")],
)
@pytest.mark.parametrize("is_known", [True, False])
async def test_a_server_that_takes_nothing_for_now_rejects(
    own_redis: Redis, unique_name: str, state: str, code: str, is_known: bool
) -> None:
    """The topic known or not: nothing is stored, and it is worth another try."""
    async with EventEmitter.from_url(own_redis.url) as emitter:
        if is_known:
            await emitter.emit(Note(to=unique_name))
        with getattr(own_redis, state)(), pytest.raises(EmitRejected, match=code) as caught:
            await emitter.emit(Note(to=unique_name, text=SECRET))
        assert caught.value.retriable
        assert SECRET not in str(caught.value)
        await emitter.emit(Note(to=unique_name))
    assert len(payloads(own_redis, unique_name)) == 1 + is_known


@pytest.mark.parametrize(
    ("command", "told"), [("evalsha", "the 'evalsha' command"), ("xadd", "executing the script")]
)
async def test_a_right_that_is_missing_rejects(
    own_redis: Redis, unique_name: str, command: str, told: str
) -> None:
    """For good, and without the user's name."""
    own_redis.call("ACL", "SETUSER", "emits", "on", ">s3cret", "~*", "+@all", f"-{command}")
    url = own_redis.url_for(user="emits", password="s3cret")
    async with EventEmitter.from_url(url) as emitter:
        with pytest.raises(EmitRejected, match=told) as caught:
            await emitter.emit(Note(to=unique_name, text=SECRET))
    assert not caught.value.retriable
    chain = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert not any(secret in chain for secret in ("emits", "s3cret", SECRET))
    assert payloads(own_redis, unique_name) == []


async def test_a_key_that_is_no_stream_rejects(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Others are stored meanwhile."""
    receipt = await emitter.emit(Note(to=unique_name))
    redis_broker.call("SET", receipt.details["stream"], "no stream")
    with pytest.raises(EmitRejected, match="WRONGTYPE") as caught:
        await emitter.emit(Note(to=unique_name, text=SECRET))
    assert not caught.value.retriable
    assert SECRET not in str(caught.value)
    await emitter.emit(Note(to=unique_name, lane="1"))


async def test_a_replica_that_loads_rejects_for_now(own_redis: Redis, unique_name: str) -> None:
    """It answers and hangs up on nobody, but redis-py does: the emit after that is stored."""
    async with producing(own_redis.url) as producer:
        await producer.send_message(out(unique_name))
        wire = producer._link.wire
        assert wire is not None
        from redis.exceptions import BusyLoadingError

        real = wire._connection.read_response

        async def loading(**_: Any) -> Any:
            wire._connection.read_response = real  # type: ignore[method-assign]
            await real(disable_decoding=True)
            await wire._connection.disconnect(nowait=True)
            raise BusyLoadingError("Redis is loading the dataset in memory")

        wire._connection.read_response = loading  # type: ignore[method-assign, assignment]
        await producer.send_message(out(unique_name))  # the reader is in the real one already
        with pytest.raises(EmitRejected, match="loading") as caught:
            await producer.send_message(out(unique_name))
        assert caught.value.retriable
        await producer.send_message(out(unique_name))


@pytest.mark.parametrize("size", [1024, 1025])
async def test_what_is_too_large_is_rejected(
    redis_broker: RedisAccess, unique_name: str, size: int
) -> None:
    """Before it is sent; the limit itself is not too large."""
    async with producing(redis_broker.url, max_event_bytes=1024) as producer:
        event = out(unique_name, b"x" * size)
        if size == 1024:
            await producer.send_message(event)
            return
        with pytest.raises(EmitRejected, match=r"1,025 bytes, the limit is 1,024") as caught:
            await producer.send_message(event)
        assert not caught.value.retriable
        await producer.send_dead_letter(event)  # who emitted it had another limit


async def test_what_the_server_finds_too_large_is_not_stored(
    own_redis: Redis, unique_name: str
) -> None:
    """It hangs up on that; the emitter connects again, and others are stored."""
    own_redis.call("CONFIG", "SET", "proto-max-bulk-len", 1024 * 1024)
    try:
        async with EventEmitter.from_url(own_redis.url) as emitter:
            await emitter.emit(Note(to=unique_name))
            wire = wire_of(emitter)
            with pytest.raises((EmitRejected, EmitUnknown)) as caught:
                await emitter.emit(Note(to=unique_name, text="x" * 2_000_000))
            assert len(str(caught.value)) < 200
            await wire.ended
            await emitter.emit(Note(to=unique_name))
    finally:
        own_redis.call("CONFIG", "SET", "proto-max-bulk-len", 512 * 1024 * 1024)
    assert len(payloads(own_redis, unique_name)) == 2


@pytest.mark.parametrize(
    "event",
    [out("\ud800"), out("t", key="\ud800"), out("t", headers={"\ud800": "v"})],
    ids=["topic", "key", "header"],
)
async def test_what_can_not_be_encoded_is_rejected(redis_broker: RedisAccess, event: Any) -> None:
    """It could never be sent; and the connection is as good as before."""
    async with producing(redis_broker.url) as producer:
        with pytest.raises(EmitRejected, match="UTF-8") as caught:
            await producer.send_message(event)
        assert not caught.value.retriable
        await producer.ping()


# Deadlines and cancelling


async def test_a_deadline_without_a_connection_rejects(own_redis: Redis, unique_name: str) -> None:
    """An emit that waited in vain tells why there was none, and is not made up for."""
    with own_redis.proxy() as proxy:
        url = f"{own_redis.url_for(port=proxy.port)}?reconnect_interval=0.05"
        async with EventEmitter.from_url(url, timeout=0.5) as emitter:
            await emitter.emit(Note(to=unique_name))
            wire = wire_of(emitter)
            proxy.refuse()
            await wire.ended
            events = [Note(to=unique_name) for _ in range(10)]
            results = await asyncio.gather(*map(emitter.emit, events), return_exceptions=True)
            assert {type(result) for result in results} == {EmitRejected}
            assert all("can't connect" in str(each) and each.retriable for each in results)  # type: ignore[union-attr]
            proxy.restore()
            await until(lambda: linked(emitter))
            await emitter.emit(Note(to=unique_name))
    assert len(payloads(own_redis, unique_name)) == 2


async def test_frozen_emits_end_at_their_deadline_and_are_stored_once_at_most(
    own_redis: Redis, unique_name: str
) -> None:
    """Nothing is sent a second time; after the thaw the same connection goes on."""
    async with EventEmitter.from_url(own_redis.url, timeout=0.5) as emitter:
        await emitter.emit(Note(to=unique_name))
        wire = wire_of(emitter)
        own_redis.freeze()
        began = time.monotonic()
        events = [Note(to=unique_name, lane=str(number)) for number in range(200)]
        results = await asyncio.gather(*map(emitter.emit, events), return_exceptions=True)
        assert time.monotonic() - began < 3
        assert {type(result) for result in results} == {ProducerTimeout}
        own_redis.thaw()
        last = Note(to=unique_name)
        await emitter.emit(last)
        assert wire_of(emitter) is wire
    stored = ids(own_redis, unique_name)
    assert len(stored) == len(set(stored)) == 202


async def test_frozen_events_of_a_new_topic_are_not_sent(
    own_redis: Redis, unique_name: str
) -> None:
    """They wait until their topic is known; that they are not stored is certain."""
    async with EventEmitter.from_url(own_redis.url, timeout=0.5) as emitter:
        own_redis.freeze()
        results = await asyncio.gather(
            *(emitter.emit(Note(to=unique_name)) for _ in range(5)), return_exceptions=True
        )
        own_redis.thaw()
        assert {type(result) for result in results} == {EmitRejected}
        assert "does not answer" in str(results[0])
        await emitter.emit(Note(to=unique_name))
    assert len(payloads(own_redis, unique_name)) == 1


async def test_a_black_hole_is_noticed(own_redis: Redis, unique_name: str) -> None:
    """After reply_timeout what was sent is unknown; what comes then waits for a connection."""
    with own_redis.proxy() as proxy:
        url = own_redis.url_for(port=proxy.port)
        url = f"{url}?reply_timeout=0.5&reconnect_interval=0.05&connect_timeout=0.5"
        async with EventEmitter.from_url(url, timeout=20) as emitter:
            await emitter.emit(Note(to=unique_name))
            proxy.black_hole()
            lost = Note(to=unique_name)
            with pytest.raises(EmitUnknown, match=r"no reply for 0\.5 s") as caught:
                await emitter.emit(lost)
            assert caught.value.retriable
            assert not isinstance(caught.value, ProducerTimeout)
            waiting = [asyncio.create_task(emitter.emit(Note(to=unique_name))) for _ in range(10)]
            await asyncio.sleep(0)
            proxy.restore()
            assert len(await asyncio.gather(*waiting)) == 10
    assert lost.id not in ids(own_redis, unique_name)
    assert len(payloads(own_redis, unique_name)) == 11


async def test_cancelled_before_it_is_sent_it_is_not_stored(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Those beside it are."""
    await emitter.emit(Note(to=unique_name))
    tasks = [asyncio.create_task(emitter.emit(Note(to=unique_name))) for _ in range(10)]
    await asyncio.sleep(0)  # each has given its command, and none is sent
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in results[::2]} == {asyncio.CancelledError}
    assert {type(each) for each in results[1::2]} == {Receipt}
    assert len(payloads(redis_broker, unique_name)) == 1 + 5


async def test_cancelled_after_it_was_sent_others_keep_their_receipts(
    own_redis: Redis, unique_name: str
) -> None:
    """Its reply is nobody else's."""
    async with EventEmitter.from_url(own_redis.url) as emitter:
        await emitter.emit(Note(to=unique_name))
        own_redis.freeze()
        tasks = [asyncio.create_task(emitter.emit(Note(to=unique_name))) for _ in range(10)]
        wire = wire_of(emitter)
        await until(lambda: len(wire._under_way) == 10)
        for task in tasks[::2]:
            task.cancel()
        own_redis.thaw()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        last = await emitter.emit(Note(to=unique_name))
    receipts = [each for each in results if isinstance(each, Receipt)] + [last]
    assert len(receipts) == 6
    stored = dict(
        zip(ids(own_redis, unique_name), own_redis.entries(last.details["stream"]), strict=True)
    )
    assert len(stored) == 12
    for receipt in receipts:
        assert stored[receipt.event_id].id == receipt.details["id"]


# Starting and stopping


async def test_stopping_waits_for_what_is_under_way(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """Each has its outcome before the connection is closed."""
    tasks = asyncio.all_tasks()
    async with producing(redis_broker.url) as producer:
        sends = [asyncio.create_task(producer.send_message(out(unique_name))) for _ in range(500)]
        await asyncio.sleep(0)
        await asyncio.gather(producer.stop(), producer.stop())
        await asyncio.gather(*sends)
        with pytest.raises(EmitRejected, match="not started"):
            await producer.send_message(out(unique_name))
    assert len(payloads(redis_broker, unique_name)) == 500
    await no_tasks_left(tasks)


async def test_stopping_a_frozen_one_takes_seconds(
    own_redis: Redis, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is unknown then, what waited for its topic was not sent."""
    monkeypatch.setattr("dispytch_redis.sending._FLUSH", 0.3)
    tasks = asyncio.all_tasks()
    async with producing(own_redis.url) as producer:
        await producer.send_message(out(unique_name))
        own_redis.freeze()
        sends = [asyncio.create_task(producer.send_message(out(unique_name))) for _ in range(5)]
        new = [asyncio.create_task(producer.send_message(out(f"{unique_name}-new")))]
        await asyncio.sleep(0)
        began = time.monotonic()
        await producer.stop()
        assert time.monotonic() - began < 3
        results = await asyncio.gather(*sends, *new, return_exceptions=True)
        own_redis.thaw()
    assert [type(result) for result in results] == [EmitUnknown] * 5 + [EmitRejected]
    assert "it was closed" in str(results[0])
    assert payloads(own_redis, f"{unique_name}-new") == []
    await no_tasks_left(tasks)


async def test_not_started_it_sends_nothing(redis_broker: RedisAccess, unique_name: str) -> None:
    """Neither is there anything to stop, nor to ask."""
    producer = RedisProducer(settings(redis_broker.url))
    await producer.stop()
    await producer.flush()
    with pytest.raises(EmitRejected, match="not started") as caught:
        await producer.send_message(out(unique_name))
    assert caught.value.retriable
    with pytest.raises(ConnectError):
        await producer.ping()


async def test_stopped_it_can_be_started_again(redis_broker: RedisAccess, unique_name: str) -> None:
    """As often as one likes."""
    producer = RedisProducer(settings(redis_broker.url))
    for _ in range(3):
        await producer.start()
        await producer.start()
        await producer.send_message(out(unique_name))
        await producer.ping()
        await producer.stop()
    assert len(payloads(redis_broker, unique_name)) == 3


def test_a_producer_goes_on_in_another_loop(redis_broker: RedisAccess, unique_name: str) -> None:
    """Stopped in the first one or not: a loop that is gone leaves nothing that hinders."""
    emitter = EventEmitter.from_url(redis_broker.url)

    async def emit(*, stop: bool) -> None:
        async with asyncio.timeout(20):
            await emitter.start()
            await asyncio.gather(*(emitter.emit(Note(to=unique_name)) for _ in range(5)))
            under_way = [asyncio.create_task(emitter.emit(Note(to=unique_name))) for _ in range(5)]
            await asyncio.sleep(0)
            if stop:
                await emitter.stop()
                await asyncio.gather(*under_way)

    asyncio.run(emit(stop=True))
    asyncio.run(emit(stop=False))
    asyncio.run(emit(stop=True))
    asyncio.run(emit(stop=False))
    asyncio.run(emitter.producer.stop())  # nothing of it is here
    assert len(payloads(redis_broker, unique_name)) >= 25


_FORKING = """
import asyncio, os, sys
from dispytch import EmitRejected, EventBase, EventEmitter

class Note(EventBase):
    __topic__ = sys.argv[2]
    __event_type__ = "note"

emitter = EventEmitter.from_url(sys.argv[1], timeout=10)

async def emit_in_child():
    try:
        await emitter.emit(Note())
    except EmitRejected:
        async with emitter:
            await emitter.emit(Note())
            return 7

async def emit_and_fork():
    async with emitter:
        await emitter.emit(Note())
        child = os.fork()
        if not child:
            os._exit(asyncio.run(emit_in_child()) or 1)
        await asyncio.gather(*(emitter.emit(Note()) for _ in range(5)))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        await emitter.emit(Note())
        print(os.waitstatus_to_exitcode(status))

asyncio.run(emit_and_fork())
"""


async def test_a_forked_process_makes_a_connection_of_its_own(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """The parent's, used by both, would mix up their replies."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FORKING, redis_broker.url, unique_name,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        printed, _ = await process.communicate()
    assert printed == b"7\n"
    assert len(payloads(redis_broker, unique_name)) == 1 + 5 + 1 + 1


async def test_it_takes_only_a_connection_for_streams(redis_broker: RedisAccess) -> None:
    """A URL is made into one first."""
    with pytest.raises(ConfigError, match="RedisConnection"):
        RedisProducer(redis_broker.url)  # type: ignore[arg-type]
