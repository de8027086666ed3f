"""Members of a group: who comes, goes and stands still while events flow; patterns, new topics."""

import asyncio
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from typing import Any

import pytest

from brokers.redis_access import RedisAccess
from dispytch import Event, EventBase, EventEmitter, EventListener, SettleError

pytest.importorskip("redis")

from dispytch_redis import RedisConsumer
from dispytch_redis.script import REGISTER
from plugins.redis.receiving import (
    GROUP,
    Place,
    ack_all,
    attempts,
    member,
    nothing_more,
    numbered,
    payloads,
    shards,
    take,
    until,
)

pytestmark = pytest.mark.redis

TOPIC = "orders"
LONG = 60.0
"""Seconds of a lease that plays no part: a third of it is longer than any of this may take."""


@pytest.fixture
def place(redis_broker: RedisAccess, unique_name: str) -> Place:
    return Place(redis_broker, unique_name, shards=8, lease=LONG)


class Order(EventBase):
    __topic__ = TOPIC
    __event_type__ = "order"
    __key__ = "{lane}"

    lane: int
    number: int


class Handled:
    """What listeners handled, in order.

    Attributes:
        places: lane, number, who, and which attempt.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.places: list[tuple[int, int, int, int]] = []

    def listener(self, who: int, work: float = 0.002, **options: Any) -> EventListener:
        url = self.place.url()
        listener = EventListener.from_url(url, group=GROUP, max_in_flight=20, **options)

        @listener.handler(Order)
        async def handle(event: Event[Order]) -> None:
            await asyncio.sleep(work)
            self.places.append((event.body.lane, event.body.number, who, event.attempt))

        return listener

    def check(self) -> None:
        """All once, as a first attempt, and in order per lane."""
        times = Counter(each[:2] for each in self.places)
        assert {place: count for place, count in times.items() if count > 1} == {}
        assert {each for each in self.places if each[3] > 1} == set()
        lanes: defaultdict[int, list[int]] = defaultdict(list)
        for lane, number, _, _ in self.places:
            lanes[lane].append(number)
        for numbers in lanes.values():
            assert numbers == sorted(numbers)


async def _handle_all(consumer: RedisConsumer, into: list[Any]) -> None:
    while True:
        taken = await take(consumer, 1, within=60)
        into += taken
        try:
            await ack_all(taken)
        except SettleError:
            continue


async def test_idle_members_share_at_once(place: Place) -> None:
    """Who joins has its share, and who stays has the rest again, long before leases are renewed."""
    async with place.subscribed(TOPIC) as one:
        waiting = asyncio.create_task(one.receive(1))
        began = time.monotonic()
        async with place.subscribed(TOPIC) as two:
            also_waiting = asyncio.create_task(two.receive(1))
            await until(lambda: len(shards(one)) == len(shards(two)) == 4)
            assert set(Counter(place.owners().values()).values()) == {4}
            also_waiting.cancel()
        await until(lambda: len(shards(one)) == 8)
        assert time.monotonic() - began < 10
        waiting.cancel()
        await asyncio.wait({waiting, also_waiting})


async def test_a_member_that_receives_nothing_shares_too(place: Place) -> None:
    """Also one that has its hands full notices who comes, and gives away what it can."""
    async with place.subscribed(TOPIC), place.subscribed(TOPIC) as two:
        await until(lambda: len(shards(two)) == 4, within=LONG / 4)


async def test_shards_change_hands_in_order_and_once(place: Place) -> None:
    """Members come and go under load: no event twice, none counted twice, all in order."""
    handled, numbers, is_over = Handled(place), 0, asyncio.Event()

    async def emit() -> None:
        nonlocal numbers
        async with EventEmitter.from_url(place.url()) as emitter:
            while not is_over.is_set():
                await emitter.emit_many(Order(lane=lane, number=numbers) for lane in range(30))
                numbers += 1
                await asyncio.sleep(0.02)

    def came(who: int) -> int:
        return sum(each[2] == who for each in handled.places)

    emitting = asyncio.create_task(emit())
    async with handled.listener(0):
        await until(lambda: came(0) > 50)
        async with handled.listener(1):
            await until(lambda: came(1) > 50)
            async with handled.listener(2):
                await until(lambda: came(2) > 50)
            before = came(0)
            await until(lambda: came(0) > before + 50)
        is_over.set()
        await emitting
        await until(lambda: len(handled.places) >= 30 * numbers)
        await asyncio.sleep(0)
    handled.check()


async def test_running_handlers_finish_before_their_shards_go(place: Place) -> None:
    """What waits behind them goes to the new member, uncounted, when they are done."""
    keys = [f"key {number}" for number in range(20)]
    async with place.subscribed(TOPIC, shards=2) as one:
        for key in keys:
            await place.emit(TOPIC, *(f"{key} {n}".encode() for n in range(2)), key=key)
        held = await take(one, 40)
        first = {each.key: each for each in reversed(held)}
        for each in first.values():
            each.running = 1
        async with place.subscribed(TOPIC) as two:
            receiving = asyncio.create_task(take(two, 1))
            await until(lambda: any(each.lost for each in held))  # what waits behind
            assert not any(each.lost for each in first.values())
            assert shards(two) == set()
            await ack_all(first.values())
            await until(lambda: len(shards(two)) == 1)
            waited = [each for each in held if each.lost]
            (begun,) = await receiving
            taken = [begun, *await take(two, len(waited) - 1)]
            assert sorted(payloads(taken)) == sorted(payloads(waited))
            assert set(attempts(taken)) == {1}


async def test_handlers_that_take_too_long_lose_their_shards(place: Place) -> None:
    """After `drain_timeout` another member gets the event, as another attempt."""
    async with place.subscribed(TOPIC, shards=2, drain_timeout=1.5) as one:
        await place.emit(TOPIC, *numbered(20))
        held = await take(one, 20)
        for each in held:
            each.running = 1
        async with place.subscribed(TOPIC) as two:
            (again,) = await take(two, 1)
            assert again.attempt == 2
            lost = next(each for each in held if each.payload == again.payload)
            with pytest.raises(SettleError):
                await lost.ack()


async def test_more_members_than_shards_lose_nothing(place: Place) -> None:
    """Who has no shard waits, and takes over when another one goes."""
    async with AsyncExitStack() as stack:
        consumers = [
            await stack.enter_async_context(place.subscribed(TOPIC, shards=2)) for _ in range(3)
        ]
        came: list[list[Any]] = [[], [], []]
        tasks = [
            asyncio.create_task(_handle_all(*each)) for each in zip(consumers, came, strict=True)
        ]
        await until(lambda: sorted(len(shards(each)) for each in consumers) == [0, 1, 1])
        await place.emit(TOPIC, *numbered(50))
        await until(lambda: sum(map(len, came)) >= 50)
        busy = next(number for number in range(3) if shards(consumers[number]))
        tasks[busy].cancel()
        await asyncio.wait({tasks[busy]})
        await consumers[busy].stop()
        others = [each for each in consumers if each is not consumers[busy]]
        await until(lambda: [len(shards(each)) for each in others] == [1, 1])
        await place.emit(TOPIC, *numbered(50, 100))
        await until(lambda: sum(map(len, came)) >= 100)
        every = [each for mine in came for each in mine]
        assert sorted(payloads(every)) == sorted(numbered(100))
        assert set(attempts(every)) == {1}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_members_get_their_own_topics_only(place: Place) -> None:
    """A topic is shared by those who subscribed to it."""
    async with place.subscribed("a", "b") as both, place.subscribed("b", "c") as other:
        came: dict[RedisConsumer, list[Any]] = {both: [], other: []}
        tasks = [asyncio.create_task(_handle_all(*each)) for each in came.items()]
        await until(lambda: len(shards(both)) == len(shards(other)) == 12)
        for topic in ("a", "b", "c"):
            await place.emit(topic, *(f"{topic} {n}".encode() for n in range(30)))
        await until(lambda: sum(map(len, came.values())) >= 90)
        topics = [Counter(each.topic for each in mine) for mine in came.values()]
        assert topics[0]["a"] == topics[1]["c"] == 30
        assert topics[0]["c"] == topics[1]["a"] == 0
        assert topics[0]["b"] > 0
        assert topics[1]["b"] > 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_topics_are_found_while_running(place: Place) -> None:
    """By those who have the pattern, from their first event on, also beside those who don't."""
    async with place.subscribed("users") as plain, place.subscribed("orders.*") as one:
        came: list[Any] = []
        tasks = [asyncio.create_task(_handle_all(one, came))]
        await place.emit("orders.eu", *numbered(20))
        await place.emit("order", b"no")
        await place.emit("orders.dlq", b"no")
        await until(lambda: len(came) == 20)
        async with place.subscribed("orders.*") as two:
            tasks.append(asyncio.create_task(_handle_all(two, came)))
            await until(lambda: len(shards(one)) == len(shards(two)) == 4)
            await place.emit("orders.us", *numbered(20, 60))
            await until(lambda: len(came) >= 60)
            await until(lambda: len(shards(one)) == len(shards(two)) == 8)
            tasks.pop().cancel()
        await place.emit("users", b"u")
        assert payloads(await take(plain, 1)) == [b"u"]
        assert len(shards(plain)) == 8
        assert sorted(payloads(came)) == sorted(numbered(60))
        tasks[0].cancel()
        await asyncio.wait(tasks)


