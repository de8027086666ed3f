"""What emitting to Kafka is, whichever client does it: tests for each backend that does."""

import asyncio
import json
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from brokers.fixtures import started
from brokers.java import java_partitions
from brokers.kafka import Kafka
from brokers.kafka_access import KafkaAccess
from dispytch import (
    EmitContext,
    EmitManyError,
    EmitRejected,
    EventBase,
    EventEmitter,
    Receipt,
)
from dispytch_kafka import KafkaEventConfig


class User(BaseModel):
    id: int
    name: str = "Ada"


class UserCreated(EventBase):
    __topic__ = "user_events"
    __event_type__ = "user_created"

    user: User
    timestamp: int


class Padded(EventBase):
    __topic__ = "{topic}"
    __event_type__ = "padded"
    __key__ = "{lane}"

    topic: str
    lane: int = 0
    number: int = 0
    padding: str = ""


class Keyless(Padded):
    __key__ = None  # type: ignore[assignment]  # less than its base promises


class Plain(Enum):
    GOLD = "gold"


def numbers(kafka: KafkaAccess, topic: str, count: int = 0) -> list[int]:
    return [body(record)["number"] for record in kafka.read_all(topic, count)]


def body(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.value)["body"]
    return found


class Emitting:
    """The tests.

    Attributes:
        backend: the backend, which is also its scheme.
        too_large: what its client calls a record that is too large.
        invalid_record: the same, where the broker finds it invalid.
        invalid_timestamp: the same, where its timestamp is.
    """

    backend: str
    too_large: str
    invalid_record: str
    invalid_timestamp: str

    @pytest.fixture
    async def emitter(self, kafka_broker: KafkaAccess) -> Any:
        async with EventEmitter.from_url(
            f"{self.backend}://{kafka_broker.bootstrap}", timeout=10
        ) as emitter:
            yield emitter

    async def test_the_config_of_an_instance_arrives_on_the_wire(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, unique_name: str
    ) -> None:
        """`__backend_config__=` in the constructor: its key is on the record that is read."""

        class Created(UserCreated):
            __topic__ = unique_name

        kafka_broker.create_topic(unique_name, 3)
        user = User(id=42)
        event = Created(
            user=user,
            timestamp=1,
            __backend_config__=KafkaEventConfig(
                partition_key=user.id, timestamp_ms=1234567890123, headers={"a": "ä", "b": b"\xff"}
            ),
        )
        receipt = await emitter.emit(event)
        [record] = kafka_broker.read_all(unique_name, 1)
        assert record.key == b"42"
        assert record.timestamp == 1234567890123
        assert record.headers == (("a", "ä".encode()), ("b", b"\xff"))
        envelope = json.loads(record.value or b"")
        assert envelope["id"] == event.id == receipt.event_id
        assert envelope["body"] == {"user": {"id": 42, "name": "Ada"}, "timestamp": 1}
        assert receipt.backend == self.backend
        assert receipt.details == {
            "topic": unique_name,
            "partition": record.partition,
            "offset": 0,
            "timestamp_ms": 1234567890123,
        }

    async def test_keys_of_every_type_arrive_as_their_text(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
    ) -> None:
        """Bytes as they are, the others by the one rule."""
        uuid = UUID(int=5)
        keys: list[Any] = [b"\xff", "ключ", 7, uuid, Decimal("1.50"), date(2026, 1, 2), Plain.GOLD]
        keys.append(datetime(2026, 1, 2, tzinfo=UTC))
        for key in keys:
            await emitter.emit(Padded(topic=topic), config=KafkaEventConfig(partition_key=key))
        await emitter.emit(Keyless(topic=topic))
        records = kafka_broker.read_all(topic, 9)
        expected = [
            b"\xff",
            "ключ".encode(),
            b"7",
            str(uuid).encode(),
            b"1.50",
            b"2026-01-02",
            b"gold",
        ]
        assert [record.key for record in records] == [*expected, b"2026-01-02 00:00:00+00:00", None]

    async def test_class_level_templates_are_rendered(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
    ) -> None:
        """A class-level config's texts name fields of the event."""

        class Templated(Padded):
            __backend_config__ = KafkaEventConfig(
                partition_key="k-{number}", headers={"lane": "{lane}", "brace": "{{x}}"}
            )

        await emitter.emit(Templated(topic=topic, number=3, lane=9))
        [record] = kafka_broker.read_all(topic, 1)
        assert record.key == b"k-3"
        assert record.headers == (("lane", b"9"), ("brace", b"{x}"))

    async def test_a_middlewares_header_wins_over_the_configs(
        self, kafka_broker: KafkaAccess, topic: str
    ) -> None:
        """Nearer wins by name; a repeated name goes as a whole."""

        async def trace(ctx: EmitContext, call_next: Any) -> Receipt:
            ctx.headers["trace"] = "near"
            receipt: Receipt = await call_next(ctx)
            return receipt

        config = KafkaEventConfig(headers=[("trace", "a"), ("kept", "b"), ("kept", b"c")])
        url = f"{self.backend}://{kafka_broker.bootstrap}"
        async with EventEmitter.from_url(url, middleware=[trace], config=config) as emitter:
            await emitter.emit(Padded(topic=topic))
        [record] = kafka_broker.read_all(topic, 1)
        assert record.headers == (("kept", b"b"), ("kept", b"c"), ("trace", b"near"))

    async def test_a_key_goes_where_java_would_put_it(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, unique_name: str
    ) -> None:
        """Alone or in a batch: same key, same partition, and that of Java's default partitioner."""
        kafka_broker.create_topic(unique_name, 7)
        keys = [f"key-{number}" for number in range(198)] + ["", "ключ"]
        expected = java_partitions([key.encode() for key in keys], 7)
        events = [
            Padded(topic=unique_name, __backend_config__=KafkaEventConfig(partition_key=key))
            for key in keys
        ]
        single = await asyncio.gather(*map(emitter.emit, events))
        together = await emitter.emit_many(events)
        assert [receipt.details["partition"] for receipt in single] == expected
        assert [receipt.details["partition"] for receipt in together] == expected

    async def test_an_explicit_partition_is_taken(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, unique_name: str
    ) -> None:
        """`partition` wins over the key's."""
        kafka_broker.create_topic(unique_name, 3)
        for partition in (0, 1, 2):
            config = KafkaEventConfig(partition=partition)
            one = await emitter.emit(Padded(topic=unique_name), config=config)
            [many] = await emitter.emit_many([Padded(topic=unique_name)], config=config)
            assert one.details["partition"] == many.details["partition"] == partition
        assert kafka_broker.end_offsets(unique_name) == {0: 2, 1: 2, 2: 2}

    async def test_a_wrong_partition_is_rejected(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
    ) -> None:
        """Before anything is sent, also in a batch, where the others go on."""
        wrong = KafkaEventConfig(partition=1)
        with pytest.raises(EmitRejected, match="no partition 1"):
            await emitter.emit(Keyless(topic=topic), config=wrong)
        events = [Keyless(topic=topic, number=number) for number in range(3)]
        events[1] = events[1].model_copy(update={"__backend_config__": wrong})
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many(events)
        kinds = [type(result) for result in caught.value.results]
        assert kinds == [Receipt, EmitRejected, Receipt]
        assert numbers(kafka_broker, topic) == [0, 2]

    async def test_a_missing_topic_is_rejected_within_two_seconds(
        self, emitter: EventEmitter, topic: str
    ) -> None:
        """It is not waited for; others are not held up, and many at once do not add up."""
        began = time.monotonic()
        events = [Padded(topic=f"{topic}-{number}", lane=number) for number in range(20)]
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many([*events, Padded(topic=topic, lane=99)])
        assert all(isinstance(result, EmitRejected) for result in caught.value.results[:20])
        assert isinstance(caught.value.results[20], Receipt)
        with pytest.raises(EmitRejected, match="no topic") as rejected:
            await emitter.emit(events[0])
        assert rejected.value.retriable
        assert rejected.value.topic == f"{topic}-0"
        assert time.monotonic() - began < 4

    @pytest.mark.parametrize("name", ["a b", "ключ", "a/b", "x" * 250, ".", ".."])
    async def test_an_illegal_topic_is_rejected(self, emitter: EventEmitter, name: str) -> None:
        """At once, saying what is legal."""

        class Illegal(UserCreated):
            __topic__ = name

        began = time.monotonic()
        with pytest.raises(EmitRejected, match="no legal Kafka topic"):
            await emitter.emit(Illegal(user=User(id=1), timestamp=0))
        assert time.monotonic() - began < 1

    async def test_what_is_too_large_is_rejected_and_its_neighbours_are_not(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, topic: str
    ) -> None:
        """Larger than a request may be: found before anything is sent."""
        large = Keyless(topic=topic, number=1, padding="x" * 1_100_000)
        with pytest.raises(EmitRejected, match=self.too_large):
            await emitter.emit(large)
        events = [Keyless(topic=topic, number=0), large, Keyless(topic=topic, number=2)]
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many(events)
        kinds = [type(result) for result in caught.value.results]
        assert kinds == [Receipt, EmitRejected, Receipt]
        assert numbers(kafka_broker, topic) == [0, 2]

    @pytest.mark.parametrize("options", ["", "?idempotent=false", "?linger_ms=20&compression=gzip"])
    async def test_one_bad_event_in_200_fails_alone(
        self, kafka_broker: KafkaAccess, unique_name: str, options: str
    ) -> None:
        """Kafka refuses its whole batch; the others arrive all the same, once, as do later ones."""
        kafka_broker.create_topic(unique_name, 1, {"max.message.bytes": "3000"})
        bad = {50, 120}

        def event(number: int) -> Padded:
            # Random, so that compression does not save it.
            padding = "".join(map(chr, range(0x4E00, 0x5E00))) if number in bad else ""
            return Padded(topic=unique_name, lane=number, number=number, padding=padding)

        url = f"{self.backend}://{kafka_broker.bootstrap}{options}"
        async with EventEmitter.from_url(url, timeout=10) as emitter:
            await emitter.emit(event(0))
            outcomes = await asyncio.gather(
                *(emitter.emit(event(number)) for number in range(200)), return_exceptions=True
            )
            with pytest.raises(EmitManyError) as caught:
                await emitter.emit_many([event(number) for number in range(200)])
            last = await emitter.emit(event(0))
        for results in (outcomes, caught.value.results):
            failed = {
                number for number, result in enumerate(results) if type(result) is not Receipt
            }
            assert failed == bad
            assert all(isinstance(results[number], EmitRejected) for number in bad)
        records = kafka_broker.read_all(unique_name, 398)
        assert len(records) == 398
        assert last.details["offset"] == 397
        together = [result for result in caught.value.results if isinstance(result, Receipt)]
        by_offset = {record.offset: json.loads(record.value or b"")["id"] for record in records}
        assert all(by_offset[one.details["offset"]] == one.event_id for one in together)

    async def test_a_record_the_broker_finds_invalid_is_rejected(
        self, kafka_broker: KafkaAccess, emitter: EventEmitter, unique_name: str
    ) -> None:
        """A keyless event for a compacted topic, a time too far away: certain refusals."""
        kafka_broker.create_topic(unique_name, 1, {"cleanup.policy": "compact"})
        with pytest.raises(EmitRejected, match=self.invalid_record):
            await emitter.emit(Keyless(topic=unique_name))
        strict = f"{unique_name}-strict"
        kafka_broker.create_topic(strict, 1, {"message.timestamp.after.max.ms": "60000"})
        future = KafkaEventConfig(timestamp_ms=int(time.time() * 1000) + 3_600_000)
        outcomes = await asyncio.gather(
            *(
                emitter.emit(Padded(topic=strict), config=future if n == 7 else None)
                for n in range(20)
            ),
            return_exceptions=True,
        )
        assert [n for n, outcome in enumerate(outcomes) if type(outcome) is not Receipt] == [7]
        assert isinstance(outcomes[7], EmitRejected)
        assert self.invalid_timestamp in str(outcomes[7])

    async def test_a_batch_keeps_order_and_receipts_per_key(
        self, kafka_broker: KafkaAccess, unique_name: str
    ) -> None:
        """Many small batches, one after the other per partition: order per key, true receipts."""
        kafka_broker.create_topic(unique_name, 4)
        url = f"{self.backend}://{kafka_broker.bootstrap}?max_batch_bytes=2000&compression=gzip"
        events = [Padded(topic=unique_name, lane=n % 13, number=n) for n in range(600)]
        events += [Keyless(topic=unique_name, lane=-1, number=n) for n in range(600, 700)]
        configs = KafkaEventConfig(headers={"h": "v"}, timestamp_ms=5_000)
        async with EventEmitter.from_url(url, timeout=20) as emitter:
            receipts = await emitter.emit_many(events, config=configs)
        records = kafka_broker.read_all(unique_name, 700)
        assert len(records) == 700
        where = {(record.partition, record.offset): record for record in records}
        for event, receipt in zip(events, receipts, strict=True):
            record = where[receipt.details["partition"], receipt.details["offset"]]
            assert json.loads(record.value or b"")["id"] == event.id == receipt.event_id
            assert record.headers == (("h", b"v"),)
            assert record.timestamp == receipt.details["timestamp_ms"] == 5_000
        for lane in range(13):
            in_order = [body(one)["number"] for one in records if body(one)["lane"] == lane]
            assert in_order == sorted(in_order)
        assert len({one.partition for one in records if body(one)["lane"] == -1}) > 1

    async def test_after_a_failure_later_events_of_the_key_are_not_sent(
        self, kafka_broker: KafkaAccess, unique_name: str
    ) -> None:
        """Whether client or broker refused it; earlier ones and other keys are not concerned."""
        kafka_broker.create_topic(unique_name, 1, {"max.message.bytes": "3000"})
        for size in (2_000_000, 10_000):  # refused by the client, and by the broker
            events = [Padded(topic=unique_name, lane=n % 2, number=n) for n in range(10)]
            events[4].padding = "x" * size
            url = f"{self.backend}://{kafka_broker.bootstrap}"
            async with EventEmitter.from_url(url, timeout=10) as emitter:
                with pytest.raises(EmitManyError) as caught:
                    await emitter.emit_many(events)
            failed = {n for n, one in enumerate(caught.value.results) if type(one) is not Receipt}
            assert failed == {4, 6, 8}, caught.value.results
            assert all(isinstance(caught.value.results[n], EmitRejected) for n in failed)
            assert "earlier event" in str(caught.value.results[6])
        assert sorted(numbers(kafka_broker, unique_name)) == sorted([0, 1, 2, 3, 5, 7, 9] * 2)

    @pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
    async def test_every_compression_is_readable(
        self, kafka_broker: KafkaAccess, topic: str, compression: str
    ) -> None:
        """Key, value and headers come back from a compressed batch as they went in."""
        url = f"{self.backend}://{kafka_broker.bootstrap}?compression={compression}"
        async with EventEmitter.from_url(url, timeout=10) as emitter:
            await emitter.emit_many([Padded(topic=topic, number=n, lane=n) for n in range(100)])
        records = kafka_broker.read_all(topic, 100)
        assert [body(record)["number"] for record in records] == list(range(100))
        assert [record.key for record in records] == [str(n).encode() for n in range(100)]

    async def test_a_topic_made_on_demand_works_at_the_first_emit(self) -> None:
        """Where the brokers create topics, the first emit waits for that."""
        with started(lambda: Kafka(auto_create_topics=True)) as kafka:
            async with EventEmitter.from_url(
                kafka.url.replace("kafka:", f"{self.backend}:"), timeout=10
            ) as emitter:
                await emitter.emit(Padded(topic="made-by-one"))
                await emitter.emit_many([Padded(topic="made-by-many"), Padded(topic="made-too")])
            assert len(kafka.read_all("made-by-one", 1)) == 1

    async def test_the_emitter_works_again_after_stop_and_start(
        self, kafka_broker: KafkaAccess, topic: str
    ) -> None:
        """A client from a URL is built in `start`, every time."""
        emitter = EventEmitter.from_url(f"{self.backend}://{kafka_broker.bootstrap}", timeout=10)
        for number in range(3):
            async with emitter:
                await emitter.ping()
                await emitter.emit(Padded(topic=topic, number=number))
                await emitter.flush()
            with pytest.raises(EmitRejected):
                await emitter.emit(Padded(topic=topic))
        assert numbers(kafka_broker, topic) == [0, 1, 2]
