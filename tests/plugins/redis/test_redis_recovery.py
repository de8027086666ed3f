"""What a member had when it died, left, stood still or lost a reply: it comes again, in order."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from brokers.redis_access import RedisAccess, connected
from dispytch import ConnectError, Outgoing, SettleError, Subscription

pytest.importorskip("redis")

from dispytch_redis import RedisConsumer
from dispytch_redis.script import BALANCE, CLAIM, DUE, LATER, READ
from plugins.redis.receiving import (
    GROUP,
    Place,
    ack_all,
    attempts,
    lose_replies,
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


@pytest.fixture
def place(redis_broker: RedisAccess, unique_name: str) -> Place:
    return Place(redis_broker, unique_name, shards=4, reconnect_interval=0.05, lease=30)


async def test_what_a_dead_member_had_comes_first_and_in_order(place: Place) -> None:
    """Another member gets it before later events of its key, as another attempt."""
    await place.emit(TOPIC, *numbered(5), key="k")
    async with place.subscribed(TOPIC, lease=0.5) as dead:
        assert payloads(await take(dead, 3)) == numbered(3)
        await place.kill(dead)
        async with place.subscribed(TOPIC, lease=0.5) as other:
            taken = await take(other, 5)
            assert payloads(taken) == numbered(5)
            assert attempts(taken) == [2, 2, 2, 1, 1]
            await ack_all(taken)
            assert await other.backlog() == 0


async def test_a_clean_stop_counts_only_what_was_begun(place: Place) -> None:
    """What no handler has begun is the same attempt for the next member, and not one more."""
    await place.emit(TOPIC, *numbered(4), key="k")
    async with place.subscribed(TOPIC) as first:
        taken = await take(first, 4)
        taken[0].running = 1
    async with place.subscribed(TOPIC) as second:
        again = await take(second, 4)
    assert payloads(again) == numbered(4)
    assert attempts(again) == [2, 1, 1, 1]
    async with place.subscribed(TOPIC) as third:
        assert attempts(await take(third, 4)) == [2, 1, 1, 1]


async def test_what_arrives_while_stopping_is_given_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read under way when the consumer is stopped costs no attempt."""
    async with place.subscribed(TOPIC) as first:
        receiving = asyncio.ensure_future(first.receive(10))
        run, is_read = READ.run, asyncio.Event()

        async def run_slowly(*given: Any) -> Any:
            told = await run(*given)
            if told[3]:
                is_read.set()
                await asyncio.sleep(0.1)
            return told

        monkeypatch.setattr(READ, "run", run_slowly)
        await place.emit(TOPIC, *numbered(3), key="k")
        await is_read.wait()
        receiving.cancel()
        await asyncio.wait({receiving})
    monkeypatch.undo()
    async with place.subscribed(TOPIC) as second:
        taken = await take(second, 3)
    assert payloads(taken) == numbered(3)
    assert attempts(taken) == [1, 1, 1]


async def test_a_lost_reply_of_new_events_loses_and_counts_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before what is new, in order, as a first attempt; and then there is quiet."""
    async with place.subscribed(TOPIC) as consumer:
        lost = lose_replies(monkeypatch, consumer, READ, lambda told: told[3])
        await place.emit(TOPIC, *numbered(3), key="k")
        receiving = asyncio.ensure_future(take(consumer, 5))
        await until(lambda: lost)
        await place.emit(TOPIC, *numbered(3, 5), key="k")
        taken = await receiving
        assert payloads(taken) == numbered(5)
        assert attempts(taken) == [1] * 5
        await ack_all(taken)
        monkeypatch.undo()
        await _is_quiet(consumer, monkeypatch)


async def test_events_are_quiet_when_they_are_read_after_a_lost_reply(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lost ones being the last, waiting for more still waits, and does not spin."""
    async with place.subscribed(TOPIC) as consumer:
        lose_replies(monkeypatch, consumer, READ, lambda told: told[3])
        await place.emit(TOPIC, *numbered(3), key="k")
        await ack_all(await take(consumer, 3))
        monkeypatch.undo()
        await _is_quiet(consumer, monkeypatch)


