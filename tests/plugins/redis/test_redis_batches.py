"""emit_many to Redis: many events in few steps, in order by key, an outcome of each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from brokers.redis import Redis
from brokers.redis_access import RedisAccess
from dispytch import (
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    EventEmitter,
    ProducerTimeout,
    Receipt,
)
from dispytch_redis import RedisEventConfig
from plugins.redis.emitting import Note, commands, ids, out, payloads, producing, streams, until

pytest.importorskip("redis")

pytestmark = pytest.mark.redis


@pytest.fixture
async def emitter(redis_broker: RedisAccess) -> AsyncIterator[EventEmitter]:
    async with EventEmitter.from_url(redis_broker.url, timeout=60) as emitter:
        yield emitter


async def results_of(emitter: EventEmitter, events: list[Note]) -> list[Any]:
    """The outcomes of a batch of which some fail."""
    with pytest.raises(EmitManyError) as caught:
        await emitter.emit_many(events)
    for event, result in zip(events, caught.value.results, strict=True):
        if not isinstance(result, Receipt):
            assert result.event is event  # type: ignore[attr-defined]
    return list(caught.value.results)


def kinds(results: list[Any]) -> list[type]:
    return [type(result) for result in results]


async def test_ten_thousand_are_stored_once_and_in_order(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Those of a key one after the other, and each receipt tells where its event is."""
    events = [
        Note(to=unique_name, lane=f"user {number % 50}", number=number) for number in range(10_000)
    ]
    receipts = await emitter.emit_many(events)
    entries = {
        (stream, entry.id): entry
        for stream in streams(redis_broker, unique_name)
        for entry in redis_broker.entries(stream)
    }
    assert len(entries) == len(receipts) == 10_000
    places = [(each.details["stream"], each.details["id"]) for each in receipts]
    assert set(places) == entries.keys()
    ids: dict[str, list[tuple[str, int, int]]] = {}
    for event, place in zip(events, places, strict=True):
        assert entries[place].fields[b"key"] == event.lane.encode()
        assert event.id.encode() in entries[place].fields[b"payload"]
        milliseconds, _, number = place[1].partition("-")
        ids.setdefault(event.lane, []).append((place[0], int(milliseconds), int(number)))
    assert all(found == sorted(found) for found in ids.values())


async def test_a_batch_takes_few_steps(own_redis: Redis, unique_name: str) -> None:
    """Not one for each event: that is what batches are for."""
    events = [Note(to=unique_name, lane=str(number % 50)) for number in range(1000)]
    async with EventEmitter.from_url(own_redis.url) as emitter:
        before = commands(own_redis, "evalsha")
        await emitter.emit_many(events)
        assert commands(own_redis, "evalsha") - before <= 16 + 1


async def test_large_ones_go_in_several_steps(redis_broker: RedisAccess, unique_name: str) -> None:
    """The server must not be held up by one that is huge; small and large are kept in order."""
    sizes = [10, 300_000, 10, 2_000_000, 10, 16 * 1024 * 1024, 10, 300_000]
    async with producing(redis_broker.url) as producer:
        batch = [out(unique_name, b"x" * size, "k") for size in sizes]
        outcomes = await producer.send_messages(batch)
        assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    assert [len(payload) for payload in payloads(redis_broker, unique_name)] == sizes


