"""Settling, putting off, expiring, beginning; no group; what the backlog and problems are."""

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from brokers.redis import Redis
from brokers.redis_access import RedisAccess
from dispytch import (
    ConfigError,
    ConnectError,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    RetryLater,
    SettleError,
    Subscription,
)

pytest.importorskip("redis")

from dispytch_redis import RedisConsumer
from dispytch_redis.script import FOLLOW, READ
from plugins.redis.receiving import (
    GROUP,
    Place,
    ack_all,
    attempts,
    nothing_more,
    numbered,
    payloads,
    take,
    until,
)

pytestmark = pytest.mark.redis

TOPIC = "orders"
MEGABYTE = 1024 * 1024


@pytest.fixture
def place(redis_broker: RedisAccess, unique_name: str) -> Place:
    return Place(redis_broker, unique_name, shards=4, reconnect_interval=0.05)


@pytest.fixture
def own_place(own_redis: Redis, unique_name: str) -> Place:
    return Place(own_redis, unique_name, shards=4, reconnect_interval=0.05)


# Settling


async def test_what_is_nacked_comes_again_at_once(place: Place) -> None:
    """As the next attempt each time, with the headers it was given back with."""
    await place.emit(TOPIC, b"0", key="k", headers={"a": "1"})
    async with place.subscribed(TOPIC) as consumer:
        for attempt in range(1, 5):
            (delivery,) = await take(consumer, 1)
            assert delivery.attempt == attempt
            assert delivery.headers[0] == ("a", b"1")
            assert len(delivery.headers) == attempt
            delivery.headers = (*delivery.headers, ("b", b"%d" % attempt))
            await delivery.nack()
        (delivery,) = await take(consumer, 1)
        await delivery.ack()
        assert await consumer.backlog() == 0


async def test_a_delivery_is_settled_once(place: Place) -> None:
    """A second time is an error, whatever the first was."""
    await place.emit(TOPIC, *numbered(3), key="k")
    async with place.subscribed(TOPIC) as consumer:
        taken = await take(consumer, 3)
        await taken[0].ack()
        await taken[1].nack()
        await taken[2].nack(30)
        for each in taken:
            with pytest.raises(SettleError):
                await each.ack()
            with pytest.raises(SettleError):
                await each.nack(1)
        assert payloads(await take(consumer, 1)) == [b"1"]


async def test_thousands_that_are_put_off_come_once_and_not_early(place: Place) -> None:
    """Each after its own delay, by the server's clock, and with what it was given."""
    count = 2000
    await place.emit(TOPIC, *numbered(count))
    async with place.subscribed(TOPIC) as consumer:
        due: dict[bytes, float] = {}
        for each in await take(consumer, count):
            delay = random.uniform(0.2, 1.5)
            each.headers = (("n", each.payload),)
            due[each.payload] = time.monotonic() + delay
            asyncio.ensure_future(each.nack(delay))  # noqa: RUF006 - it ends before it is due
        came: dict[bytes, float] = {}
        async with asyncio.timeout(30):
            while len(came) < count:
                taken = await consumer.receive(500)
                now = time.monotonic()
                for each in taken:
                    assert each.payload not in came
                    assert (each.attempt, each.headers) == (2, (("n", each.payload),))
                    came[each.payload] = now
                await ack_all(taken)
        early = [payload for payload in due if came[payload] < due[payload]]
        assert early == []
        assert await consumer.backlog() == 0
    assert not [key for key in place.left() if ":later" in key]


async def test_retry_later_is_for_the_handler_that_asked(place: Place) -> None:
    """Through a listener: the others of the event don't run again."""

    class Paid(EventBase):
        __topic__ = TOPIC
        __event_type__ = "paid"

    came: list[tuple[str, int]] = []
    listener = EventListener.from_url(place.url(), group=GROUP)

    @listener.handler(Paid)
    async def once(event: Event[Paid]) -> None:
        came.append(("once", event.attempt))

    @listener.handler(Paid)
    async def twice(event: Event[Paid]) -> RetryLater | None:
        came.append(("twice", event.attempt))
        return RetryLater(0.1) if event.attempt < 3 else None

    async with listener, EventEmitter.from_url(place.url()) as emitter:
        await emitter.emit(Paid())
        await until(lambda: len(came) == 4)
        assert sorted(came) == [("once", 1), ("twice", 1), ("twice", 2), ("twice", 3)]
        async with asyncio.timeout(10):
            while await listener.consumer.backlog():  # noqa: ASYNC110 - only the server knows
                await asyncio.sleep(0.01)


# Expiring


async def test_expired_events_never_come_and_are_settled(place: Place) -> None:
    """Neither new, nor pending, nor put off."""
    async with place.subscribed(TOPIC) as first:
        await place.emit(TOPIC, *numbered(3), key="k", ttl=0.5)
        pending = await take(first, 3)
        await pending[0].nack(0.6)
    await place.emit(TOPIC, b"new", key="k", ttl=0.1)
    await place.emit(TOPIC, b"lasting", key="k")
    await asyncio.sleep(0.5)
    async with place.subscribed(TOPIC) as second:
        taken = await take(second, 1)
        assert payloads(taken) == [b"lasting"]
        await ack_all(taken)
        await nothing_more(second, 0.5)
        assert await second.backlog() == 0
    assert not [key for key in place.left() if ":later" in key]