async def test_a_lost_reply_of_a_takeover_counts_one_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed twice or three times by one member, it is one more attempt and not three."""
    await place.emit(TOPIC, *numbered(5), key="k")
    async with place.subscribed(TOPIC, lease=0.5) as dead:
        await take(dead, 3)
        await place.kill(dead)
        async with place.subscribed(TOPIC, lease=0.5) as other:
            lost = lose_replies(monkeypatch, other, CLAIM, lambda told: told and told[2], times=2)
            taken = await take(other, 5)
            assert len(lost) == 2
            assert payloads(taken) == numbered(5)
            assert attempts(taken) == [2, 2, 2, 1, 1]
            await ack_all(taken)


async def test_a_lost_reply_of_what_was_put_off_counts_one_attempt(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes at once after that, with its headers, and is settled as any other."""
    await place.emit(TOPIC, b"0", key="k")
    async with place.subscribed(TOPIC) as consumer:
        (delivery,) = await take(consumer, 1)
        delivery.headers = (("a", b"\xff"), ("a", b"2"))
        lost = lose_replies(monkeypatch, consumer, DUE, lambda told: told and told[0])
        await delivery.nack(0.05)
        (again,) = await take(consumer, 1)
        assert lost
        assert (again.attempt, again.headers) == (2, (("a", b"\xff"), ("a", b"2")))
        await again.ack()
        assert await consumer.backlog() == 0
    _nothing_is_kept(place)


async def test_a_lost_reply_to_putting_off_puts_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told again, and comes once."""
    await place.emit(TOPIC, b"0", key="k")
    async with place.subscribed(TOPIC) as consumer:
        (delivery,) = await take(consumer, 1)
        lost = lose_replies(monkeypatch, consumer, LATER)
        await delivery.nack(0.3)
        assert lost
        (again,) = await take(consumer, 1)
        assert again.attempt == 2
        await again.ack()
        await nothing_more(consumer)
    _nothing_is_kept(place)


async def test_what_was_taken_before_a_failure_is_not_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read in several steps: what the first gave is delivered when a later one fails."""
    await place.emit(TOPIC, b"0", key="k")
    async with place.subscribed(TOPIC) as consumer:
        (delivery,) = await take(consumer, 1)
        await delivery.nack(0.01)
        lost = lose_replies(monkeypatch, consumer, READ)
        taken = await take(consumer, 1)
        assert lost
        assert payloads(taken) == [b"0"]
        await ack_all(taken)


async def test_cancelled_receives_lose_and_count_nothing(place: Place) -> None:
    """Whenever receiving is cancelled, all comes, in order, as first attempts."""
    async with place.subscribed(TOPIC) as consumer, place.producer():
        emitting = asyncio.ensure_future(_emit_slowly(place, 10))
        taken: list[Any] = []
        async with asyncio.timeout(20):
            while len(taken) < 50:
                receiving = asyncio.ensure_future(consumer.receive(5))
                await asyncio.wait({receiving}, timeout=random.random() * 0.005)
                if receiving.cancel():
                    await asyncio.wait({receiving})
                if not receiving.cancelled():
                    taken += receiving.result()
        await emitting
        assert payloads(taken) == numbered(50)
        assert attempts(taken) == [1] * 50


async def _emit_slowly(place: Place, times: int) -> None:
    for start in range(0, 5 * times, 5):
        await place.emit(TOPIC, *numbered(start, start + 5), key="k")


async def test_a_retry_under_way_is_taken_over_with_its_headers(place: Place) -> None:
    """What a member died with that had been put off before: one attempt more, as it was put off."""
    await place.emit(TOPIC, b"0", key="k")
    async with place.subscribed(TOPIC, lease=0.5) as dead:
        (delivery,) = await take(dead, 1)
        delivery.headers = (("h", b"1"),)
        await delivery.nack(0.01)
        (again,) = await take(dead, 1)
        assert again.attempt == 2
        await place.kill(dead)
        async with place.subscribed(TOPIC, lease=0.5) as other:
            (third,) = await take(other, 1)
            assert (third.attempt, third.headers) == (3, (("h", b"1"),))
            await third.ack()
            assert await other.backlog() == 0
    _nothing_is_kept(place)


async def test_what_is_put_off_survives_its_member(place: Place) -> None:
    """Another member gets it when it is due, and not before what it waited for."""
    await place.emit(TOPIC, *numbered(2), key="k")
    loop = asyncio.get_running_loop()
    async with place.subscribed(TOPIC) as first:
        taken = await take(first, 2)
        began = loop.time()
        await taken[0].nack(0.5)
        await taken[1].ack()
    async with place.subscribed(TOPIC) as second:
        (again,) = await take(second, 1)
        assert loop.time() - began >= 0.5
        assert (again.payload, again.attempt) == (b"0", 2)