async def test_a_topic_is_found_though_the_connection_breaks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found, but without its groups: it is found again."""
    async with place.subscribed("orders.*") as consumer:
        topics: Any = consumer._topics
        make, broken = topics._make_groups, asyncio.Event()

        async def make_and_break(wire: Any, fresh: Any, begin: str) -> None:
            if fresh and not broken.is_set():
                broken.set()
                wire.abort("a fault of the test")
            await make(wire, fresh, begin)

        monkeypatch.setattr(topics, "_make_groups", make_and_break)
        await place.emit("orders.eu", b"0")
        assert payloads(await take(consumer, 1)) == [b"0"]
        assert broken.is_set()


async def test_the_first_one_decides_on_shards(place: Place) -> None:
    """Who comes with another number uses that of the topic."""
    async with (
        place.producer() as producer,
        place.subscribed(TOPIC, shards=3) as one,
        place.subscribed(TOPIC, shards=5) as two,
    ):
        await until(lambda: len(shards(one)) + len(shards(two)) == 3)
        wire: Any = producer._link.wire
        names = [place.keys.topics, place.keys.new_topics]
        assert await REGISTER.run(wire, names, TOPIC, 8) == 3


async def test_a_late_member_that_nobody_buried_stays(place: Place) -> None:
    """Its lease over, with nobody else there, it is still a member and loses nothing."""
    async with place.subscribed(TOPIC, lease=0.5) as alone:
        me = member(alone)
        await place.emit(TOPIC, *numbered(3), key="k")
        held = await take(alone, 2)
        for each in held:
            each.running = 1
        membership: Any = alone._membership
        membership._keeper.cancel()
        await until(lambda: _now(place) > _lease_end(place, me))
        membership._keeper = asyncio.create_task(membership._keep())
        await until(lambda: _now(place) < _lease_end(place, me))
        assert member(alone) == me
        assert not any(each.lost for each in held)
        assert payloads(await take(alone, 1)) == [b"2"]
        await ack_all(held)


async def test_groups_do_not_meet(place: Place) -> None:
    """Each gets all, settles for itself, and may have any name."""
    names = ["g", "g:owners", "%3A", "ü 1"]
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(place.subscribed("t:%1", group=name)) for name in names
        ]
        await place.emit("t:%1", *numbered(3), key="k")
        for each in members:
            taken = await take(each, 3)
            assert payloads(taken) == numbered(3)
            await ack_all(taken)
            assert await each.backlog() == 0
            await nothing_more(each, 0.05)


def _now(place: Place) -> float:
    seconds, micros = place.call("TIME")
    return int(seconds) * 1000 + int(micros) / 1000


def _lease_end(place: Place, name: str) -> float:
    return float(place.call("HGET", place.group.members, name).split()[0])
