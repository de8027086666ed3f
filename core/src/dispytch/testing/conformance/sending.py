"""What a producer promises: identical bytes, honest outcomes."""

import asyncio
import os
from collections import Counter

import pytest

from dispytch.errors import ConnectError, EmitError, EmitManyError, EmitRejected, EncodeError
from dispytch.producer import Receipt
from dispytch.testing.conformance.kit import LANES, Kit, Numbered
from dispytch.testing.conformance.promise import promised

__all__ = ["SendingTests"]

_SEND = "`Producer.send_message`"
_BATCH = "`Producer.send_messages`"


class SendingTests:
    """Payloads, outcomes, batches."""

    @promised(look=f"{_SEND} and the payload of `Delivery`", needs=("consumer",))
    async def test_payload_arrives_identical(self, kit: Kit) -> None:
        """The payload arrives byte for byte: text, nothing, any bytes, 1 MB."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        payloads = [
            b'{"any": "text"}',
            b"",
            bytes(range(256)),
            os.urandom(1_000_000),
            b" \n{}\r\n ",
        ]
        for payload in payloads:
            await kit.send(producer, topic, payload)
            (delivery,) = await kit.receive(consumer, 1)
            assert delivery.topic == topic
            assert len(delivery.payload) == len(payload)
            assert delivery.payload == payload, f"{len(payload)} bytes were changed"

    @promised(look=f"{_SEND}: refuse, or map the broker's refusal", needs=("oversize", "consumer"))
    async def test_oversize_event_is_refused(self, kit: Kit) -> None:
        """What is too large is certainly not stored, the error says why, and the next one goes."""
        topic = await kit.topic()
        consumer, emitter = await kit.subscriber(topic), await kit.emitter()
        kind = kit.event(topic)
        with pytest.raises(EmitRejected, match=r"(?i)large|long|big|size|bytes|limit|max|exceed"):
            await emitter.emit(kind(filling="x" * (kit.suite.oversize or 0)))
        small = kind()
        await emitter.emit(small)
        came = [*await kit.receive(consumer, 1), *await kit.rest(consumer)]
        assert [kit.id_of(delivery) for delivery in came] == [small.id]

    @promised(
        look=f"{_SEND}: return when the broker has it",
        needs=("confirms", "consumer"),
        shows="confirms",
    )
    async def test_receipt_means_it_is_there(self, kit: Kit) -> None:
        """What was confirmed is there, though the producer stops at once."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        payloads = [f"event {number}".encode() for number in range(100)]
        await asyncio.gather(*(kit.send(producer, topic, payload) for payload in payloads))
        await kit.stop(producer.stop())
        came = {delivery.payload for delivery in await kit.receive(consumer, len(payloads))}
        assert came == set(payloads)

    @promised(look=f"{_SEND}: what the broker returns or drops", needs=("unroutable",))
    async def test_unroutable_event_is_an_error(self, kit: Kit) -> None:
        """An event that goes nowhere is rejected, not dropped."""
        emitter = await kit.emitter(timeout=5)
        with pytest.raises(EmitRejected):
            await emitter.emit(kit.event(kit.name("nobody"))())

    @promised(look="how the client's refusals are mapped", needs=("refused_url",))
    async def test_unauthorised_emitter_is_an_error(self, kit: Kit, refused_url: str) -> None:
        """Who may not emit is told so, when starting or when emitting."""
        event = kit.event(await kit.topic())()

        async def emit() -> None:
            await (await kit.emitter(refused_url, timeout=10)).emit(event)

        with pytest.raises((ConnectError, EmitRejected)):
            await emit()

    @promised(look=_BATCH, needs=("consumer",), within=240)
    async def test_batch_is_complete_and_in_order(self, kit: Kit) -> None:
        """A batch of 10,000 arrives whole, each event once, and in order per key."""
        topic = await kit.topic()
        consumer, emitter = await kit.subscriber(topic), await kit.emitter(timeout=120)
        kind, count = kit.event(topic), kit.many(10_000)
        events = [kind(lane=number % LANES, number=number) for number in range(count)]
        receipts = await emitter.emit_many(events)
        assert [receipt.event_id for receipt in receipts] == [event.id for event in events]
        deliveries = await kit.receive(consumer, count, within=120)
        deliveries += await kit.rest(consumer)
        times = Counter(kit.id_of(delivery) for delivery in deliveries)
        missing = [event.number for event in events if event.id not in times]
        assert not missing, f"{len(missing)} of {count} are missing, first number {missing[0]}"
        twice = [event.number for event in events if times[event.id] > 1]
        assert not twice, f"{len(twice)} of {count} came twice, first number {twice[0]}"
        if kit.capabilities.ordering != "none":
            numbers: dict[int, list[int]] = {}
            for lane, number in map(kit.number_of, deliveries):
                numbers.setdefault(lane, []).append(number)
            wrong = [lane for lane, found in numbers.items() if found != sorted(found)]
            assert not wrong, f"keys out of order: {wrong}"

    @promised(
        look=f"{_BATCH}: one outcome each; nothing of a key after its failure", needs=("consumer",)
    )
    async def test_batch_reports_each_failure(self, kit: Kit) -> None:
        """An event of a batch that fails is named; of its key no later one is sent, others are."""
        topic = await kit.topic()
        consumer, emitter = await kit.subscriber(topic), await kit.emitter()
        kind = kit.event(topic)
        events = [kind(lane=number % 4, number=number) for number in range(24)]
        events[4] = kind(lane=0, number=4, ratio=float("nan"))
        if kit.suite.oversize is not None:
            events[5] = kind(lane=1, number=5, filling="x" * kit.suite.oversize)
        with pytest.raises(EmitManyError) as raised:
            await emitter.emit_many(events)
        results = raised.value.results
        refused = [n for n, event in enumerate(events) if _held_back(kit, event)]
        assert [n for n, got in enumerate(results) if not isinstance(got, Receipt)] == refused
        assert isinstance(results[4], EncodeError)
        assert all(isinstance(results[number], EmitRejected) for number in refused if number != 4)
        came = [*await kit.receive(consumer, len(events) - len(refused)), *await kit.rest(consumer)]
        assert sorted(kit.number_of(delivery)[1] for delivery in came) == [
            number for number in range(len(events)) if number not in refused
        ]

    @promised(
        look="`Producer.stop`: what is under way has an outcome", needs=("consumer",), within=120
    )
    async def test_emits_during_stop_are_there_or_an_error(self, kit: Kit) -> None:
        """1,000 emits while the emitter stops: each is accepted and there, or an error."""
        topic = await kit.topic()
        consumer, emitter = await kit.subscriber(topic), await kit.emitter()
        kind = kit.event(topic)
        await emitter.emit(kind())  # it is at work
        events = [kind(lane=number % LANES, number=number) for number in range(1000)]
        emits = [asyncio.create_task(emitter.emit(event)) for event in events[:500]]
        stopping = asyncio.create_task(emitter.stop())  # begins when these have begun
        emits += [asyncio.create_task(emitter.emit(event)) for event in events[500:]]
        await stopping
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        strange = [each for each in outcomes if not isinstance(each, Receipt | EmitError)]
        assert not strange, f"neither a receipt nor an EmitError: {strange[0]!r}"
        accepted = {each.event_id for each in outcomes if isinstance(each, Receipt)}
        rejected = {
            event.id
            for event, each in zip(events, outcomes, strict=True)
            if isinstance(each, EmitRejected)
        }
        came = await kit.receive(consumer, 1 + len(accepted))
        there = {kit.id_of(delivery) for delivery in [*came, *await kit.rest(consumer)]}
        assert accepted <= there, f"{len(accepted - there)} of {len(accepted)} accepted are lost"
        assert not rejected & there, f"{len(rejected & there)} rejected events are there"

    @promised(
        look="`Producer.stop`: a send under way is done, or an error",
        needs=("confirms", "consumer"),
        within=120,
        shows="confirms",
    )
    async def test_sends_during_stop_are_there_or_an_error(self, kit: Kit) -> None:
        """1,000 sends while the producer itself stops: each is confirmed and there, or an error."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        payloads = [b"event %d" % number for number in range(1000)]
        sends = [asyncio.create_task(kit.send(producer, topic, each)) for each in payloads]
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        await kit.stop(producer.stop())
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        confirmed = {
            payload
            for payload, outcome in zip(payloads, outcomes, strict=True)
            if not isinstance(outcome, BaseException)
        }
        came = [*await kit.receive(consumer, len(confirmed)), *await kit.rest(consumer)]
        lost = confirmed - {delivery.payload for delivery in came}
        assert not lost, f"{len(lost)} of {len(confirmed)} confirmed are lost"


def _held_back(kit: Kit, event: Numbered) -> bool:
    """Whether it fails, or comes behind one of its key that does."""
    failing = {0: 4} | ({} if kit.suite.oversize is None else {1: 5})
    return event.number >= failing.get(event.lane, event.number + 1)
