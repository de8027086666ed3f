"""Probes: each shows whether a capability works, and raises where it does not.

A probe is told how many seconds to wait for what may come.
"""

import asyncio
import subprocess
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from dispytch.consumer import Consumer, Delivery
from dispytch.testing.conformance.kit import LANES, Kit
from dispytch.testing.conformance.workers import environment
from dispytch.topics import DEAD_LETTER

if TYPE_CHECKING:
    from dispytch.producer import Producer

__all__ = [
    "ONE_SECOND",
    "check_order",
    "comes_again",
    "comes_later",
    "earlier_events_come",
    "emit_and_die",
    "expired_events_stay_away",
    "headers_travel",
    "high_comes_first",
    "keys_travel",
    "one_at_a_time",
    "patterns_match",
    "two_groups",
]


ONE_SECOND = 0.95
"""Seconds, for what is told a second: a broker's clock is not ours."""


async def check_order(kit: Kit, members: int) -> None:
    """Emit to so many members of a group; order must hold as far as it is declared."""
    topic, group = await kit.topic(), kit.group()
    consumers = await asyncio.gather(*(kit.consumer(topic, group=group) for _ in range(members)))
    emitter, kind, count = await kit.emitter(timeout=60), kit.event(topic), kit.many(3_200)
    await emitter.emit_many(kind(lane=number % LANES, number=number) for number in range(count))
    came = [kit.number_of(delivery) for _, delivery in await kit.share(consumers, count)]
    lanes: defaultdict[object, list[int]] = defaultdict(list)
    total = kit.capabilities.ordering == "total"
    for lane, number in dict.fromkeys(came):  # the first time of each counts
        lanes[None if total else lane].append(number)
    wrong = [lane for lane, numbers in lanes.items() if numbers != sorted(numbers)]
    assert not wrong, f"out of order with {members} consumers: {'all' if total else wrong}"
    assert len(lanes) == (1 if total else LANES), "too little came to tell"


async def one_at_a_time(kit: Kit, within: float) -> None:
    """While a member holds an event, others of its key (total: any) go to no other member."""
    topic, group = await kit.topic(), kit.name("g")
    members = [await kit.consumer(topic, group=group) for _ in range(2)]
    producer = await kit.producer()
    await kit.send(producer, topic, b"0", key="k")
    receiving = [asyncio.create_task(kit.receive(member, 1, ack=False)) for member in members]
    done, waiting = await asyncio.wait(receiving, return_when="FIRST_COMPLETED", timeout=within)
    assert done, f"nothing came within {within:g} s"
    assert waiting, "one event went to two members at once"
    for number in range(1, 21):
        key = f"k{number}" if kit.capabilities.ordering == "total" else "k"
        await kit.send(producer, topic, b"%d" % number, key=key)
    early, _ = await asyncio.wait(waiting, timeout=max(kit.suite.quiet, 0.5))
    for task in waiting:
        task.cancel()
    assert not early, "while a member held an event, another got a later one"


async def two_groups(kit: Kit, within: float) -> None:
    """Each of two groups gets every event once; its two members share them."""
    topic, groups = await kit.topic(), [kit.name("g"), kit.name("h")]
    members = [[await kit.consumer(topic, group=group) for _ in range(2)] for group in groups]
    emitter, kind = await kit.emitter(), kit.event(topic)
    events = [kind(lane=number % LANES, number=number) for number in range(100)]
    await emitter.emit_many(events)
    for group in members:
        came = await kit.share(group, len(events), within=within)
        times = Counter(kit.id_of(delivery) for _, delivery in came)
        missing = [event.number for event in events if event.id not in times]
        assert not missing, f"{len(missing)} of {len(events)} did not reach the group"
        twice = [number for number, count in times.items() if count > 1]
        assert not twice, f"{len(twice)} of {len(events)} came twice to one group"


async def comes_again(kit: Kit, within: float) -> None:
    """What is received and not acknowledged comes again."""
    topic = await kit.topic()
    group = kit.group()
    first, producer = await kit.consumer(topic, group=group), await kit.producer()
    sent = {b"event %d" % number for number in range(5)}
    for payload in sorted(sent):
        await kit.send(producer, topic, payload)
    held, second = await kit.receive(first, 5, ack=False, within=within), first
    if group is None:  # what one held, no other gets
        for delivery in held:
            await delivery.nack()
    else:
        await kit.stop(first.stop())
        second = await kit.consumer(topic, group=group)
    came = {delivery.payload for delivery in await kit.receive(second, 5, within=within)}
    assert came == sent


async def comes_later(kit: Kit, within: float) -> None:
    """What is given back with a delay comes after it, as the next attempt."""
    topic = await kit.topic()
    consumer, producer = await kit.subscriber(topic), await kit.producer()
    await kit.send(producer, topic, b"later")
    (delivery,) = await kit.receive(consumer, 1, ack=False, within=within)
    loop = asyncio.get_running_loop()
    began, before = loop.time(), delivery.attempt
    await delivery.nack(1.0)
    (again,) = await kit.receive(consumer, 1, within=within)
    waited = loop.time() - began
    assert waited >= ONE_SECOND, f"it came {waited:.2f} s after nack(1.0)"
    assert again.payload == b"later"
    assert again.attempt > before


