"""The memory backend's groups: what a broker promises."""

import asyncio

import pytest

from dispytch import Delivery, SettleError, Subscription
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage


def put(broker: MemoryBroker, *names: str, key: str | None = None, topic: str = "t") -> None:
    for name in names:
        broker.append(MemoryMessage(topic, name.encode(), key, {}, None, name, "x"))


async def member(
    broker: MemoryBroker, group: str | None = "g", topic: str = "t", ordered: bool = True
) -> MemoryConsumer:
    consumer = MemoryConsumer(broker)
    await consumer.start()
    await consumer.subscribe([Subscription(topic, group, ordered)])
    return consumer


async def take(consumer: MemoryConsumer, limit: int = 100) -> list[Delivery]:
    async with asyncio.timeout(5):
        return list(await consumer.receive(limit))


def names(deliveries: list[Delivery]) -> str:
    return "".join(delivery.payload.decode() for delivery in deliveries)


async def test_each_group_gets_all_and_members_share() -> None:
    """Every group gets every message; its members share them."""
    broker = MemoryBroker()
    put(broker, "a")
    one, two, other = await member(broker), await member(broker), await member(broker, "other")
    put(broker, "b", "c")
    shared = names(await take(one, 2)) + names(await take(two, 2))
    assert shared == "abc"
    assert names(await take(other)) == "abc"
    assert await one.backlog() == 3


async def test_without_a_group_only_what_comes_later() -> None:
    """A listener alone gets what is emitted after it subscribed, and leaves nothing behind."""
    broker = MemoryBroker()
    put(broker, "a")
    alone = await member(broker, None)
    put(broker, "b")
    assert names(await take(alone)) == "b"
    await alone.stop()
    assert broker.unsettled == 0


async def test_messages_of_a_key_are_with_one_member_at_a_time() -> None:
    """While a member has one of a key, the next ones of that key are its own."""
    broker = MemoryBroker()
    one, two = await member(broker), await member(broker)
    put(broker, "a", key="k")
    [first] = await take(one)
    put(broker, "b", key="k")
    put(broker, "c", key="other")
    assert names(await take(two)) == "c"
    [second] = await take(one)
    await first.ack()
    await second.ack()
    put(broker, "d", key="k")
    assert names(await take(two)) == "d"


async def test_unordered_messages_of_a_key_are_shared() -> None:
    """Without order a key binds nothing to a member."""
    broker = MemoryBroker()
    one, two = await member(broker, ordered=False), await member(broker, ordered=False)
    put(broker, "a", "b", key="k")
    assert names(await take(one, 1)) + names(await take(two, 1)) == "ab"


async def test_leaving_member_gives_back_in_order() -> None:
    """What a member held comes to another one, before what is newer, with the next attempt."""
    broker = MemoryBroker()
    one = await member(broker)
    put(broker, "a", "b", "c", key="k")
    held = await take(one, 2)
    await held[0].ack()
    two = await member(broker)
    waiting = asyncio.ensure_future(take(two))
    await asyncio.sleep(0)
    await one.stop()
    found = await waiting
    assert names(found) == "bc"
    assert [delivery.attempt for delivery in found] == [2, 1]
    with pytest.raises(SettleError):
        await held[1].ack()
    for delivery in found:
        await delivery.ack()
    assert broker.unsettled == 0


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_nacked_messages_come_again_in_the_order_they_were_emitted(order: str) -> None:
    """In whatever order they are given back: before all that are newer, with headers kept."""
    broker = MemoryBroker()
    one = await member(broker)
    put(broker, "a", "b", "c", key="k")
    held = {names([delivery]): delivery for delivery in await take(one, 2)}
    for name in order:
        held[name].headers = (("tried", b"1"),)
        await held[name].nack()
    found = await take(one)
    assert names(found) == "abc"
    assert [delivery.attempt for delivery in found] == [2, 2, 1]
    assert found[0].headers == (("tried", b"1"),)


async def test_message_settles_once() -> None:
    """A second ack or nack is a SettleError and changes nothing."""
    broker = MemoryBroker()
    one = await member(broker)
    put(broker, "a", "b")
    first, second = await take(one)
    await first.ack()
    for again in (first.ack, first.nack):
        with pytest.raises(SettleError):
            await again()
    assert broker.unsettled == 1
    await second.nack()
    assert names(await take(one)) == "b"


async def test_cancelled_receive_loses_nothing() -> None:
    """A receive that is cancelled as a message comes leaves it to the next one."""
    broker = MemoryBroker()
    one, two = await member(broker), await member(broker)
    first, second = asyncio.ensure_future(take(one)), asyncio.ensure_future(take(two))
    await asyncio.sleep(0)
    put(broker, "a")
    first.cancel()
    second.cancel()
    await asyncio.wait([first, second])
    assert names(await take(two)) == "a"


async def test_new_topic_of_a_group_begins_with_the_first_message() -> None:
    """A group that subscribes to more gets what was there, and nothing a second time."""
    broker = MemoryBroker()
    put(broker, "a")
    put(broker, "x", topic="other")
    one = await member(broker)
    assert names(await take(one)) == "a"
    two = await member(broker, topic="*")
    assert names(await take(two)) == "x"


async def test_broker_of_a_name_is_one() -> None:
    """`memory://name` is the same broker for the same name; clear forgets what waits."""
    assert MemoryBroker.named("test-memory") is MemoryBroker.named("test-memory")
    broker = MemoryBroker()
    one = await member(broker)
    put(broker, "a", "b", key="k")
    [held] = await take(one, 1)
    broker.clear()
    assert (broker.unsettled, broker.undelivered) == (1, 0)
    await held.ack()
    put(broker, "c", key="k")
    assert names(await take(one)) == "c"
