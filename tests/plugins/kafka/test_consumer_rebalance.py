"""Partitions that move between members: nothing is lost, nothing done comes again without need."""

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError  # type: ignore[import-untyped]

from brokers.kafka_access import KafkaAccess
from dispytch import ConnectError, Consumer, Delivery
from plugins.kafka.receiving import (
    QUICK,
    ack_all,
    committed,
    nothing_more,
    numbers,
    payloads,
    produce,
    subscribed,
    take,
)

pytestmark = pytest.mark.kafka

OFTEN = f"{QUICK}&commit_interval_ms=50"


async def until(condition: Any, within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


async def test_a_slow_first_record_holds_the_commit_back_across_rebalances(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """500 quick ones behind it, members joining and leaving: never a commit beyond it."""
    await produce(kafka_broker, topic, numbers(501))
    seen: list[int | None] = []

    async def look() -> None:
        seen.append(await committed(kafka_broker, topic, topic))

    async with subscribed(
        kafka_broker, topic, group=topic, options=OFTEN, drain_timeout=0.5
    ) as one:
        taken = await take(one, 501)
        taken[0].running = 1
        await ack_all(taken[1:])
        await asyncio.sleep(0.3)  # several commits could have been made
        await look()
        async with subscribed(
            kafka_broker, topic, group=topic, options=OFTEN, drain_timeout=0.5
        ) as two:
            await look()
            assert taken[0].lost
            owner = asyncio.create_task(first_to_receive(one, two))
            owned, again = await owner
            again += await take(owned, 501 - len(again))
            assert payloads(again) == numbers(501)
            await taken[0].ack()  # of an assignment that is over
            await ack_all(again[1:])
            await asyncio.sleep(0.3)
            await look()
        if owned is two:
            again = await take(one, 501)
            await ack_all(again[1:])
        assert {offset or 0 for offset in seen} == {0}
        if not again[0].lost:
            await again[0].ack()
        else:
            await ack_all(await take(one, 501))
    assert await committed(kafka_broker, topic, topic) == 501


async def first_to_receive(*consumers: Consumer) -> tuple[Consumer, list[Delivery]]:
    tasks = {asyncio.create_task(take(one, 1)): one for one in consumers}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)
    (task,) = done
    return tasks[task], task.result()


async def test_handlers_under_way_finish_before_their_partitions_go(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """The rest is marked lost at once; what was finished in time does not come again."""
    kafka_broker.create_topic(unique_name, 2)
    for partition in (0, 1):
        values = [b"%d-%d" % (partition, number) for number in range(10)]
        await produce(kafka_broker, unique_name, values, partition=partition)
    async with subscribed(kafka_broker, unique_name, group=unique_name, options=OFTEN) as one:
        taken = await take(one, 20)
        running = [delivery for delivery in taken if delivery.payload[2:] in {b"0", b"1", b"2"}]
        for delivery in running:
            delivery.running = 1
        found: asyncio.Queue[list[Delivery]] = asyncio.Queue()
        joining = asyncio.create_task(member(kafka_broker, unique_name, found))
        await until(lambda: all(delivery.lost for delivery in taken))
        await asyncio.sleep(1.0)  # longer than some timeouts: the partitions are still waited for
        await ack_all(running)
        for delivery in running:
            delivery.running = 0
        mine = set(payloads(await take(one, 7)))
        theirs = set(payloads(await asyncio.wait_for(found.get(), 10)))
        joining.cancel()
        await asyncio.wait({joining})
    everything = Counter([*mine, *theirs])
    assert sorted(everything) == sorted(
        delivery.payload for delivery in taken if delivery not in running
    )
    assert max(everything.values()) == 1


async def member(kafka: KafkaAccess, group: str, found: "asyncio.Queue[list[Delivery]]") -> None:
    """Join, tell the first 7, and stay until cancelled."""
    async with subscribed(kafka, group, group=group, options=OFTEN) as consumer:
        found.put_nowait(await take(consumer, 7))
        await asyncio.Event().wait()


async def test_a_group_that_is_slow_to_take_a_member_in_does_not_hold_it_up(
    kafka_broker: KafkaAccess, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has subscribed by then, and receives when the others have finished."""
    monkeypatch.setattr("dispytch_kafka.group._PATIENCE", 0.5)
    await produce(kafka_broker, topic, numbers(1))
    async with subscribed(kafka_broker, topic, group=topic, options=OFTEN) as one:
        (held,) = await take(one, 1)
        held.running = 1
        async with subscribed(kafka_broker, topic, group=topic, options=OFTEN) as two:
            await until(lambda: held.lost)
            await produce(kafka_broker, topic, numbers(1, 2))
            held.running = 0
            owner, taken = await first_to_receive(one, two)
            while len(taken) < 2:
                taken += await take(owner, 1)
            assert payloads(taken) == numbers(2)


async def test_a_drain_may_take_longer_than_a_request(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Who joins asks again until the others are done; what they finished is not for him."""
    await produce(kafka_broker, topic, numbers(3))
    options = f"{OFTEN}&request_timeout_ms=700"
    async with subscribed(kafka_broker, topic, group=topic, options=options) as one:
        (first, *_) = await take(one, 3)
        first.running = 1
        joining = asyncio.create_task(join(kafka_broker, topic, options))
        await until(lambda: first.lost)
        await asyncio.sleep(3.0)
        assert not joining.done()
        await first.ack()
        first.running = 0
        await joining
        assert await committed(kafka_broker, topic, topic) == 1


async def join(kafka: KafkaAccess, group: str, options: str) -> None:
    async with subscribed(kafka, group, group=group, options=options):
        pass


async def test_handlers_longer_than_the_poll_interval_keep_their_partitions(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Also when nobody calls `receive` meanwhile: no revocation, no redelivery."""
    await produce(kafka_broker, topic, numbers(5))
    options = f"{OFTEN}&max_poll_interval_ms=800"
    async with subscribed(kafka_broker, topic, group=topic, options=options) as consumer:
        taken = await take(consumer, 2)
        await asyncio.sleep(3.0)
        assert not any(delivery.lost for delivery in taken)
        await ack_all(taken)
        assert payloads(await take(consumer, 3)) == numbers(2, 5)
        await nothing_more(consumer)
    assert await committed(kafka_broker, topic, topic) == 2


async def test_a_member_that_was_away_too_long_takes_part_again(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Its loop stood still beyond the session: what it holds comes again, late acks do no harm."""
    await produce(kafka_broker, topic, numbers(10))
    options = "session_timeout_ms=1000&heartbeat_interval_ms=200&commit_interval_ms=50"
    async with subscribed(kafka_broker, topic, group=topic, options=options) as one:
        taken = await take(one, 10)
        await ack_all(taken[:3])
        await until_committed(kafka_broker, topic, 3)
        time.sleep(2.5)  # noqa: ASYNC251 - that is the fault
        await ack_all(taken[3:6])  # not knowing yet
        await until(lambda: taken[9].lost)
        again = await take(one, 4)
        await ack_all(taken)
        await asyncio.sleep(0.3)
        assert (await committed(kafka_broker, topic, topic) or 0) in {3, 6}
        rest = await take(one, 10 - int(again[-1].payload) - 1)
        await ack_all([*again, *rest])
    assert await committed(kafka_broker, topic, topic) == 10


async def until_committed(kafka: KafkaAccess, topic: str, offset: int) -> None:
    async with asyncio.timeout(10):
        while await committed(kafka, topic, topic) != offset:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.02)


async def test_members_that_join_and_leave_under_load_lose_nothing(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """All are handled, each partition's in order at first handling, few of them twice."""
    count, partitions = 4000, 4
    kafka_broker.create_topic(unique_name, partitions)
    handled: defaultdict[int, list[int]] = defaultdict(list)
    ended = asyncio.Event()

    async def member(until_stopped: asyncio.Event) -> None:
        async with subscribed(
            kafka_broker, unique_name, group=unique_name, options=OFTEN, drain_timeout=5
        ) as consumer:
            working = asyncio.create_task(work(consumer))
            await until_stopped.wait()
            working.cancel()
            await asyncio.wait({working})

    async def work(consumer: Consumer) -> None:
        while True:
            for delivery in await consumer.receive(20):
                if delivery.lost:
                    continue
                delivery.running = 1
                handled[delivery.partition.tp.partition].append(delivery.offset)  # type: ignore[attr-defined]
                await delivery.ack()
                delivery.running = 0
            await asyncio.sleep(0.005)

    async def emit() -> None:
        for start in range(0, count, 200):
            await produce(kafka_broker, unique_name, numbers(start, start + 200))

    async with asyncio.TaskGroup() as group:
        group.create_task(member(ended))
        group.create_task(emit())
        for _ in range(2):
            leaving = asyncio.Event()
            guest = group.create_task(member(leaving))
            await asyncio.sleep(1.2)
            leaving.set()
            await guest
        await until(lambda: sum(len(set(offsets)) for offsets in handled.values()) == count)
        ended.set()
    again = 0
    for offsets in handled.values():
        first = list(dict.fromkeys(offsets))
        assert first == sorted(first)
        again += len(offsets) - len(first)
    assert again <= 20
    ends = kafka_broker.end_offsets(unique_name)
    for partition, end in ends.items():
        assert await committed(kafka_broker, unique_name, unique_name, partition) == end


@pytest.mark.parametrize("harm", ["coordination", "fetching", "silent"])
@pytest.mark.parametrize("group", ["", None])
async def test_a_client_that_stopped_working_is_replaced(
    kafka_broker: KafkaAccess,
    topic: str,
    group: str | None,
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether its task that keeps the membership dies, the one that fetches, or all only wait."""
    if harm == "coordination" and group is None:
        group = topic  # as there is no such task without
    monkeypatch.setattr("dispytch_kafka.session._WATCH", 0.3)
    group = topic if group == "" else group
    async with subscribed(kafka_broker, topic, group=group, options=OFTEN) as consumer:
        await produce(kafka_broker, topic, numbers(3))
        await ack_all(await take(consumer, 3))
        client: Any = consumer._client  # type: ignore[attr-defined]
        if harm == "coordination":
            client._coordinator._coordination_task.cancel()
        elif harm == "fetching":
            client._fetcher._fetch_task.cancel()
        else:
            client._fetcher._in_flight = Everybody()
        receiving = asyncio.create_task(take(consumer, 3))
        await produce(kafka_broker, topic, numbers(3, 6))
        assert payloads(await receiving) == numbers(3, 6)
        assert "replaced" in caplog.text
        assert consumer._client is not client  # type: ignore[attr-defined]
        await consumer.ping()
        await nothing_more(consumer, 0.5)


class Everybody(set[Any]):
    def __contains__(self, item: object) -> bool:
        return True


async def test_a_right_that_is_taken_away_ends_receiving_and_says_so(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Trying again would not help: a ConnectError that is not retriable, again and again."""
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        client: Any = consumer._client  # type: ignore[attr-defined]
        client._coordinator._pending_exception = GroupAuthorizationFailedError(topic)
        for _ in range(2):
            with pytest.raises(ConnectError, match="GroupAuthorizationFailed") as caught:
                await consumer.receive(1)
            assert not caught.value.retriable
        with pytest.raises(ConnectError):
            await consumer.ping()
