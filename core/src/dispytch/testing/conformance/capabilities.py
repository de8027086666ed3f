"""What `Capabilities` declares, from both sides.

What is declared and does not work is a lie; what works and is not declared is one too, because
users choose a backend by its flags.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from dispytch.errors import EmitError
from dispytch.testing.conformance.hooks import Broker
from dispytch.testing.conformance.kit import Kit
from dispytch.testing.conformance.probes import (
    ONE_SECOND,
    check_order,
    comes_again,
    comes_later,
    earlier_events_come,
    emit_and_die,
    expired_events_stay_away,
    headers_travel,
    high_comes_first,
    keys_travel,
    one_at_a_time,
    patterns_match,
    two_groups,
)
from dispytch.testing.conformance.promise import promised

__all__ = ["CapabilityTests"]

Probe: TypeAlias = Callable[[Kit, float], Awaitable[None]]
"""Raises where a capability does not work; is told how many seconds to wait for what may come."""

_DECLARED, _UNDECLARED = 30.0, 3.0


class CapabilityTests:
    """One test for each flag."""

    @promised(
        look="how the broker stores; the hook `broker`",
        needs=("restart", "consumer"),
        within=240,
        shows="durable",
    )
    async def test_durable_is_as_declared(self, kit: Kit, broker: Broker) -> None:
        """`durable`: what was confirmed survives a broker that is killed and started again."""

        async def probe(kit: Kit, within: float) -> None:
            topic = await kit.topic()
            group = kit.group()
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
        look="what `send_message` has written when it returns",
        needs=("file", "consumer"),
        shows="durable",
    )
    async def test_durable_files_are_as_declared(self, kit: Kit) -> None:
        """`durable`: what was confirmed survives a SIGKILL of the process that emitted it."""

        async def probe(kit: Kit, within: float) -> None:
            topic = await kit.topic()
            consumer = await kit.subscriber(topic)
            await asyncio.to_thread(emit_and_die, kit.url, topic)
            came = {each.payload for each in await kit.receive(consumer, 50, within=within)}
            assert came == {b"event %d" % number for number in range(50)}

        await _agree(kit, "durable", probe)

    @promised(
        look="`Producer.send_message`: return when the broker has it",
        needs=("broker", "consumer"),
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
        members = 10 if kit.keeps_order and kit.capabilities.groups else 1
        if declared != "none":
            await check_order(kit, members)
        if kit.capabilities.groups and kit.capabilities.manual_ack:
            await _agree(kit, "ordering", one_at_a_time, declared=kit.keeps_order)

    @promised(
        look="`Consumer.subscribe`: the group", needs=("consumer",), within=120, shows="groups"
    )
    async def test_groups_are_as_declared(self, kit: Kit) -> None:
        """`groups`: each group gets every event, once; its members share them."""
        await _agree(kit, "groups", two_groups)

    @promised(
        look="`Delivery.ack`, and `Consumer.stop`: what is not settled goes back",
        needs=("consumer", "something kept"),
        shows="manual_ack",
    )
    async def test_manual_ack_is_as_declared(self, kit: Kit) -> None:
        """`manual_ack`: what was received and not acknowledged comes again, to another."""
        await _agree(kit, "manual_ack", comes_again)

    @promised(
        look="`Delivery.nack(delay)`, `Consumer.delays`",
        needs=("consumer", "manual_ack"),
        shows="delayed_redelivery",
    )
    async def test_delayed_redelivery_is_as_declared(self, kit: Kit) -> None:
        """`delayed_redelivery`: `nack(delay)` brings it again, later and not earlier."""
        assert kit.new_consumer().delays == kit.capabilities.delayed_redelivery
        await _agree(kit, "delayed_redelivery", comes_later)

    @promised(
        look="`Outgoing.headers` and `Delivery.headers`", needs=("consumer",), shows="headers"
    )
    async def test_headers_are_as_declared(self, kit: Kit) -> None:
        """`headers`: names and values arrive identical, UTF-8 and bytes."""
        await _agree(kit, "headers", headers_travel)

    @promised(look="`Outgoing.key` and `Delivery.key`", needs=("consumer",), shows="keys")
    async def test_keys_are_as_declared(self, kit: Kit) -> None:
        """`keys`: the key arrives identical, and none where there was none."""
        await _agree(kit, "keys", keys_travel)

    @promised(look="`Subscription.pattern`", needs=("consumer",), shows="patterns")
    async def test_patterns_are_as_declared(self, kit: Kit) -> None:
        """`patterns`: a pattern gets the topics that it matches, and no others."""
        await _agree(kit, "patterns", patterns_match)

    @promised(look="where a new group begins", needs=("consumer",), shows="replay")
    async def test_replay_is_as_declared(self, kit: Kit) -> None:
        """`replay`: a new group begins with the first event there is; without, with the next."""
        await _agree(kit, "replay", earlier_events_come)

    @promised(look="the event config of the hook `ttl`", needs=("consumer", "ttl"), shows="ttl")
    async def test_ttl_is_as_declared(self, kit: Kit) -> None:
        """`ttl`: an event that has expired does not come."""
        await _agree(kit, "ttl", expired_events_stay_away)

    @promised(
        look="the event config of the hook `priority`",
        needs=("consumer", "priority"),
        shows="priority",
    )
    async def test_priority_is_as_declared(self, kit: Kit) -> None:
        """`priority`: an event of high priority overtakes those of low one."""
        await _agree(kit, "priority", high_comes_first)

    @promised(look="the event config of the hook `delay`", needs=("consumer", "delay"))
    async def test_delayed_event_is_not_early(self, kit: Kit) -> None:
        """An event that is held back comes, and not before its time."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await kit.send(producer, topic, b"late", config=kit.suite.delay(1.0))
        await kit.receive(consumer, 1)
        assert loop.time() - began >= ONE_SECOND


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