async def test_a_member_taken_for_dead_reads_and_spoils_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """It is fenced, is told so when it settles, says so in the log, and comes back."""
    await place.emit(TOPIC, *numbered(3), key="k")
    async with place.subscribed(TOPIC, lease=0.5) as late:
        held = await take(late, 2)
        await place.kill(late)
        async with place.subscribed(TOPIC, lease=0.5) as other:
            taken = await take(other, 3)
            assert payloads(taken) == numbered(3)
            with pytest.raises(SettleError):
                await held[1].nack(5)
            await nothing_more(late)  # it reads, and finds that nothing is its own
            assert all(each.lost for each in held)
            with pytest.raises(SettleError):
                await held[0].ack()
            await place.emit(TOPIC, b"3", key="k")
            last = await take(other, 1)
            await ack_all([*taken, *last])
            assert "not this member's any more" in caplog.text
            membership: Any = late._membership
            former = member(late)
            membership._keeper = asyncio.create_task(membership._keep())
            await until(lambda: member(late) != former and shards(late))
            assert "was taken for dead" in caplog.text
            assert await other.backlog() == 0


async def test_a_member_that_was_late_leaves_the_attempts_of_others_alone(place: Place) -> None:
    """What it had not begun is under way elsewhere by then: that attempt counts."""
    await place.emit(TOPIC, b"0")
    async with place.subscribed(TOPIC, lease=0.5) as late:
        await take(late, 1)
        await place.kill(late)
        async with place.subscribed(TOPIC, lease=0.5) as other:
            (taken,) = await take(other, 1)
            membership: Any = late._membership
            link: Any = late._link
            membership._lapse()
            await link.wire.call("PING")  # what it sent before has been done
            assert [count for _, count in place.pending(TOPIC, 4)] == [taken.attempt] == [2]
            await taken.ack()


def test_a_consumer_goes_on_in_another_loop(place: Place) -> None:
    """What it left in a loop that is gone, a fetch under way included, does not hinder."""
    consumer = RedisConsumer(place.connection(lease=0.5))

    async def receive(payload: bytes) -> None:
        await consumer.start()
        await consumer.subscribe([Subscription(TOPIC, GROUP)])
        await place.emit(TOPIC, payload)
        await ack_all(taken := await take(consumer, 1))
        assert payloads(taken) == [payload]
        await nothing_more(consumer, 0.01)

    asyncio.run(receive(b"1"))
    asyncio.run(consumer.stop())  # nothing of it is here
    asyncio.run(receive(b"2"))


async def test_nothing_is_begun_after_the_end_of_the_lease(place: Place) -> None:
    """What no handler has begun by then is lost; still ours, it comes again, uncounted."""
    await place.emit(TOPIC, *numbered(4), key="k")
    async with place.subscribed(TOPIC, lease=0.5) as consumer:
        taken = await take(consumer, 3)
        taken[0].running = 1
        membership: Any = consumer._membership
        membership._keeper.cancel()
        await until(lambda: taken[1].lost and taken[2].lost)
        assert not taken[0].lost
        membership._keeper = asyncio.create_task(membership._keep())
        again = await take(consumer, 3)
        assert payloads(again) == numbered(1, 4)
        assert attempts(again) == [1, 1, 1]
        await ack_all([taken[0], *again])
        assert await consumer.backlog() == 0


async def test_a_lost_reply_to_joining_leaves_no_ghost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who could not join owns nothing; the next one gets all at once."""
    await place.emit(TOPIC, b"0")
    failing = RedisConsumer(place.connection())
    await failing.start()
    lost = lose_replies(monkeypatch, failing, BALANCE)
    with pytest.raises(ConnectError):
        await failing.subscribe([Subscription(TOPIC, GROUP)])
    assert lost
    await until(lambda: failing._link.wire)
    await failing.stop()
    assert place.owners() == {}
    async with place.subscribed(TOPIC) as next_one:
        assert payloads(await take(next_one, 1)) == [b"0"]


def _each(command: Callable[[str], tuple[str, ...]]) -> Callable[[Place], None]:
    """A command for each stream."""

    def run(place: Place) -> None:
        for number in range(4):
            place.call(*command(place.keys.stream(place.keys.shard(TOPIC, number))))

    return run


GONE, NOT_OURS, DEAD = "was gone from", "not this member's any more", "was taken for dead"


@pytest.mark.parametrize("how", ["read", "passed over"])
async def test_what_others_did_to_the_group_does_not_make_it_spin(
    place: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What an administrator's client was given comes; what the group was set beyond does not."""
    async with place.subscribed(TOPIC, shards=1) as consumer:
        stream = place.keys.stream(place.keys.shard(TOPIC, 0))
        commands = {
            "read": ("XREADGROUP", "GROUP", GROUP, "admin", "STREAMS", stream, ">"),
            "passed over": ("XGROUP", "SETID", stream, GROUP, "$"),
        }
        await nothing_more(consumer, 0.1)
        with connected(place.broker.url) as connection:
            connection.send("MULTI")
            connection.send("XADD", stream, "*", "payload", "0")
            connection.send(*commands[how])
            connection.send("EXEC")
            for _ in range(4):
                connection.read()
        if how == "read":
            taken = await take(consumer, 1)
            assert (taken[0].payload, taken[0].attempt) == (b"0", 1)
            await ack_all(taken)
        await _is_quiet(consumer, monkeypatch)
        await place.emit(TOPIC, b"1")
        assert payloads(await take(consumer, 1)) == [b"1"]