async def test_many_headers_go_as_they_do_alone(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Lua hands on 8,000 values and no more; whoever has more goes without it."""
    headers = [(f"header {number}", "v") for number in range(5000)]
    many = RedisEventConfig(headers=headers)
    few = RedisEventConfig(headers=headers[:900])
    events = [
        Note(to=unique_name, number=number, __backend_config__=config)
        for number, config in enumerate([None, many, None, few, few, few, None, many])
    ]
    await emitter.emit_many(events)
    (stream,) = streams(redis_broker, unique_name)
    assert [len(entry.fields) for entry in redis_broker.entries(stream)] == [
        2, 5002, 2, 902, 902, 902, 2, 5002,
    ]  # fmt: skip


# Failures


async def test_a_failure_holds_back_later_events_of_its_key(
    redis_broker: RedisAccess, unique_name: str
) -> None:
    """Also those of other topics; never those of other keys, nor what has none."""
    other = f"{unique_name}-other"
    batch = [
        out(unique_name, b"0", "a"),
        out(unique_name, b"x" * 2000, "a"),
        out(unique_name, b"2", "a"),
        out(other, b"3", "a"),
        out(unique_name, b"4", "b"),
        out(unique_name, b"x" * 2000),
        out(unique_name, b"6"),
        out(unique_name, b"7", "c", headers={"\ud800": "v"}),
        out(unique_name, b"8", "c"),
        out(unique_name, b"9", "\ud800"),
        out(unique_name, b"10"),
    ]
    async with producing(redis_broker.url, max_event_bytes=1024) as producer:
        outcomes = await producer.send_messages(batch)
    assert {index for index, each in enumerate(outcomes) if isinstance(each, EmitRejected)} == {
        1,
        2,
        3,
        5,
        7,
        8,
        9,
    }
    assert sorted(payloads(redis_broker, unique_name)) == [b"0", b"10", b"4", b"6"]
    assert payloads(redis_broker, other) == []


async def test_a_stream_that_is_none_fails_alone(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Each of its events is rejected and others are stored; keys of a failure are held back."""
    await emitter.emit(Note(to=unique_name))
    (stream,) = streams(redis_broker, unique_name)
    redis_broker.call("SET", stream, "no stream")
    lanes = ["a", "1", "2", "a"]
    results = await results_of(
        emitter, [Note(to=unique_name, lane=lane, number=n) for n, lane in enumerate(lanes)]
    )
    assert kinds(results) == [EmitRejected, Receipt, Receipt, EmitRejected]
    assert "WRONGTYPE" in str(results[0])
    assert not results[0].retriable


async def test_a_stream_that_fails_in_the_middle_tells_which_are_stored(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """What was appended before the failure has its receipt, in the same step too."""
    await emitter.emit(Note(to=unique_name))
    (stream,) = streams(redis_broker, unique_name)
    redis_broker.call("XADD", stream, f"{2**64 - 1}-{2**64 - 3}", "f", "v")  # two ids are left
    results = await results_of(emitter, [Note(to=unique_name, number=n) for n in range(5)])
    assert kinds(results) == [Receipt, Receipt, EmitRejected, EmitRejected, EmitRejected]
    assert redis_broker.call("XLEN", stream) == 4
    redis_broker.call("DEL", stream)


@pytest.mark.parametrize("state", ["out_of_memory", "read_only", "failing_disk"])
async def test_a_server_that_takes_nothing_rejects_all(
    own_redis: Redis, unique_name: str, state: str
) -> None:
    """For now: the same batch may succeed later, and does."""
    events = [Note(to=unique_name, lane=str(number % 7)) for number in range(50)]
    async with EventEmitter.from_url(own_redis.url) as emitter:
        await emitter.emit(Note(to=unique_name))
        with getattr(own_redis, state)():
            results = await results_of(emitter, events)
        assert {type(result) for result in results} == {EmitRejected}
        assert all(result.retriable for result in results)
        await emitter.emit_many(events)
    assert len(payloads(own_redis, unique_name)) == 51


async def test_a_connection_lost_in_the_middle_leaves_true_outcomes(
    own_redis: Redis, unique_name: str
) -> None:
    """Receipts are stored, rejections not; of a key only the first ones, and nothing twice."""
    with own_redis.proxy() as proxy:
        url = f"{own_redis.url_for(port=proxy.port)}?shards=2"
        async with EventEmitter.from_url(url, timeout=30) as emitter:
            await emitter.emit(Note(to=unique_name, lane="first"))
            events = [
                Note(to=unique_name, lane=str(n % 40), number=n, text="x" * 2000)
                for n in range(5000)
            ]
            emitting = asyncio.create_task(results_of(emitter, events))
            await until(lambda: len(payloads(own_redis, unique_name)) > 500)
            proxy.reset()
            results = await emitting
            await emitter.emit(Note(to=unique_name, lane="last"))
    assert set(kinds(results)) == {Receipt, EmitUnknown, EmitRejected}
    stored = Counter(ids(own_redis, unique_name))
    assert set(stored.values()) == {1}
    failed: set[str] = set()
    for event, result in zip(events, results, strict=True):
        assert isinstance(result, EmitUnknown) or isinstance(result, Receipt) == bool(
            stored[event.id]
        )
        assert not (event.lane in failed and isinstance(result, Receipt))
        if isinstance(result, Exception):
            failed.add(event.lane)
    assert len(failed) <= 40


async def test_a_deadline_in_the_middle_leaves_true_outcomes(
    own_redis: Redis, unique_name: str
) -> None:
    """What was sent is unknown, what was not is rejected, and is not sent later."""
    events = [Note(to=unique_name, lane=str(n % 3), number=n) for n in range(3000)]
    async with EventEmitter.from_url(own_redis.url, timeout=1) as emitter:
        await emitter.emit(Note(to=unique_name))
        own_redis.freeze()
        results = await results_of(emitter, events)
        own_redis.thaw()
        await emitter.emit(Note(to=unique_name, lane="last"))  # what was sent before has arrived
    assert set(kinds(results)) == {ProducerTimeout, EmitRejected}
    assert all(result.retriable for result in results)
    outcomes = {event.id: each for event, each in zip(events, results, strict=True)}
    stored = [id_ for id_ in ids(own_redis, unique_name) if id_ in outcomes]
    assert len(set(stored)) == len(stored)
    assert all(isinstance(outcomes[id_], EmitUnknown) for id_ in stored)


async def test_stopped_meanwhile_each_has_an_error_of_its_own(
    own_redis: Redis, unique_name: str
) -> None:
    """A batch that waits for a connection does so no more when its producer is stopped."""
    with own_redis.proxy() as proxy:
        async with producing(own_redis.url_for(port=proxy.port), shards=1) as producer:
            await producer.send_messages([out(unique_name, b"first", "k")])
            wire = producer._link.wire
            proxy.refuse()
            assert wire is not None
            await wire.ended
            batch = [out(unique_name, b"%d" % n, str(n)) for n in range(3)]
            sending = asyncio.create_task(producer.send_messages(batch))
            await asyncio.sleep(0)
            await producer._link.close()
            outcomes = await sending
    assert kinds(list(outcomes)) == [EmitRejected] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert payloads(own_redis, unique_name) == [b"first"]


async def test_a_batch_of_many_new_topics_makes_each_known(
    emitter: EventEmitter, redis_broker: RedisAccess, unique_name: str
) -> None:
    """Once."""
    events = [Note(to=f"{unique_name}-{number % 200}") for number in range(400)]
    await emitter.emit_many(events)
    known = redis_broker.call("HKEYS", "dispytch:topics")
    assert sum(name.startswith(unique_name.encode() + b"-") for name in known) == 200
