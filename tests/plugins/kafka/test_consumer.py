"""Receiving from a real Kafka: subscriptions, what a delivery holds, acks, groups."""

import asyncio
import contextlib
import gc
import logging
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

from brokers.kafka import LIMITED, PASSWORD, Kafka
from brokers.kafka_access import KafkaAccess
from dispytch import ConfigError, ConnectError, Consumer, Subscription
from dispytch.plugins import get_backend
from dispytch.url import connect
from dispytch_kafka import KafkaConnection, KafkaConsumer
from plugins.kafka.receiving import (
    QUICK,
    ack_all,
    committed,
    consumer_for,
    nothing_more,
    numbers,
    payloads,
    produce,
    subscribed,
    take,
)

pytestmark = pytest.mark.kafka


async def test_a_delivery_is_the_record(kafka_broker: KafkaAccess, topic: str) -> None:
    """Topic, bytes, key and headers in their order; a null value is empty, a null header too."""
    headers = [("a", b"1"), ("b", b""), ("a", b"2")]
    await produce(kafka_broker, topic, [b"x"], key="schlüssel".encode(), headers=headers)
    await produce(kafka_broker, topic, [None], key=b"\xff\x00")
    await produce(kafka_broker, topic, [b"y"], headers=[("n", None)])
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        first, second, third = await take(consumer, 3)
    assert (first.topic, first.payload, first.key) == (topic, b"x", "schlüssel")
    assert first.headers == tuple(headers)
    assert first.attempt == 1
    assert second.payload == b""
    assert (second.key or "").encode(errors="surrogateescape") == b"\xff\x00"
    assert (third.key, third.headers) == (None, (("n", b""),))


def test_what_kafka_promises_is_declared() -> None:
    """Everything but a delay by the broker."""
    told = get_backend("kafka").capabilities
    assert told.ordering == "key"
    assert told.groups
    assert told.manual_ack
    assert told.patterns
    assert told.replay
    assert not told.delayed_redelivery