async def test_nor_where_all_shards_do_not_fit_in_one_step(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there was news of is looked into in each step, not only in the first."""
    monkeypatch.setattr("dispytch_redis.shard._SHARDS", 1)
    async with place.subscribed(TOPIC, shards=2) as consumer:
        await nothing_more(consumer, 0.1)
        streams = [place.keys.stream(place.keys.shard(TOPIC, number)) for number in (0, 1)]
        with connected(place.broker.url) as connection:
            connection.send("MULTI")
            for stream in streams:
                connection.send("XADD", stream, "*", "payload", "0")
                connection.send("XGROUP", "SETID", stream, GROUP, "$")
            connection.send("EXEC")
            for _ in range(6):
                connection.read()
        await _is_quiet(consumer, monkeypatch, steps=2)


LOSSES: dict[str, tuple[Callable[[Place], Any], str]] = {
    "streams": (_each(lambda stream: ("DEL", stream)), GONE),
    "groups": (_each(lambda stream: ("XGROUP", "DESTROY", stream, GROUP)), GONE),
    "owners": (lambda place: place.call("DEL", place.group.owners), NOT_OURS),
    "members": (lambda place: place.call("DEL", place.group.members), DEAD),
    "subscriptions": (lambda place: place.call("DEL", place.group.subscriptions), ""),
    "changes": (lambda place: place.call("DEL", place.group.changes), ""),
    "scripts": (lambda place: place.call("SCRIPT", "FLUSH"), ""),
    "everything": (lambda place: place.call("DEL", *place.left()), DEAD),
}


@pytest.mark.parametrize("what", LOSSES)
async def test_a_loss_of_data_is_told_and_gone_on_from(
    place: Place, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Two members go on with what is emitted then; what they held does no harm."""
    caplog.set_level(logging.WARNING)
    keys = [f"key {number}" for number in range(12)]
    async with (
        place.subscribed(TOPIC) as one,
        place.subscribed(TOPIC) as two,
        place.producer() as producer,
    ):
        await until(lambda: len(shards(one)) == len(shards(two)) == 2)
        came: list[Any] = []

        async def handle(consumer: Any) -> None:
            while True:
                for delivery in await take(consumer, 1):
                    came.append(delivery.payload)
                    try:
                        await delivery.ack()
                    except SettleError:
                        continue

        async def emit(name: str) -> None:
            for key in keys:
                out = Outgoing("", "", TOPIC, f"{name} {key}".encode(), key)
                await producer.send_message(out)

        tasks = [asyncio.create_task(handle(each)) for each in (one, two)]
        await emit("before")
        await until(lambda: len(came) == 12)
        lose, told = LOSSES[what]
        lose(place)
        await emit("after")
        await until(lambda: {f"after {key}".encode() for key in keys} <= set(came))
        await until(lambda: told in caplog.text)
        await until(lambda: len(shards(one)) == len(shards(two)) == 2)
        await until(lambda: set(place.owners().values()) == {member(one), member(two)})
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _nothing_is_kept(place: Place) -> None:
    """Nothing of what was put off is left."""
    assert not [key for key in place.left() if ":later" in key]


async def _is_quiet(
    consumer: RedisConsumer, monkeypatch: pytest.MonkeyPatch, steps: int = 1
) -> None:
    """It waits, and does not ask again and again."""
    reads, run = [0], READ.run

    async def run_and_count(*given: Any) -> Any:
        reads[0] += 1
        return await run(*given)

    monkeypatch.setattr(READ, "run", run_and_count)
    await nothing_more(consumer, 0.7)
    assert reads[0] < 10 * steps
