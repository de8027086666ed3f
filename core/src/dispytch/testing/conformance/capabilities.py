"""What `Capabilities` declares, from both sides.

What is declared and does not work is a lie; what works and is not declared is one too, because
users choose a backend by its flags.
"""

import asyncio
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from dispytch.consumer import Consumer, Delivery
from dispytch.errors import EmitError
from dispytch.testing.conformance.hooks import Broker
from dispytch.testing.conformance.kit import LANES, Kit
from dispytch.testing.conformance.promise import promised
from dispytch.topics import DEAD_LETTER

if TYPE_CHECKING:
    from dispytch.producer import Producer

__all__ = ["CapabilityTests"]

Probe: TypeAlias = Callable[[Kit, float], Awaitable[None]]
"""Raises where a capability does not work; is told how many seconds to wait for what may come."""

_DECLARED, _UNDECLARED = 30.0, 3.0


class CapabilityTests:
    """One test for each flag."""

    @promised(
        look="how the broker stores; the hook `broker`",
        needs=("restart",),
        within=240,
        shows="durable",
    )
    async def test_durable_is_as_declared(self, kit: Kit, broker: Broker) -> None:
        """`durable`: what was confirmed survives a broker that is killed and started again."""

        async def probe(kit: Kit, within: float) -> None:
            topic = await kit.topic()
            group = kit.name("g") if kit.capabilities.groups else None
            consumer = await kit.consumer(topic, group=group)
            producer = await kit.producer()
            for number in range(50):
                await kit.send(producer, topic, b"event %d" % number)
            await kit.stop(producer.stop())
            await kit.stop(consumer.stop())
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            consumer = await kit.consumer(topic, group=group)
            came = {each.payload for each in await kit.receive(consumer, 50, within=within)}
            assert came == {b"event %d" % number for number in range(50)}

        await _agree(kit, "durable", probe)

    @promised(
        look="what `send_message` has written when it returns", needs=("file",), shows="durable"
    )
    async def test_durable_files_are_as_declared(self, kit: Kit) -> None:
        """`durable`: what was confirmed survives a SIGKILL of the process that emitted it."""

        async def probe(kit: Kit, within: float) -> None:
            topic = await kit.topic()
            consumer = await kit.subscriber(topic)
            await asyncio.to_thread(_emit_and_die, kit.url, topic)
            came = {each.payload for each in await kit.receive(consumer, 50, within=within)}
            assert came == {b"event %d" % number for number in range(50)}

        await _agree(kit, "durable", probe)

    @promised(
        look="`Producer.send_message`: return when the broker has it",
        needs=("broker",),
        shows="confirms",
    )
    async def test_confirms_is_as_declared(self, kit: Kit, broker: Broker) -> None:
        """`confirms`: a broker that does not answer confirms nothing."""
        topic = await kit.topic()
        await kit.subscriber(topic)
        emitter = await kit.emitter(timeout=3)
        await emitter.emit(kit.event(topic)())

        async def probe(kit: Kit, within: float) -> None:
            try:
                await emitter.emit(kit.event(topic)())
            except EmitError:
                return
            raise AssertionError("a receipt came from a broker that is frozen")

        await asyncio.to_thread(broker.freeze)
        try:
            await _agree(kit, "confirms", probe)
        finally:
            await asyncio.to_thread(broker.thaw)

    @promised(
        look="which consumer gets what, and when; `Subscription.ordered`",
        needs=("consumer",),
        within=180,
        shows="ordering",
    )
    async def test_ordering_is_as_declared(self, kit: Kit) -> None:
        """`ordering`: 16 keys, 10 consumers, and order as far as it is declared."""
        declared = kit.capabilities.ordering
        members = 10 if declared in {"key", "total"} and kit.capabilities.groups else 1
        if declared != "none":
            await _check_order(kit, members)
        if kit.capabilities.groups and kit.capabilities.manual_ack:
            await _agree(kit, "ordering", _one_at_a_time, declared=declared in {"key", "total"})

    @promised(
        look="`Consumer.subscribe`: the group", needs=("consumer",), within=120, shows="groups"
    )
    async def test_groups_are_as_declared(self, kit: Kit) -> None:
        """`groups`: each group gets every event, once; its members share them."""
        await _agree(kit, "groups", _two_groups)

    @promised(
        look="`Delivery.ack`, and `Consumer.stop`: what is not settled goes back",
        needs=("consumer",),
        shows="manual_ack",
    )
    async def test_manual_ack_is_as_declared(self, kit: Kit) -> None:
        """`manual_ack`: what was received and not acknowledged comes again, to another."""
        await _agree(kit, "manual_ack", _comes_again)

    @promised(
        look="`Delivery.nack(delay)`, `Consumer.delays`",
        needs=("consumer", "manual_ack"),
        shows="delayed_redelivery",
    )
    async def test_delayed_redelivery_is_as_declared(self, kit: Kit) -> None:
        """`delayed_redelivery`: `nack(delay)` brings it again, later and not earlier."""
        assert kit.new_consumer().delays == kit.capabilities.delayed_redelivery
        await _agree(kit, "delayed_redelivery", _comes_later)

    @promised(
        look="`Outgoing.headers` and `Delivery.headers`", needs=("consumer",), shows="headers"
    )
    async def test_headers_are_as_declared(self, kit: Kit) -> None:
        """`headers`: names and values arrive identical, UTF-8 and bytes."""
        await _agree(kit, "headers", _headers_travel)

    @promised(look="`Outgoing.key` and `Delivery.key`", needs=("consumer",), shows="keys")
    async def test_keys_are_as_declared(self, kit: Kit) -> None:
        """`keys`: the key arrives identical, and none where there was none."""
        await _agree(kit, "keys", _keys_travel)

    @promised(look="`Subscription.pattern`", needs=("consumer",), shows="patterns")
    async def test_patterns_are_as_declared(self, kit: Kit) -> None:
        """`patterns`: a pattern gets the topics that it matches, and no others."""
        await _agree(kit, "patterns", _patterns_match)

    @promised(look="where a new group begins", needs=("consumer",), shows="replay")
    async def test_replay_is_as_declared(self, kit: Kit) -> None:
        """`replay`: a new group begins with the first event there is; without, with the next."""
        await _agree(kit, "replay", _earlier_events_come)

    @promised(look="the event config of the hook `ttl`", needs=("consumer", "ttl"), shows="ttl")
    async def test_ttl_is_as_declared(self, kit: Kit) -> None:
        """`ttl`: an event that has expired does not come."""
        await _agree(kit, "ttl", _expired_events_stay_away)

    @promised(
        look="the event config of the hook `priority`",
        needs=("consumer", "priority"),
        shows="priority",
    )
    async def test_priority_is_as_declared(self, kit: Kit) -> None:
        """`priority`: an event of high priority overtakes those of low one."""
        await _agree(kit, "priority", _high_comes_first)

    @promised(look="the event config of the hook `delay`", needs=("consumer", "delay"))
    async def test_delayed_event_is_not_early(self, kit: Kit) -> None:
        """An event that is held back comes, and not before its time."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await kit.send(producer, topic, b"late", config=kit.suite.delay(1.0))
        await kit.receive(consumer, 1)
        assert loop.time() - began >= 1.0


async def _agree(kit: Kit, capability: str, probe: Probe, *, declared: bool | None = None) -> None:
    """What is declared works, and what is not does not."""
    if declared is None:
        declared = bool(getattr(kit.capabilities, capability))
    if declared:
        await probe(kit, _DECLARED)
        return
    try:
        await probe(kit, _UNDECLARED)
    except Exception:  # noqa: BLE001 - however it fails, it does not work
        return
    level = '"key"' if capability == "ordering" else "True"
    raise AssertionError(
        f"it works, and Capabilities({capability}={level}) is not declared: "
        "declare it, or users will not know"
    )


async def _check_order(kit: Kit, members: int) -> None:
    topic, group = await kit.topic(), kit.name("g") if kit.capabilities.groups else None
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


async def _one_at_a_time(kit: Kit, within: float) -> None:
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


async def _two_groups(kit: Kit, within: float) -> None:
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


async def _comes_again(kit: Kit, within: float) -> None:
    topic = await kit.topic()
    group = kit.name("g") if kit.capabilities.groups else None
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


async def _comes_later(kit: Kit, within: float) -> None:
    topic = await kit.topic()
    consumer, producer = await kit.subscriber(topic), await kit.producer()
    await kit.send(producer, topic, b"later")
    (delivery,) = await kit.receive(consumer, 1, ack=False, within=within)
    loop = asyncio.get_running_loop()
    began, before = loop.time(), delivery.attempt
    await delivery.nack(1.0)
    (again,) = await kit.receive(consumer, 1, within=within)
    waited = loop.time() - began
    assert waited >= 1.0, f"it came {waited:.2f} s after nack(1.0)"
    assert (again.payload, again.attempt) == (b"later", before + 1)


async def _headers_travel(kit: Kit, within: float) -> None:
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


async def _keys_travel(kit: Kit, within: float) -> None:
    for key in ("plain", "schlüssel ✓", None):
        delivery = await _round_trip(kit, within, key=key)
        assert delivery.key == key


async def _patterns_match(kit: Kit, within: float) -> None:
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
    group = kit.name("g") if kit.capabilities.groups else None
    one = await kit.consumer(join((root, "{name}", "placed")), group=group)
    rest = await kit.consumer(join((root, "*")), group=group and kit.name("h"))
    producer = await kit.producer()
    for what, topic in topics.items():
        await kit.send(producer, topic, what.encode())
    for consumer, expected in ((one, [b"both"]), (rest, [b"both", b"rest"])):
        came = await kit.receive(consumer, len(expected), within=within)
        came += await kit.rest(consumer)
        assert sorted(delivery.payload for delivery in came) == expected


async def _earlier_events_come(kit: Kit, within: float) -> None:
    topic = await kit.topic()
    await kit.subscriber(topic)  # so that it goes somewhere
    producer = await kit.producer()
    earlier = [b"event %d" % number for number in range(5)]
    for payload in earlier:
        await kit.send(producer, topic, payload)
    late = await kit.consumer(topic, group=kit.name("late"))
    came = await kit.receive(late, len(earlier), within=within)
    assert sorted(delivery.payload for delivery in came) == earlier


async def _expired_events_stay_away(kit: Kit, within: float) -> None:
    topic = await kit.topic()
    group = kit.name("g") if kit.capabilities.groups else None
    await kit.stop((await kit.consumer(topic, group=group)).stop())
    producer = await kit.producer()
    await kit.send(producer, topic, b"expired", config=kit.suite.ttl(0.5))
    await kit.send(producer, topic, b"lasting", config=kit.suite.ttl(3600))
    await kit.send(producer, topic, b"for ever")
    await asyncio.sleep(1.0)  # the broker's clock is none that could be waited on
    consumer = await kit.consumer(topic, group=group)
    came = [*await kit.receive(consumer, 2, within=within), *await kit.rest(consumer)]
    assert sorted(delivery.payload for delivery in came) == [b"for ever", b"lasting"]


async def _high_comes_first(kit: Kit, within: float) -> None:
    topic = await kit.topic()
    group = kit.name("g") if kit.capabilities.groups else None
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


def _emit_and_die(url: str, topic: str) -> None:
    """Emit in a process that is killed as soon as all is confirmed."""
    done = subprocess.run(
        [sys.executable, "-c", _DIE, url, topic], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
