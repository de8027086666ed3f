"""Members of a group: who comes, goes and dies while events flow; patterns and new topics."""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from dispytch import (
    Delivery,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    SettleError,
    Subscription,
    TopicSegment,
)
from dispytch_sqlite import SQLiteConsumer, sharing
from dispytch_sqlite.delivery import SQLiteDelivery
from plugins.sqlite.receiving import File, ack_all, nothing_more, numbered, payloads, take


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "events.db")


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"
    __key__ = "{customer}"

    customer: str
    number: int


async def gather(consumers: list[SQLiteConsumer], count: int) -> list[list[Delivery]]:
    """What comes to each until so many have come in all; acknowledged."""
    came: list[list[Delivery]] = [[] for _ in consumers]
    enough = asyncio.Event()

    async def receive(consumer: SQLiteConsumer, mine: list[Delivery]) -> None:
        while True:
            fresh = await consumer.receive(10)
            await ack_all(fresh)
            mine += fresh
            if sum(map(len, came)) >= count:
                enough.set()

    tasks = [asyncio.ensure_future(receive(*each)) for each in zip(consumers, came, strict=True)]
    try:
        async with asyncio.timeout(10):
            await enough.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return came


def held(file: File) -> list[int]:
    """How many partitions each member has, the oldest first."""
    return [
        count for (count,) in file.rows(
            "SELECT (SELECT count(*) FROM cursors WHERE owner = members.id) FROM members "
            "ORDER BY id"
        )
    ]  # fmt: skip


async def until_held(file: File, *counts: int, consumers: Sequence[SQLiteConsumer] = ()) -> float:
    """Wait until the members have so many partitions; how many seconds that took.

    Consumers are asked for events meanwhile, and there are none.
    """
    began = time.monotonic()
    receiving = [asyncio.ensure_future(consumer.receive(1)) for consumer in consumers]
    async with asyncio.timeout(10):
        while held(file) != list(counts):  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
    for each in receiving:
        each.cancel()
    if receiving:
        await asyncio.wait(receiving)
    return time.monotonic() - began


async def test_members_that_come_and_go_have_fair_shares_soon(file: File) -> None:
    """Each newcomer has its share in a moment, and what one leaves is with the others."""
    async with file.subscribed("orders") as first:
        async with file.subscribed("orders", process=1) as second:
            assert await until_held(file, 16, 16, consumers=(first, second)) < 1
            async with file.subscribed("orders", process=2) as third:
                everybody = [first, second, third]
                assert await until_held(file, 11, 11, 10, consumers=everybody) < 1
                async with file.subscribed("orders", process=3) as fourth:
                    everybody.append(fourth)
                    assert await until_held(file, 8, 8, 8, 8, consumers=everybody) < 1
            assert await until_held(file, 16, 16, consumers=(first, second)) < 1
        assert await until_held(file, 32, consumers=(first,)) < 1
    assert held(file) == []


async def test_newcomer_gets_its_share_though_nobody_receives(file: File) -> None:
    """A member whose handlers are all busy gives away what it should, at its next renewal."""
    options: dict[str, Any] = {"lease": 1.5}
    async with (
        file.subscribed("orders", **options),
        file.subscribed("orders", process=1, **options) as second,
    ):
        assert await until_held(file, 16, 16, consumers=(second,)) < 1.5


async def test_member_that_died_is_replaced_when_its_lease_is_over(file: File) -> None:
    """What it had is with the others then, and what it settles after that is refused."""
    await file.emit("orders", *numbered(40))
    async with file.subscribed("orders", lease=0.5) as first:
        came = await take(first, 40)
        membership: Any = first._membership
        membership._end_renewing()  # its process stands still
        async with file.subscribed("orders", process=1) as second:
            again = await take(second, 40, within=3)
            assert sorted(payloads(again)) == sorted(numbered(40))
            for late in came:
                with pytest.raises(SettleError):
                    await late.ack()
            await ack_all(again)
            assert await second.backlog() == 0