# Beginning


async def test_a_new_group_begins_where_it_says(place: Place) -> None:
    """With the first event, with the next, or with the first since a time."""
    await place.emit(TOPIC, b"old", key="k")
    await asyncio.sleep(0.01)
    between = datetime.now(UTC).isoformat()
    await place.emit(TOPIC, b"new", key="k")
    begins = {"first": [b"old", b"new"], "latest": [], between: [b"new"]}
    for begin, expected in begins.items():
        async with place.subscribed(TOPIC, group=begin, begin=begin) as consumer:
            taken = await take(consumer, len(expected))
            assert payloads(taken) == expected
            await ack_all(taken)
            await nothing_more(consumer, 0.05)
    await place.emit(TOPIC, b"later", key="k")
    for begin in begins:  # they go on, whatever they say now
        async with place.subscribed(TOPIC, group=begin, begin="first") as consumer:
            assert payloads(await take(consumer, 1)) == [b"later"]


async def test_subscriptions_are_of_one_group(place: Place) -> None:
    """Two in one consumer are refused."""
    consumer = RedisConsumer(place.connection())
    await consumer.start()
    with pytest.raises(ConfigError, match="one group"):
        await consumer.subscribe([Subscription("a", "g"), Subscription("b", "h")])
    await consumer.stop()


# Without a group


async def test_without_a_group_it_begins_at_the_end_and_leaves_nothing(place: Place) -> None:
    """Each gets all that is emitted from then on; Redis keeps only what was emitted."""
    await place.emit("orders.eu", b"old", key="k")
    before = place.left()
    async with (
        place.subscribed("orders.*", group=None) as one,
        place.subscribed("orders.*", group=None) as two,
    ):
        await place.emit("orders.eu", *numbered(3), key="k")
        await place.emit("orders.us", *numbered(3, 6), key="k")
        for consumer in (one, two):
            taken = await take(consumer, 6)
            assert sorted(payloads(taken)) == numbered(6)
            assert await consumer.backlog() is None
            await taken[1].nack(0.05)
            await taken[0].nack()
            await ack_all(taken[2:])
            again = await take(consumer, 2)
            assert attempts(again) == [2, 2]
            await ack_all(again)
    streams = {key for key in place.left() if ":stream:orders.us" in key}
    assert place.left() == before | streams
    groups = [place.call("XINFO", "GROUPS", key) for key in place.left() if ":stream:" in key]
    assert groups.count([]) == len(groups)


async def test_without_a_group_a_topic_may_come_later(place: Place) -> None:
    """Subscribed to before anybody used it: it is registered, and nothing more."""
    async with place.subscribed(TOPIC, group=None) as consumer:
        assert place.left() == {place.keys.topics, place.keys.new_topics}
        await place.emit(TOPIC, b"0")
        assert payloads(await take(consumer, 1)) == [b"0"]


async def test_without_a_group_a_lost_connection_makes_no_gap(place: Place) -> None:
    """What is emitted meanwhile comes, once."""
    async with place.subscribed(TOPIC, group=None) as consumer:
        for start in range(0, 50, 10):
            await place.emit(TOPIC, *numbered(start, start + 5), key="k")
            wire = consumer._link.wire
            assert wire is not None
            wire.abort("a fault of the test")
            await place.emit(TOPIC, *numbered(start + 5, start + 10), key="k")
            assert payloads(await take(consumer, 10)) == numbered(start, start + 10)


# Backlog, problems


async def test_the_backlog_counts_what_waits_and_what_is_under_way(place: Place) -> None:
    """New, delivered, put off; over all shards; also of streams that are gone."""
    await place.emit(TOPIC, *numbered(30))
    async with place.subscribed(TOPIC) as consumer:
        assert await consumer.backlog() == 30
        taken = await take(consumer, 10)
        assert await consumer.backlog() == 30
        await ack_all(taken[:4])
        await taken[4].nack(30)
        await taken[5].nack()
        assert await consumer.backlog() == 26
        place.call("DEL", *(key for key in place.left() if ":stream:" in key))
        async with asyncio.timeout(10):
            while await consumer.backlog() != 0:  # noqa: ASYNC110 - only the server knows
                await asyncio.sleep(0.01)


async def test_the_backlog_is_not_known_where_the_server_does_not_know(place: Place) -> None:
    """An entry deleted ahead of the group: Redis can't say how many are left."""
    await place.emit(TOPIC, *numbered(10), key="k")
    async with place.subscribed(TOPIC) as consumer:
        stream = next(key for key in place.left() if place.call("TYPE", key) == b"stream"
                      and ":stream:" in key and place.call("XLEN", key))  # fmt: skip
        entries = place.broker.entries(stream)
        place.call("XDEL", stream, entries[5].id)
        assert await consumer.backlog() is None
        await ack_all(await take(consumer, 9))
        assert await consumer.backlog() == 0