async def test_a_new_group_begins_with_the_oldest_record(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """And with what comes next where the URL says so."""
    await produce(kafka_broker, topic, numbers(5))
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        assert payloads(await take(consumer, 5)) == numbers(5)
    latest = f"{QUICK}&auto_offset_reset=latest"
    async with subscribed(kafka_broker, topic, group=f"{topic}-2", options=latest) as consumer:
        await produce(kafka_broker, topic, [b"next"])
        assert payloads(await take(consumer, 1)) == [b"next"]


async def test_what_is_acknowledged_does_not_come_again_and_the_rest_does(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """`stop` commits up to the oldest unfinished."""
    await produce(kafka_broker, topic, numbers(10))
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        taken = await take(consumer, 10)
        await ack_all(taken[:4] + taken[6:])
    assert await committed(kafka_broker, topic, topic) == 4
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        assert payloads(await take(consumer, 6)) == numbers(4, 10)


async def test_a_partition_waits_for_a_record_that_is_far_behind(
    kafka_broker: KafkaAccess, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what would come again after a crash is bounded; other partitions go on."""
    monkeypatch.setattr("dispytch_kafka.session.FARTHEST_AHEAD", 20)
    kafka_broker.create_topic(unique_name, 2)
    await produce(kafka_broker, unique_name, numbers(100), partition=0)
    async with subscribed(kafka_broker, unique_name, group=unique_name) as consumer:
        (slow,) = await take(consumer, 1)
        for _ in range(2):
            await ack_all(await take(consumer, 10))
        await nothing_more(consumer)
        await produce(kafka_broker, unique_name, [b"other"], partition=1)
        assert payloads(await take(consumer, 1)) == [b"other"]
        await slow.ack()
        assert payloads(await take(consumer, 79)) == numbers(21, 100)


async def test_commits_come_by_count_and_by_time(kafka_broker: KafkaAccess, topic: str) -> None:
    """After `commit_every` at once, else after `commit_interval_ms`; not one for each."""
    await produce(kafka_broker, topic, numbers(150))
    options = f"{QUICK}&commit_every=100&commit_interval_ms=1500"
    async with subscribed(kafka_broker, topic, group=topic, options=options) as consumer:
        taken = await take(consumer, 150)
        await ack_all(taken[:100])
        began = time.monotonic()
        while await committed(kafka_broker, topic, topic) != 100:
            assert time.monotonic() - began < 1.4
        await ack_all(taken[100:])
        while await committed(kafka_broker, topic, topic) != 150:
            assert time.monotonic() - began < 6


async def test_a_nack_brings_it_again_here_with_one_attempt_more(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Also while `receive` waits; nothing is committed beyond it meanwhile."""
    await produce(kafka_broker, topic, numbers(3))
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        taken = await take(consumer, 3)
        await ack_all(taken[1:])
        waiting = asyncio.create_task(take(consumer, 1))
        await asyncio.sleep(0.1)
        await taken[0].nack()
        (again,) = await waiting
        assert (again.payload, again.attempt) == (b"0", 2)
    assert await committed(kafka_broker, topic, topic) in {None, 0}
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        assert payloads(await take(consumer, 3)) == numbers(3)


async def test_cancelling_a_receive_loses_nothing(kafka_broker: KafkaAccess, topic: str) -> None:
    """However often, all come, in their order."""
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        producing = asyncio.create_task(produce(kafka_broker, topic, numbers(2000)))
        got: list[bytes] = []
        pause = 0.0
        async with asyncio.timeout(30):
            while len(got) < 2000:
                pause = (pause + 0.0007) % 0.02
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        got += payloads(await consumer.receive(7))
        await producing
        assert got == numbers(2000)


async def test_limit_is_kept(kafka_broker: KafkaAccess, topic: str) -> None:
    """Never more than asked for."""
    await produce(kafka_broker, topic, numbers(100))
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        for limit in (1, 7, 30):
            assert 1 <= len(await consumer.receive(limit)) <= limit


async def test_a_pattern_finds_topics_now_and_later(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """Of several patterns and names; never a dead-letter topic, unless it is named."""
    kafka_broker.create_topic(f"{unique_name}.a.orders")
    kafka_broker.create_topic(f"{unique_name}.a.orders.dlq")
    kafka_broker.create_topic(f"{unique_name}.other.dlq")
    kafka_broker.create_topic(f"{unique_name}.a.orders.more")
    topics = f"{unique_name}.{{shop}}.orders", f"{unique_name}.rest.*", f"{unique_name}.other.dlq"
    for group in (unique_name, None):
        async with subscribed(kafka_broker, *topics, group=group) as consumer:
            for topic in ("a.orders", "a.orders.dlq", "other.dlq", "a.orders.more"):
                await produce(kafka_broker, f"{unique_name}.{topic}", [topic.encode()])
            later = f"{unique_name}.rest.{'x' if group else 'y'}.1"
            kafka_broker.create_topic(later)
            await produce(kafka_broker, later, [b"later"])
            kafka_broker.create_topic(f"{later}.dlq")
            await produce(kafka_broker, f"{later}.dlq", [b"no"])
            got: set[bytes] = set()
            while len(got) < 3:  # finding a topic is a rebalance: what is not done comes again
                taken = await take(consumer, 1)
                await ack_all(taken)
                got |= set(payloads(taken))
            assert got == {b"a.orders", b"later", b"other.dlq"}
            await nothing_more(consumer)


async def test_without_a_group_all_since_the_subscription_comes_to_each(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """Nothing from before, nothing missed after, from all partitions, and no group is left."""
    kafka_broker.create_topic(unique_name, 3)
    await produce(kafka_broker, unique_name, numbers(20))
    async with (
        subscribed(kafka_broker, unique_name, group=None) as one,
        subscribed(kafka_broker, unique_name, group=None) as two,
    ):
        await produce(kafka_broker, unique_name, numbers(20, 50))
        for consumer in (one, two):
            got = await take(consumer, 30)
            assert sorted(payloads(got), key=int) == numbers(20, 50)
            await ack_all(got)
        await nothing_more(one, 0.3)
    assert not [group for group in await groups(kafka_broker) if unique_name in group]


async def groups(kafka: KafkaAccess) -> list[str]:
    from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        return [name for name, _ in await admin.list_consumer_groups()]
    finally:
        await admin.close()


async def test_without_a_group_new_partitions_are_read_from_their_start(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """What was emitted there before it was noticed comes too; what was read does not come again."""
    from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

    async with subscribed(kafka_broker, topic, group=None) as consumer:
        await produce(kafka_broker, topic, numbers(3))
        await take(consumer, 3)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
        await admin.start()
        await admin.create_partitions({topic: NewPartitions(2)})
        await admin.close()
        await produce_to(kafka_broker, topic, 1, b"new")
        assert payloads(await take(consumer, 1)) == [b"new"]
        await produce_to(kafka_broker, topic, 0, b"old")
        assert payloads(await take(consumer, 1)) == [b"old"]
        await nothing_more(consumer)


async def produce_to(kafka: KafkaAccess, topic: str, partition: int, value: bytes) -> None:
    """Wait for the partition too: brokers learn of a new one late."""
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(AssertionError):
                await produce(kafka, topic, [value], partition=partition)
                return


@pytest.mark.parametrize("group", ["", None])
async def test_a_missing_topic_is_created(
    kafka_broker: KafkaAccess, unique_name: str, group: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """With the broker's defaults, and a line in the log that names it."""
    group = unique_name if group == "" else None
    async with subscribed(kafka_broker, unique_name, group=group) as consumer:
        assert unique_name in caplog.text
        await produce(kafka_broker, unique_name, [b"first"])
        assert payloads(await take(consumer, 1)) == [b"first"]


async def test_two_groups_are_refused(kafka_broker: KafkaAccess, topic: str) -> None:
    """And names that are no topics."""
    consumer = consumer_for(kafka_broker)
    await consumer.start()
    try:
        with pytest.raises(ConfigError, match="one group"):
            await consumer.subscribe([Subscription(topic, "a"), Subscription(topic, "b")])
        with pytest.raises(ConfigError, match="no legal"):
            await consumer.subscribe([Subscription("a/b", "a")])
    finally:
        await consumer.stop()


async def test_backlog_counts_what_is_not_done(kafka_broker: KafkaAccess, unique_name: str) -> None:
    """Held or not yet received, over all partitions."""
    kafka_broker.create_topic(unique_name, 2)
    await produce(kafka_broker, unique_name, numbers(30))
    async with subscribed(kafka_broker, unique_name, group=unique_name) as consumer:
        assert await consumer.backlog() == 30
        taken = await take(consumer, 30)
        assert await consumer.backlog() == 30
        await ack_all(taken)
        assert await consumer.backlog() == 0
    async with subscribed(kafka_broker, unique_name, group=None) as consumer:
        assert await consumer.backlog() == 0
        await produce(kafka_broker, unique_name, numbers(3))
        assert await consumer.backlog() == 3


async def test_stop_leaves_nothing(kafka_broker: KafkaAccess, topic: str) -> None:
    """No task, no socket, and a `receive` that waits is told."""
    before = asyncio.all_tasks()
    async with subscribed(kafka_broker, topic, group=topic) as consumer:
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0.1)
    with pytest.raises(ConnectError, match="stopped"):
        await waiting
    assert not asyncio.all_tasks() - before
    gc.collect()


async def test_a_member_that_stops_gives_its_partitions_at_once(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Nobody waits for its session to run out."""
    options = "session_timeout_ms=30000&heartbeat_interval_ms=300"
    async with subscribed(kafka_broker, topic, group=topic, options=options):
        pass
    began = time.monotonic()
    async with subscribed(kafka_broker, topic, group=topic, options=options):
        assert time.monotonic() - began < 5


async def test_a_static_member_comes_back_without_a_rebalance(
    kafka_broker: KafkaAccess, unique_name: str
) -> None:
    """With `group_instance_id` its partitions wait for it until the session runs out."""
    kafka_broker.create_topic(unique_name, 2)
    name = "session_timeout_ms=10000&heartbeat_interval_ms=300&group_instance_id="
    async with subscribed(kafka_broker, unique_name, group=unique_name, options=f"{name}a") as one:
        async with subscribed(kafka_broker, unique_name, group=unique_name, options=f"{name}b"):
            pass
        await produce(kafka_broker, unique_name, numbers(20))
        await nothing_of_partitions(one, 2)
        async with subscribed(
            kafka_broker, unique_name, group=unique_name, options=f"{name}b"
        ) as back:
            got = await take(back, 1)
            assert got


async def nothing_of_partitions(consumer: Consumer, count: int) -> None:
    """It has less than all: `partition` is a detail of ours that this test reads."""
    got: set[int] = set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while True:
                got |= {one.partition.tp.partition for one in await consumer.receive(10)}  # type: ignore[attr-defined]
    assert len(got) < count


class TestOwnClient:
    """A client that the user brings."""

    def client(self, kafka: KafkaAccess, group: str | None, **settings: Any) -> Any:
        return AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            **({"enable_auto_commit": False} | settings),
        )

    async def test_it_is_started_and_stopped(self, kafka_broker: KafkaAccess, topic: str) -> None:
        """Where it was not running before."""
        await produce(kafka_broker, topic, numbers(3))
        consumer = KafkaConsumer(self.client(kafka_broker, topic))
        await consumer.start()
        await consumer.subscribe([Subscription(topic, topic)])
        await ack_all(await take(consumer, 3))
        await consumer.stop()
        assert await committed(kafka_broker, topic, topic) == 3

    async def test_a_running_one_is_left_running(
        self, kafka_broker: KafkaAccess, topic: str
    ) -> None:
        """It leaves the group, with what is done committed."""
        await produce(kafka_broker, topic, numbers(3))
        client = self.client(kafka_broker, topic)
        await client.start()
        try:
            consumer = KafkaConsumer(client)
            await consumer.start()
            await consumer.subscribe([Subscription(topic, topic)])
            await ack_all(await take(consumer, 3))
            await consumer.stop()
            assert await committed(kafka_broker, topic, topic) == 3
            assert await client.topics()
        finally:
            await client.stop()

    async def test_one_that_loses_events_is_refused(self, kafka_broker: KafkaAccess) -> None:
        """Committing by itself, deserializing, another group, not started though it is theirs."""
        with pytest.raises(ConfigError, match="enable_auto_commit=False"):
            KafkaConsumer(closed(self.client(kafka_broker, "g", enable_auto_commit=True)))
        with pytest.raises(ConfigError, match="deserializer"):
            KafkaConsumer(closed(self.client(kafka_broker, "g", value_deserializer=len)))
        with pytest.raises(ConfigError, match="AIOKafkaConsumer"):
            KafkaConsumer("kafka://a")  # type: ignore[arg-type]
        consumer = KafkaConsumer(closed(self.client(kafka_broker, "g")), owned=False)
        with pytest.raises(ConnectError, match="owned=False"):
            await consumer.start()
        with pytest.raises(ConfigError, match="'other'"):
            await consumer.subscribe([Subscription("t", "other")])


def closed(client: Any) -> Any:
    """One that is never started need not warn that it was not stopped."""
    client._closed = True
    return client


@pytest.fixture(scope="module")
def guarded(own_kafka: Kafka) -> Kafka:
    own_kafka.create_topic("guarded")
    return own_kafka


async def test_what_a_user_may_not_read_is_told_at_once(
    guarded: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Topic, group, and creating a topic: a ConnectError that trying again does not change."""
    caplog.set_level(logging.DEBUG)
    url = f"kafka://{LIMITED}:{PASSWORD.replace('@/#', '%40%2F%23')}"
    url += f"@127.0.0.1:{guarded.sasl_plaintext_port}"
    for topic, group in (("guarded", "g"), ("guarded", None), ("absent", None)):
        consumer = KafkaConsumer(connect(url, KafkaConnection))
        await consumer.start()
        try:
            with pytest.raises(ConnectError, match=topic) as caught:
                await consumer.subscribe([Subscription(topic, group)])
            assert not caught.value.retriable
            assert PASSWORD not in str(caught.value) + caplog.text
        finally:
            await consumer.stop()


async def test_nobody_listening_is_a_connect_error() -> None:
    """From `start`, within the time a request has; and before it there is nothing to ping."""
    consumer = KafkaConsumer(connect("kafka://127.0.0.1:1", KafkaConnection))
    with pytest.raises(ConnectError) as caught:
        await consumer.start()
    assert caught.value.retriable
    with pytest.raises(ConnectError):
        await consumer.ping()
    with pytest.raises(ConnectError):
        await consumer.subscribe([Subscription("t", "g")])
    await consumer.stop()


async def test_a_consumer_that_was_stopped_can_be_started_again(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """It goes on where it was."""
    await produce(kafka_broker, topic, numbers(2))
    consumer = consumer_for(kafka_broker)
    for number in range(2):
        await consumer.start()
        await consumer.subscribe([Subscription(topic, topic)])
        (delivery,) = await take(consumer, 1)
        assert delivery.payload == str(number).encode()
        await delivery.ack()
        await consumer.stop()


async def test_a_group_that_begins_at_the_end_skips_nothing_from_then_on(
    kafka_broker: KafkaAccess, topic: str
) -> None:
    """Also where its first member went without having handled anything."""
    latest = f"{QUICK}&auto_offset_reset=latest"
    await produce(kafka_broker, topic, [b"before"])
    async with subscribed(kafka_broker, topic, group=topic, options=latest):
        assert await committed(kafka_broker, topic, topic) == 1
    await produce(kafka_broker, topic, [b"between"])
    async with subscribed(kafka_broker, topic, group=topic, options=latest) as consumer:
        assert payloads(await take(consumer, 1)) == [b"between"]