async def headers_travel(kit: Kit, within: float) -> None:
    """Headers arrive as they were sent; there may be others."""
    headers: dict[str, str | bytes] = {
        "plain": "text",
        "Mixed-Case": "text",
        "größe": "zwölf ✓",
        "bytes": b"\x00\xff",
        "empty": "",
    }
    delivery = await _round_trip(kit, within, headers=headers)
    for name, value in headers.items():
        found = [got for header, got in delivery.headers if header == name]
        assert found == [value.encode() if isinstance(value, str) else value], f"header {name!r}"


async def keys_travel(kit: Kit, within: float) -> None:
    """A key arrives as it was sent."""
    for key in ("plain", "schlüssel ✓", None):
        delivery = await _round_trip(kit, within, key=key)
        assert delivery.key == key


async def patterns_match(kit: Kit, within: float) -> None:
    """Two patterns get what they match of four topics, and nothing else."""
    root, join = kit.name("p"), kit.backend.topic_delimiter.join
    topics = {
        "both": join((root, "ada", "placed")),
        "rest": join((root, "ada", "b", "placed")),
        "dead": join((root, "placed", DEAD_LETTER)),
        "neither": join((f"{root}-more", "ada", "placed")),
    }
    for topic in topics.values():
        await kit.make_topic(topic)
    await kit.subscriber(*topics.values())  # so that they all go somewhere
    group = kit.group()
    one = await kit.consumer(join((root, "{name}", "placed")), group=group)
    rest = await kit.consumer(join((root, "*")), group=kit.group())
    producer = await kit.producer()
    for what, topic in topics.items():
        await kit.send(producer, topic, what.encode())
    for consumer, expected in ((one, [b"both"]), (rest, [b"both", b"rest"])):
        came = await kit.receive(consumer, len(expected), within=within)
        came += await kit.rest(consumer)
        assert sorted(delivery.payload for delivery in came) == expected


async def earlier_events_come(kit: Kit, within: float) -> None:
    """A new group gets what was emitted before it was there."""
    topic = await kit.topic()
    await kit.subscriber(topic)  # so that it goes somewhere
    producer = await kit.producer()
    earlier = [b"event %d" % number for number in range(5)]
    for payload in earlier:
        await kit.send(producer, topic, payload)
    late = await kit.consumer(topic, group=kit.name("late"))
    came = await kit.receive(late, len(earlier), within=within)
    assert sorted(delivery.payload for delivery in came) == earlier


async def expired_events_stay_away(kit: Kit, within: float) -> None:
    """Of three events the one that has expired does not come."""
    topic = await kit.topic()
    group = kit.group()
    await kit.stop((await kit.consumer(topic, group=group)).stop())
    producer = await kit.producer()
    await kit.send(producer, topic, b"expired", config=kit.suite.ttl(1))
    await kit.send(producer, topic, b"lasting", config=kit.suite.ttl(3600))
    await kit.send(producer, topic, b"for ever")
    await asyncio.sleep(2.0)  # the broker's clock is none that could be waited on
    consumer = await kit.consumer(topic, group=group)
    came = [*await kit.receive(consumer, 2, within=within), *await kit.rest(consumer)]
    assert sorted(delivery.payload for delivery in came) == [b"for ever", b"lasting"]


async def high_comes_first(kit: Kit, within: float) -> None:
    """An event of high priority comes before one of low priority that was there first."""
    topic = await kit.topic()
    group = kit.group()
    await kit.stop((await kit.consumer(topic, group=group)).stop())
    producer = await kit.producer()
    for number in range(5):
        await kit.send(producer, topic, b"low %d" % number, config=kit.suite.priority(0))
    await kit.send(producer, topic, b"high", config=kit.suite.priority(1))
    consumer = await kit.consumer(topic, group=group, held=1)
    came = [each.payload for each in await kit.receive(consumer, 6, limit=1, within=within)]
    assert came.index(b"high") < came.index(b"low 4")


async def _round_trip(kit: Kit, within: float, **message: Any) -> Delivery:
    topic = await kit.topic()
    consumer: Consumer = await kit.subscriber(topic)
    producer: Producer = await kit.producer()
    await kit.send(producer, topic, b"any", **message)
    (delivery,) = await kit.receive(consumer, 1, within=within)
    return delivery


_DIE = """
import asyncio, os, signal, sys, uuid
from dispytch import Outgoing
from dispytch.plugins import backend_for_url
from dispytch.url import connect

async def main(url, topic):
    backend = backend_for_url(url)
    producer = backend.make_producer(connect(url, backend.connection))
    await producer.start()
    deadline = asyncio.get_running_loop().time() + 30
    for number in range(50):
        payload = b"event %d" % number
        await producer.send_message(
            Outgoing(uuid.uuid4().hex, "any", topic, payload, deadline=deadline)
        )
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


def emit_and_die(url: str, topic: str) -> None:
    """Emit in a process that is killed as soon as all is confirmed."""
    done = subprocess.run(
        [sys.executable, "-c", _DIE, url, topic],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == -9, done.stderr