async def test_member_taken_for_dead_comes_back(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    """A member that stood still for too long says so, and receives again as another one."""
    caplog.set_level(logging.WARNING, "dispytch")
    await file.emit("orders", *numbered(40))
    async with file.subscribed("orders", lease=0.5) as first:
        came = await take(first, 40)
        file.rows("UPDATE cursors SET owner = NULL, epoch = epoch + 1")
        file.rows("DELETE FROM members")
        again = await take(first, 40, within=3)
        assert sorted(payloads(again)) == sorted(numbered(40))
        assert all(late.lost for late in came)
        with pytest.raises(SettleError):
            await came[0].ack()
        await ack_all(again)
        assert await first.backlog() == 0
        assert held(file) == [32]
    assert "was taken for dead" in caplog.text


def quietest(came: list[Delivery]) -> list[Delivery]:
    """Those of the partition of which fewest are under way: it leaves first."""
    by_share: dict[Any, list[Delivery]] = defaultdict(list)
    for each in came:
        assert isinstance(each, SQLiteDelivery)
        by_share[each.share].append(each)
    return min(by_share.values(), key=len)


async def test_closed_loop_gives_its_partitions_up(file: File) -> None:
    """A consumer whose event loop was closed without stopping it is dead to its group."""

    def leave_behind() -> SQLiteConsumer:
        consumer = SQLiteConsumer(file.connection(1, lease=0.5))
        with asyncio.Runner() as runner:
            runner.run(consumer.start())
            runner.run(consumer.subscribe([Subscription("orders", "g")]))
        return consumer

    left = await asyncio.to_thread(leave_behind)
    writer, db = left._opened()
    async with file.subscribed("orders", lease=0.5), asyncio.timeout(5):
        while len(file.rows("SELECT id FROM members")) > 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
    db.close()
    await asyncio.to_thread(sharing.release, writer)


async def test_what_runs_is_finished_where_it_began(tmp_path: Path) -> None:
    """A share that leaves waits for handlers that run; what none has begun goes after a second."""
    file = File(tmp_path / "events.db", partitions=2)
    await file.emit("orders", *numbered(41))
    async with file.subscribed("orders") as first:
        came = await take(first, 41)
        running, *waiting = leaving = quietest(came)
        running.running = 1
        async with file.subscribed("orders", process=1) as second:
            await asyncio.gather(nothing_more(first, 1.5), nothing_more(second, 1.5))
            assert [each for each in came if each.lost] == waiting
            await running.ack()
            again = await take(second, len(waiting), within=3)
            assert payloads(again) == payloads(waiting)
            assert {each.attempt for each in again} == {2}
            await ack_all(each for each in came if each not in leaving)
            await ack_all(again)
            assert await second.backlog() == 0


async def test_share_leaves_at_last_though_a_handler_hangs(tmp_path: Path) -> None:
    """A handler that does not end keeps its share for the drain timeout, and no longer."""
    file = File(tmp_path / "events.db", partitions=2)
    await file.emit("orders", *numbered(11))
    async with file.subscribed("orders", drain_timeout=0.2) as first:
        came = await take(first, 11)
        leaving = quietest(came)
        for each in came:
            each.running = 1
        async with file.subscribed("orders", process=1) as second:
            looking = asyncio.ensure_future(nothing_more(first, 1))
            again = await take(second, len(leaving), within=3)
            assert payloads(again) == payloads(leaving)
            assert [each for each in came if each.lost] == leaving
            with pytest.raises(SettleError):
                await leaving[0].ack()
            await looking


async def test_more_members_than_partitions_miss_nothing(tmp_path: Path) -> None:
    """Some members have nothing to do then; nothing is missing, and nothing comes twice."""
    file = File(tmp_path / "events.db", partitions=4)
    async with (
        file.subscribed("orders") as a, file.subscribed("orders", process=1) as b,
        file.subscribed("orders", process=2) as c, file.subscribed("orders", process=3) as d,
        file.subscribed("orders", process=4) as e, file.subscribed("orders", process=5) as f,
    ):  # fmt: skip
        await file.emit("orders", *numbered(100))
        came = await gather([a, b, c, d, e, f], 100)
        assert sorted(p for each in came for p in payloads(each)) == sorted(numbered(100))
        assert sorted(held(file)) == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
async def test_order_holds_while_members_come_and_go(file: File, seed: int) -> None:
    """Nothing is lost, handled twice or out of its key's order while members join and leave."""
    chance = random.Random(seed)
    handled: dict[str, list[int]] = defaultdict(list)
    busy: set[str] = set()
    enough = asyncio.Event()
    count, customers = 600, 25

    def member(number: int) -> EventListener:
        listener = EventListener.from_url(file.url(number % 3), group="g", max_in_flight=8)

        @listener.handler(Order)
        async def handle(event: Event[Order]) -> None:
            customer = event.body.customer
            assert customer not in busy, "two of one key at once"
            busy.add(customer)
            await asyncio.sleep(chance.choice((0, 0, 0.002, 0.02)))
            busy.discard(customer)
            handled[customer].append(event.body.number)
            if sum(map(len, handled.values())) >= count:
                enough.set()

        return listener

    async def emit() -> None:
        async with EventEmitter.from_url(file.url(3)) as emitter:
            for start in range(0, count, 20):
                await emitter.emit_many(
                    [Order(customer=str(n % customers), number=n) for n in range(start, start + 20)]
                )
                await asyncio.sleep(0.03)

    members = [member(0)]
    await members[0].start()
    emitting = asyncio.ensure_future(emit())
    number = 0
    while not emitting.done():
        await asyncio.sleep(chance.uniform(0, 0.3))
        if len(members) > 1 and (len(members) == 4 or chance.random() < 0.5):
            await members.pop(chance.randrange(len(members))).stop()
        else:
            number += 1
            members.append(member(number))
            await members[-1].start()
    async with asyncio.timeout(15):
        await enough.wait()
    for each in members:
        await each.stop()
        assert each.health().counts.unsettled == 0
    assert number > 2
    assert dict(handled) == {
        str(c): list(range(c, count, customers)) for c in range(customers)
    }  # fmt: skip


# Patterns and topics


async def test_each_handler_runs_once_for_each_event(file: File) -> None:
    """Patterns that overlap, and ones that differ in names alone: none is missed or doubled."""
    listener = EventListener.from_url(file.url(), group="g")
    ran: Counter[tuple[str, str]] = Counter()
    enough = asyncio.Event()

    def note(handler: str, topic: str) -> None:
        ran[handler, topic] += 1
        if ran.total() == 9:
            enough.set()

    @listener.handler(topic="orders.{a}", event="order")
    async def one(event: Event[Order], a: Annotated[str, TopicSegment()]) -> None:
        note(f"one {a}", event.topic)

    @listener.handler(topic="orders.{b}", event="order")
    async def same(event: Event[Order], b: Annotated[str, TopicSegment()]) -> None:
        note(f"same {b}", event.topic)

    @listener.handler(topic="orders.*", event="order")
    async def rest(event: Event[Order]) -> None:
        note("rest", event.topic)

    @listener.handler(topic="orders.north", event="order")
    async def literal(event: Event[Order]) -> None:
        note("literal", event.topic)

    def order(topic: str) -> Any:
        class At(Order):
            __topic__ = topic

        return At(customer="c", number=1)

    async with listener, EventEmitter.from_url(file.url()) as emitter:
        await emitter.emit_many(
            [order("orders.north"), order("orders.south"), order("orders.x.y"), order("orders")]
        )
        await emitter.emit(order("orders.x.y"))
        async with asyncio.timeout(5):
            await enough.wait()
        await asyncio.sleep(0.1)
    assert ran == {
        ("one north", "orders.north"): 1, ("same north", "orders.north"): 1,
        ("rest", "orders.north"): 1, ("literal", "orders.north"): 1,
        ("one south", "orders.south"): 1, ("same south", "orders.south"): 1,
        ("rest", "orders.south"): 1, ("rest", "orders.x.y"): 2,
    }  # fmt: skip


async def test_topics_made_while_their_pattern_is_read_are_not_missed(file: File) -> None:
    """The first event of each topic comes, and once, however many are made meanwhile."""
    async with file.subscribed("sensor.{id}.read", "sensor.7.*") as consumer:

        async def emit(process: int) -> None:
            for number in range(process, 120, 2):
                await file.emit(f"sensor.{number}.read", b"%d" % number, process=process)

        emitting = asyncio.gather(emit(0), emit(1))
        came = await take(consumer, 121)
        await emitting
        await nothing_more(consumer)
    assert sorted(payloads(came), key=int) == sorted([*numbered(120), b"7"], key=int)


async def test_pattern_takes_no_dead_letters(file: File) -> None:
    """Dead letters come to who asks for them by name."""
    await file.emit("orders.dlq", b"dead")
    await file.emit("orders.new", b"alive")
    async with (
        file.subscribed("orders.{kind}", "orders.*") as pattern,
        file.subscribed("orders.dlq", group="dead", process=1) as named,
    ):
        assert payloads(await take(pattern, 2)) == [b"alive", b"alive"]
        await nothing_more(pattern)
        assert payloads(await take(named, 1)) == [b"dead"]