async def test_no_memory_does_not_stop_consuming(own_place: Place, own_redis: Redis) -> None:
    """New events, those put off and acks: all go on; ping tells, and is well after it."""
    place = own_place
    await place.emit(TOPIC, *numbered(20))
    async with place.subscribed(TOPIC, lease=30) as consumer:
        taken = await take(consumer, 10)
        await taken[0].nack(0.3)
        with own_redis.out_of_memory():
            more = await take(consumer, 11)
            assert sorted(attempts(more)) == [1] * 10 + [2]
            with pytest.raises(SettleError):
                await more[0].nack(0.1)
            (again,) = await take(consumer, 1)
            assert (again.payload, again.attempt) == (more[0].payload, more[0].attempt + 1)
            await ack_all([*more[1:], again])
            await _pings_badly(consumer, "OutOfMemory")
        await _pings_well(consumer)
        await ack_all(taken[1:])
        assert await consumer.backlog() == 0


@pytest.mark.parametrize("what", ["read only", "MISCONF"])
async def test_a_server_that_takes_no_writes_is_waited_for(
    own_place: Place, own_redis: Redis, what: str
) -> None:
    """Receiving and ping tell; what is acknowledged meanwhile is told later, and all goes on."""
    place = own_place
    await place.emit(TOPIC, *numbered(20))
    faults = {"read only": own_redis.read_only, "MISCONF": own_redis.failing_disk}
    async with place.subscribed(TOPIC) as consumer:
        taken = await take(consumer, 10)
        with faults[what]():
            acking = asyncio.ensure_future(ack_all(taken))
            with pytest.raises(ConnectError, match=what) as told:
                await take_once(consumer)
            assert told.value.retriable
            await _pings_badly(consumer, what)
            assert not acking.done()
        async with asyncio.timeout(20):
            await acking
        await _pings_well(consumer)
        more = await take(consumer, 10)
        assert sorted(payloads([*taken, *more])) == sorted(numbered(20))
        assert attempts(more) == [1] * 10
        await ack_all(more)
        assert await consumer.backlog() == 0


async def test_rights_that_are_taken_away_may_come_back(own_place: Place, own_redis: Redis) -> None:
    """It is told, and goes on when it may again."""
    place = own_place
    await place.emit(TOPIC, *numbered(2), key="k")
    own_redis.call("ACL", "SETUSER", "worker", "on", ">pw", "~*", "&*", "+@all")
    url = own_redis.url.replace("://", "://worker:pw@")
    async with place.subscribed(TOPIC, url=url) as consumer:
        first = await take(consumer, 1)
        own_redis.call("ACL", "SETUSER", "worker", "-xreadgroup", "-xack", "-hset")
        acking = asyncio.ensure_future(ack_all(first))
        with pytest.raises(ConnectError) as told:
            await take_once(consumer)
        assert told.value.retriable
        await _pings_badly(consumer, "")
        own_redis.call("ACL", "SETUSER", "worker", "+@all")
        assert payloads(await take(consumer, 1)) == [b"1"]
        async with asyncio.timeout(20):
            await acking
        await _pings_well(consumer)


# Large ones


@pytest.mark.parametrize("group", [GROUP, None], ids=["group", "none"])
async def test_a_backlog_of_large_events_is_read_in_small_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    """However many it may receive: one step gives a few megabytes."""
    script = READ if group else FOLLOW
    sizes: list[int] = []
    run = script.run

    async def run_and_weigh(*given: Any) -> Any:
        told = await run(*given)
        found = told[3] if group else told
        sizes.append(sum(len(fields[1]) for _, entries in found for _, fields in entries))
        return told

    monkeypatch.setattr(script, "run", run_and_weigh)
    async with place.subscribed(TOPIC, group=group) as consumer:
        for _ in range(3):
            await place.emit(TOPIC, *([bytes(MEGABYTE)] * 10), key="k")
        taken = await take(consumer, 30)
        assert max(sizes) <= 5 * MEGABYTE
        assert sum(sizes) == 30 * MEGABYTE
        if group is None:
            return
        for each in taken:
            await each.nack(0.01)
        assert len(await take(consumer, 30)) == 30
    claimed: list[int] = []
    async with place.subscribed(TOPIC) as consumer:
        while len(claimed) < 30:
            claimed.append(len(await consumer.receive(100)))
            if sum(claimed) == 30:
                break
        assert max(claimed) <= 5


async def take_once(consumer: RedisConsumer) -> None:
    """Receive until that fails."""
    async with asyncio.timeout(20):
        while True:
            await consumer.receive(1)


async def _pings_badly(consumer: RedisConsumer, text: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await consumer.ping()
            except ConnectError as error:
                if text in str(error):
                    return
            await asyncio.sleep(0.02)


async def _pings_well(consumer: RedisConsumer) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await consumer.ping()
            except ConnectError:
                await asyncio.sleep(0.02)
            else:
                return
