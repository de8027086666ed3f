"""What a consumer promises: nothing missing, nothing settled early, nothing held without bound."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import Sequence

from dispytch.consumer import Consumer, Delivery
from dispytch.errors import ConnectError, SettleError
from dispytch.listener import Event
from dispytch.testing.conformance.hooks import Network
from dispytch.testing.conformance.kit import LANES, Kit, Numbered, is_short
from dispytch.testing.conformance.promise import promised

__all__ = ["ReceivingTests"]

_RECEIVE = "`Consumer.receive`"
_STOP = "`Consumer.stop`: what is not settled goes back"

_FILLING = 16 * 1024
_BACKLOG = 8_000
_HELD, _TAKEN = 100, 50
_FLAT = 16 * 1024 * 1024
"""Bytes that a consumer may need for a backlog of several times as many."""


class ReceivingTests:
    """Competing consumers, settling, cancelling, bounds."""

    @promised(look="`Consumer.subscribe` without a group", needs=("consumer",))
    async def test_without_a_group_only_later_events_come(self, kit: Kit) -> None:
        """Without a group a consumer gets what is emitted after it subscribed, and all of it."""
        topic = await kit.topic()
        await kit.subscriber(topic)  # so that the topic goes somewhere
        producer = await kit.producer()
        await kit.send(producer, topic, b"before")
        consumer = await kit.consumer(topic)
        for number in range(20):
            await kit.send(producer, topic, f"after {number}".encode())
        came = [*await kit.receive(consumer, 20), *await kit.rest(consumer)]
        assert {delivery.payload for delivery in came} == {b"after %d" % n for n in range(20)}
        assert len(came) == 20

    @promised(
        look="how members of a group share",
        needs=("consumer", "groups"),
        within=300,
        shows="groups",
    )
    async def test_many_consumers_miss_nothing(self, kit: Kit) -> None:
        """5,000 events to 20 consumers of one group: none is missing."""
        topic, group = await kit.topic(), kit.name("g")
        consumers = await asyncio.gather(*(kit.consumer(topic, group=group) for _ in range(20)))
        emitter, kind, count = await kit.emitter(timeout=120), kit.event(topic), kit.many(5_000)
        events = [kind(lane=number % 100, number=number) for number in range(count)]
        await emitter.emit_many(events)
        came = await kit.share(consumers, count, within=120)
        there = {kit.id_of(delivery) for _, delivery in came}
        missing = [event.number for event in events if event.id not in there]
        assert not missing, f"{len(missing)} of {count} are missing, first number {missing[0]}"

    @promised(
        look="`Subscription.ordered`: where it is false, nothing keeps members from sharing",
        needs=("consumer", "groups", "competing members"),
        shows="groups",
    )
    async def test_members_share_the_work(self, kit: Kit) -> None:
        """Where order is not asked for, each member of a group gets some of the events."""
        topic, group = await kit.topic(), kit.name("g")
        members = await asyncio.gather(
            *(kit.consumer(topic, group=group, ordered=False, held=20) for _ in range(2))
        )
        producer = await kit.producer()
        for number in range(200):
            await kit.send(producer, topic, b"event %d" % number, key=f"key {number}")
        came = await kit.share(members, 200, within=20)
        assert {number for number, _ in came} == {0, 1}, "one member got everything"

    @promised(
        look="`Delivery.ack` is the only way to settle; see also what `receive` does",
        needs=("consumer", "groups", "manual_ack"),
        shows="manual_ack",
    )
    async def test_nothing_is_settled_while_a_handler_runs(self, kit: Kit) -> None:
        """An event whose handler did not finish comes again, to another of the group."""
        topic, group = await kit.topic(), kit.name("g")
        listener, begun = kit.listener(group, drain_timeout=0.1), asyncio.Event()

        @listener.handler(kit.event(topic))
        async def never(event: Event[Numbered]) -> None:
            begun.set()
            await asyncio.Event().wait()

        await listener.start()
        event = kit.event(topic)()
        await (await kit.emitter()).emit(event)
        await begun.wait()
        await listener.stop()
        came = await kit.receive(await kit.consumer(topic, group=group), 1)
        assert [kit.id_of(delivery) for delivery in came] == [event.id]

    @promised(
        look="`Delivery.nack` and `Delivery.attempt`",
        needs=("consumer", "manual_ack"),
        shows="manual_ack",
    )
    async def test_nack_brings_it_again(self, kit: Kit) -> None:
        """What is given back comes again: the same bytes, a higher attempt; acked, it is done."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        await kit.send(producer, topic, bytes(range(256)), key="k")
        (delivery,) = await kit.receive(consumer, 1, ack=False)
        # What comes again may be the same object.
        first, key, attempts = delivery.payload, delivery.key, [delivery.attempt]
        for _ in range(3):
            await delivery.nack()
            (delivery,) = await kit.receive(consumer, 1, ack=False)
            assert delivery.payload == first, "other bytes came again"
            assert delivery.key == key, "another key came again"
            attempts.append(delivery.attempt)
        assert attempts == sorted({1, *attempts}), "attempts do not rise from 1"
        await delivery.ack()
        assert not await kit.rest(consumer), "it came again after ack()"

    @promised(
        look="`Delivery.ack` when its consumer is stopped",
        needs=("consumer", "manual_ack", "groups"),
    )
    async def test_ack_after_stop_is_harmless(self, kit: Kit) -> None:
        """Acknowledging too late is a SettleError or nothing, and the event comes again."""
        topic, group = await kit.topic(), kit.name("g")
        consumer, producer = await kit.consumer(topic, group=group), await kit.producer()
        await kit.send(producer, topic, b"first")
        (late,) = await kit.receive(consumer, 1, ack=False)
        await kit.stop(consumer.stop())
        await _settled(late)
        other = await kit.consumer(topic, group=group)
        await kit.send(producer, topic, b"second")
        came = [*await kit.receive(other, 2), *await kit.rest(other)]
        assert sorted(delivery.payload for delivery in came) == [b"first", b"second"]

    @promised(
        look="`Delivery.ack` on a lost connection, and how the consumer connects again",
        needs=("consumer", "manual_ack", "groups", "network"),
        within=120,
    )
    async def test_ack_after_a_lost_connection_is_harmless(
        self, kit: Kit, network: Network
    ) -> None:
        """After its connection was reset a consumer goes on, whatever becomes of late acks."""
        topic = await kit.topic()
        producer = await kit.producer()
        consumer = await kit.subscriber(topic, url=network.url)
        await kit.send(producer, topic, b"first")
        (late,) = await kit.receive(consumer, 1, ack=False)
        await asyncio.to_thread(network.proxy.reset)
        left = {b"second"} if await _settled(late) else {b"first", b"second"}
        await kit.send(producer, topic, b"second")
        async with asyncio.timeout(kit.suite.recovery):
            while left:
                for delivery in await _received(consumer):
                    if await _settled(delivery):
                        left.discard(delivery.payload)

    @promised(look=f"{_RECEIVE}: take nothing before it is returned", needs=("consumer",))
    async def test_cancelled_receive_loses_nothing(self, kit: Kit) -> None:
        """A `receive` that is cancelled, at whatever moment, loses no event."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        payloads = {b"event %d" % number for number in range(200)}
        came: list[Delivery] = []

        async def send() -> None:
            for payload in payloads:
                await kit.send(producer, topic, payload)

        sending = asyncio.create_task(send())
        turns = 0
        while not sending.done() or turns < 100:
            receiving = asyncio.create_task(consumer.receive(5))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait({receiving})
            came += [] if receiving.cancelled() else receiving.result()
            turns += 1
            await asyncio.sleep(0.001)  # a broker in another process needs a moment
        await sending
        for delivery in came:
            await delivery.ack()
        came += await kit.receive(consumer, max(len(payloads) - len(came), 0))
        came += await kit.rest(consumer)
        missing = payloads - {delivery.payload for delivery in came}
        assert not missing, f"{len(missing)} of {len(payloads)} are lost"

    @promised(
        look="`Consumer.stop`: tell the broker first what was acknowledged",
        needs=("consumer", "groups", "manual_ack"),
        shows="manual_ack",
    )
    async def test_acknowledged_events_stay_done(self, kit: Kit) -> None:
        """What was acknowledged does not come again, though its consumer stops at once."""
        topic, group = await kit.topic(), kit.name("g")
        first, producer = await kit.consumer(topic, group=group), await kit.producer()
        for number in range(20):
            await kit.send(producer, topic, b"event %d" % number)
        await kit.receive(first, 20)
        await kit.stop(first.stop())
        second = await kit.consumer(topic, group=group)
        await kit.send(producer, topic, b"last")
        came = [*await kit.receive(second, 1), *await kit.rest(second)]
        assert [delivery.payload for delivery in came] == [b"last"]

    @promised(
        look="`Delivery.ack`: what was received before it and is open must stay open",
        needs=("consumer", "groups", "manual_ack"),
        shows="manual_ack",
    )
    async def test_ack_settles_nothing_else(self, kit: Kit) -> None:
        """What was received and not acknowledged comes again, whatever was behind it."""
        topic, group = await kit.topic(), kit.name("g")
        first, producer = await kit.consumer(topic, group=group), await kit.producer()
        for number in range(20):
            await kit.send(producer, topic, b"event %d" % number, key=f"key {number}")
        came = await kit.receive(first, 20, ack=False)
        for delivery in came[1::2]:
            await delivery.ack()
        await kit.stop(first.stop())
        second = await kit.consumer(topic, group=group)
        again = {each.payload for each in [*await kit.receive(second, 10), *await kit.rest(second)]}
        missing = {delivery.payload for delivery in came[::2]} - again
        assert not missing, f"{sorted(missing)} were open and did not come again"

    @promised(look=_STOP, needs=("consumer", "groups"))
    async def test_stopped_consumer_leaves_the_others_going(self, kit: Kit) -> None:
        """One subscription ends: other groups, and the rest of its own, go on."""
        topic, group = await kit.topic(), kit.name("g")
        first = await kit.consumer(topic, group=group)
        second = await kit.consumer(topic, group=group)
        other = await kit.subscriber(topic)
        producer = await kit.producer()
        await kit.send(producer, topic, b"before", key="a")
        assert len(await kit.share([first, second], 1)) == 1
        await kit.stop(first.stop())
        for number in range(10):
            await kit.send(producer, topic, b"after %d" % number, key="a")
        came = {delivery.payload for delivery in await kit.receive(second, 10)}
        assert came == {b"after %d" % number for number in range(10)}
        assert len(await kit.receive(other, 11)) == 11

    @promised(look=f"{_RECEIVE}: the `limit`", needs=("consumer",))
    async def test_receive_returns_at_most_limit(self, kit: Kit) -> None:
        """`receive(limit)` returns at least one delivery and at most `limit`."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.wait([waiting], timeout=kit.suite.quiet)
        early = waiting.done()
        for number in range(60):
            await kit.send(producer, topic, b"event %d" % number)
        for delivery in (first := await waiting):
            await delivery.ack()
        assert not early, f"it returned {first} when nothing was there"
        assert len(first) == 1
        left = 59
        while left > 0:
            limit = 1 + left % 7
            fresh = await consumer.receive(limit)
            assert 1 <= len(fresh) <= limit
            for delivery in fresh:
                await delivery.ack()
            left -= len(fresh)

    @promised(
        look=f"{_RECEIVE}: fetch what is asked for, hold at most `max_held`",
        needs=("consumer", "groups", "manual_ack", "other processes"),
        within=300,
    )
    async def test_memory_stays_flat_with_a_backlog(self, kit: Kit) -> None:
        """However much waits, a consumer that is not asked for more does not fetch it."""
        topic, group = await kit.topic(), kit.name("g")
        await kit.stop((await kit.consumer(topic, group=group)).stop())
        count = _BACKLOG // 4 if is_short() else _BACKLOG
        producer = await kit.producer()
        for start in range(0, count, 500):
            batch = [
                kit.outgoing(topic, b"x" * _FILLING, str(number % LANES))
                for number in range(start, start + 500)
            ]
            assert not [
                outcome
                for outcome in await producer.send_messages(batch)
                if isinstance(outcome, BaseException)
            ]
        peak = await _peak_of_taking(kit, topic, group)
        assert peak < _FLAT, (
            f"{peak >> 20} MB for {_TAKEN} of {count} events of {_FILLING >> 10} KB"
        )


async def _peak_of_taking(kit: Kit, topic: str, group: str) -> int:
    """The bytes a consumer needs that takes a few events of many, and no more."""
    tracemalloc.start()
    try:
        consumer: Consumer = await kit.consumer(topic, group=group, held=_HELD)
        came = await kit.receive(consumer, _TAKEN, within=60, limit=10, ack=False)
        assert len(came) == _TAKEN
        with contextlib.suppress(TimeoutError):  # time to fetch what nobody asked for
            async with asyncio.timeout(max(kit.suite.quiet, 1.0)):
                await asyncio.Event().wait()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def _settled(delivery: Delivery) -> bool:
    """Acknowledge it; whether that is known to have worked."""
    try:
        await delivery.ack()
    except SettleError:
        return False
    return True


async def _received(consumer: Consumer) -> Sequence[Delivery]:
    """What comes, or nothing while it connects again."""
    try:
        return await consumer.receive(10)
    except ConnectError as error:
        if not error.retriable:
            raise
        await asyncio.sleep(0.05)
        return ()
