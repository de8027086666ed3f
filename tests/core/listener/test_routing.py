"""Routing and reading: which handler gets what, and in what shape."""

import json
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from dispytch import (
    DecodeError,
    Envelope,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    HandleContext,
    Retry,
    Router,
    Subscription,
    TopicError,
    TopicSegment,
)
from dispytch.listener import FOR_GROUP, FOR_HANDLERS
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.testing import TestListener

ONCE = Retry(attempts=1)


class User(BaseModel):
    id: str


class Renamed(EventBase):
    __topic__ = "user.{user.id}.events"
    __event_type__ = "renamed"
    __key__ = "{user.id}"
    user: User
    name: str = ""


class Deleted(EventBase):
    __topic__ = "user.{user.id}.events"
    __event_type__ = "deleted"
    user: User


def listener(**options: Any) -> EventListener:
    return EventListener(MemoryConsumer(MemoryBroker()), **options)


def envelope(kind: str, body: Any, **more: Any) -> bytes:
    return json.dumps({"id": "i1", "type": kind, "body": body, "timestamp": 7, **more}).encode()


async def test_class_routes_by_its_topic_and_type() -> None:
    """Placeholders of the topic are segments, dotted by their name or with an underscore."""
    ours, seen = listener(), []

    @ours.handler(Renamed)
    async def renamed(
        event: Event[Renamed],
        dotted: Annotated[str, TopicSegment("user.id")],
        user_id: Annotated[str, TopicSegment()],
    ) -> None:
        seen.append(("renamed", event.body.name, dotted, user_id, event.key, event.topic))

    @ours.handler(Deleted)
    async def deleted(event: Deleted) -> None:
        seen.append(("deleted", event.user.id))

    async with TestListener(ours) as t:
        await t.emit(Renamed(user=User(id="1"), name="n"))
        await t.emit(Deleted(user=User(id="2")))
        await t.settled()
        assert t.health.counts.handled == 2
    assert seen == [("renamed", "n", "1", "1", "1", "user.1.events"), ("deleted", "2")]


async def test_patterns_route_by_topic_and_type() -> None:
    """A literal topic, a segment, and a trailing `*`; all that match, no dead-letter topic."""
    ours, seen = listener(), []

    class Body(BaseModel):
        pass

    for topic in ("orders.eu.new", "orders.{region}.new", "orders.*", "*", "{a}.eu.{b}"):

        def declare(topic: str) -> None:
            async def handle(event: Event[Body]) -> None:
                seen.append((topic, event.topic))

            handle.__qualname__ = topic
            ours.handler(topic=topic, event="new")(handle)

        declare(topic)
    async with TestListener(ours) as t:
        for topic in ("orders.eu.new", "orders.us.new", "orders.a.b.c", "orders", "orders.x.dlq"):
            await t.send(topic, envelope("new", {}))
        await t.settled()
    assert sorted(seen) == sorted(
        [
            ("orders.eu.new", "orders.eu.new"),
            ("orders.{region}.new", "orders.eu.new"),
            ("orders.*", "orders.eu.new"),
            ("*", "orders.eu.new"),
            ("{a}.eu.{b}", "orders.eu.new"),
            ("orders.{region}.new", "orders.us.new"),
            ("orders.*", "orders.us.new"),
            ("*", "orders.us.new"),
            ("orders.*", "orders.a.b.c"),
            ("*", "orders.a.b.c"),
            ("*", "orders"),
        ]
    )


async def test_dead_letter_topic_is_handled_by_its_own_name() -> None:
    """Patterns pass by `.dlq` topics; a handler of that very topic gets what is there."""
    ours, seen = listener(), []

    @ours.handler(topic="orders.dlq", event="new")
    async def handle(event: Event[User]) -> None:
        seen.append(event.body.id)

    async with TestListener(ours) as t:
        await t.send("orders.dlq", envelope("new", {"id": "x"}))
        await t.settled()
    assert seen == ["x"]


async def test_failing_handler_never_runs_another_again() -> None:
    """Handlers of one event are retried each on its own, and share nothing of the body."""
    ours, seen = listener(), []

    @ours.handler(Renamed, retry=Retry(attempts=3))
    async def failing(event: Event[Renamed]) -> None:
        seen.append(("failing", event.body.user.id, event.attempt))
        event.body.user.id += "!"
        event.topic = "changed"
        if event.attempt < 3:
            raise ValueError("again")

    @ours.handler(Renamed)
    async def other(event: Event[Renamed]) -> None:
        seen.append(("other", event.body.user.id, event.attempt))
        event.body.user.id += "?"

    @ours.handler(Renamed, retry=ONCE)
    async def hopeless(event: Event[Renamed]) -> None:
        seen.append(("hopeless", event.body.user.id, event.attempt))
        raise ValueError("never")

    async with TestListener(ours) as t:
        await t.emit(Renamed(user=User(id="1")))
        await t.settled()
        [letter] = t.dead_letters
        counts = t.health.counts
    assert "hopeless" in str(letter.headers["x-dispytch-dlq-handler"])
    assert sorted(seen) == [
        ("failing", "1", 1),
        ("failing", "1", 2),
        ("failing", "1", 3),
        ("hopeless", "1", 1),
        ("other", "1", 1),
    ]
    assert (counts.handled, counts.failed, counts.dead_lettered) == (2, 3, 1)


async def test_routers_add_prefix_middleware_and_retry() -> None:
    """Prefixes join from outside in, middleware wraps from outside in, the nearest retry counts."""
    log: list[str] = []

    def named(name: str) -> Any:
        async def middleware(ctx: HandleContext, call_next: Any) -> Any:
            log.append(f"{name} in")
            try:
                return await call_next(ctx)
            finally:
                log.append(f"{name} out")

        return middleware

    ours = listener(middleware=[named("listener")], retry=Retry(attempts=5))
    outer = Router("shop", middleware=[named("outer")], retry=Retry(attempts=2))
    inner = Router("{region}.orders", middleware=[named("inner 1"), named("inner 2")])
    outer.include_router(inner)
    ours.include_router(outer)
    ours.add_middleware(named("added"))

    @inner.handler(topic="{order_id}", event="new", middleware=[named("own")])
    async def handle(
        body: User, region: Annotated[str, TopicSegment()], order_id: Annotated[int, TopicSegment()]
    ) -> None:
        log.append(f"handle {region} {order_id}")
        raise ValueError

    @inner.handler(Renamed, retry=ONCE)
    async def by_class(event: Renamed) -> None:
        log.append("by class")
        raise ValueError

    async with TestListener(ours) as t:
        await t.send("shop.eu.orders.7", envelope("new", {"id": "x"}))
        await t.settled()
        order = ["added", "listener", "outer", "inner 1", "inner 2", "own"]
        once = [
            *(f"{name} in" for name in order),
            "handle eu 7",
            *(f"{name} out" for name in reversed(order)),
        ]
        assert log == once * 2
        log.clear()
        await t.emit(Renamed(user=User(id="1")))
        await t.settled()
        assert log.count("by class") == 1
        assert len(t.dead_letters) == 2


async def test_middleware_may_change_answer_and_raise() -> None:
    """Middleware may replace the event and segments, answer in the handler's place, or fail it."""
    ours, seen = listener(retry=ONCE), []

    async def middleware(ctx: HandleContext, call_next: Any) -> Any:
        match ctx.segments["user.id"]:
            case "answered":
                return None
            case "refused":
                raise PermissionError("no")
        ctx.segments["user.id"] = "changed"
        ctx.event.body.name = "changed"
        return await call_next(ctx)

    @ours.handler(Renamed, middleware=[middleware])
    async def handle(event: Renamed, user_id: Annotated[str, TopicSegment()]) -> None:
        seen.append((event.name, user_id))

    async with TestListener(ours) as t:
        for user in ("answered", "refused", "x"):
            await t.emit(Renamed(user=User(id=user)))
        await t.settled()
        assert [str(m.headers["x-dispytch-dlq-message"]) for m in t.dead_letters] == ["no"]
        assert t.health.counts.handled == 2
    assert seen == [("changed", "changed")]


class SlashConsumer(MemoryConsumer):
    """A backend whose topics have another delimiter."""

    backend = "slash"
    topic_delimiter = "/"
    subscriptions: Sequence[Subscription] = ()

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        self.subscriptions = subscriptions
        await super().subscribe(subscriptions)


class SlashProducer(MemoryProducer):
    topic_delimiter = "/"


class Measured(EventBase):
    __topic__ = "plant/{name}/temp"
    __event_type__ = "measured"
    name: str = "a.b"


async def test_delimiter_is_the_backends_own() -> None:
    """Prefixes, segments and dead-letter topics use the backend's delimiter, in tests too."""
    ours, seen = EventListener(SlashConsumer(), retry=ONCE), []
    router = Router("plant")
    ours.include_router(router)

    @router.handler(topic="{name}/temp", event="measured")
    async def handle(event: Event[Measured], name: Annotated[str, TopicSegment()]) -> None:
        seen.append(name)
        raise ValueError

    async with TestListener(ours) as t:
        await t.emit(Measured())
        await t.settled()
        assert [letter.topic for letter in t.dead_letters] == ["plant/a.b/temp/dlq"]
        with pytest.raises(TopicError, match="delimiter '/'"):
            await t.emit(Measured(name="a/b"))
    assert seen == ["a.b"]
    async with ours:
        assert isinstance(ours.consumer, SlashConsumer)
        [subscription] = ours.consumer.subscriptions
        assert (subscription.topic, subscription.delimiter) == ("plant/{name}/temp", "/")


@pytest.mark.parametrize("value", ["a.b", ".", ""])
async def test_segment_that_would_change_the_topic_is_refused_when_emitting(value: str) -> None:
    """A value with the delimiter in it never becomes a topic of another shape."""
    async with EventEmitter(MemoryProducer()) as emitter:
        with pytest.raises(TopicError):
            await emitter.emit(Renamed(user=User(id=value)))


@pytest.mark.parametrize("choice", ["ack", "dead_letter"])
async def test_unmatched_is_counted_and_acknowledged_or_dead_lettered(choice: Any) -> None:
    """What no handler takes, by topic or by type, is counted; by choice it is kept elsewhere."""
    ours = listener(unmatched=choice)

    @ours.handler(Renamed)
    async def handle(event: Renamed) -> None: ...

    async with TestListener(ours) as t:
        await t.send("user.1.events", envelope("unknown", {}))
        await t.settled()
        assert t.health.counts.unmatched == 1
        letters = t.dead_letters
    assert len(letters) == (choice == "dead_letter")
    for letter in letters:
        assert letter.headers["x-dispytch-dlq-reason"] == "no handler for the type 'unknown'"
        assert letter.headers["x-dispytch-dlq-type"] == "unknown"


async def test_addressed_event_reaches_only_those_named() -> None:
    """Headers may name the group and its handlers; all others acknowledge the event unrun."""
    ours, seen = listener(group="billing"), []

    class Short(BaseModel):
        name: str

    @ours.handler(Renamed)
    async def first(event: Event[Renamed]) -> None:
        seen.append(("first", type(event.body)))

    @ours.handler(topic="user.{id}.events", event="renamed")
    async def second(event: Event[Short]) -> None:
        seen.append(("second", type(event.body)))

    payload = envelope("renamed", {"user": {"id": "1"}, "name": "n"})
    name = f"{second.__module__}:{second.__qualname__}"
    async with TestListener(ours) as t:
        for headers in (
            {FOR_GROUP: "shipping"},
            {FOR_GROUP: "billing", FOR_HANDLERS: name},
            {FOR_GROUP: b"billing"},
            {FOR_GROUP: b"\xff"},
        ):
            await t.send("user.1.events", payload, headers=dict(headers))
            await t.settled()
            seen.append(("", type(None)))
        assert not t.dead_letters
    nothing = ("", type(None))
    both = [("first", Renamed), ("second", Short)]
    assert seen == [nothing, ("second", Short), nothing, *both, nothing, nothing]


# Reading


class Frozen(EventBase, frozen=True):
    __topic__ = "frozen"
    __event_type__ = "frozen"
    x: int = 0


class Assigning(EventBase, validate_assignment=True):
    __topic__ = "assigning"
    __event_type__ = "assigning"
    x: int = 0


class Strict(EventBase, strict=True):
    __topic__ = "strict"
    __event_type__ = "strict"
    x: UUID = Field(default_factory=lambda: UUID(int=1))
    y: tuple[int, ...] = (1, 2)
    z: bytes = b"z"


class Closed(EventBase, extra="forbid"):
    __topic__ = "closed"
    __event_type__ = "closed"
    x: int = 0


@pytest.mark.parametrize("event_class", [Frozen, Assigning, Strict, Closed])
async def test_body_has_the_envelopes_id(event_class: type[EventBase]) -> None:
    """`body.id` is the event's id, whatever the model allows; it comes back equal."""
    ours, seen = listener(), []

    @ours.handler(event_class)
    async def handle(event: Event[Any]) -> None:
        seen.append((event.id, event.body))

    sent = event_class()
    async with TestListener(ours) as t:
        await t.emit(sent)
        await t.settled()
        assert not t.dead_letters
    assert seen == [(sent.id, sent)]


@pytest.mark.parametrize("own", ["own", 5, None, ""])
async def test_id_in_the_body_is_the_models_own_business(own: Any) -> None:
    """An event's body ignores an `id` of its own; a plain model keeps it."""
    ours, seen = listener(), []

    class Plain(BaseModel):
        id: Any

    @ours.handler(topic="frozen", event="frozen")
    async def plain(event: Event[Plain]) -> None:
        seen.append((event.id, event.body.id))

    @ours.handler(Frozen)
    async def handle(event: Frozen) -> None:
        seen.append((event.id, event.x))

    async with TestListener(ours) as t:
        await t.send("frozen", envelope("frozen", {"id": own, "x": 3, "more": 1}, trace="ignored"))
        await t.settled()
        assert not t.dead_letters
    assert sorted(seen, key=str) == sorted([("i1", own), ("i1", 3)], key=str)


async def test_handler_that_asks_for_no_body_gets_its_events() -> None:
    """A handler may ask for nothing of the body: then any object will do."""
    ours, seen = listener(), []

    @ours.handler(topic="t", event="e")
    async def handle() -> None:
        seen.append(1)

    async with TestListener(ours) as t:
        await t.send("t", envelope("e", {"any": 1}))
        await t.send("t", envelope("e", [1]))
        await t.settled()
        assert len(t.dead_letters) == 1
    assert seen == [1]


class Reversed:
    """Another format: JSON backwards."""

    def serialize(self, envelope: Envelope) -> bytes:
        return to_json(
            {
                "id": envelope.id,
                "type": envelope.type,
                "body": envelope.body,
                "timestamp": envelope.timestamp,
            }
        )[::-1]

    def deserialize(self, payload: bytes) -> Envelope:
        try:
            return Envelope(**from_json(payload[::-1]))
        except (ValueError, TypeError) as error:
            raise DecodeError("not reversed", payload=payload) from error


@pytest.mark.parametrize("event_class", [Frozen, Strict, Closed])
async def test_other_format_reads_the_same(event_class: type[EventBase]) -> None:
    """With a deserializer events are validated as from JSON: strict ones come back too."""
    broker = MemoryBroker()
    ours, seen = EventListener(MemoryConsumer(broker), deserializer=Reversed()), []

    @ours.handler(event_class)
    async def handle(event: Event[Any]) -> None:
        seen.append(event.body)

    sent = event_class()
    async with EventEmitter(MemoryProducer(), serializer=Reversed()) as emitter:
        await emitter.emit(sent)
        assert isinstance(emitter.producer, MemoryProducer)
        [message] = emitter.producer.messages
    with_id = Reversed().serialize(
        Envelope("i2", message.type, {**Reversed().deserialize(message.payload).body, "id": 5}, 1)
    )
    async with TestListener(ours) as t:
        for payload in (message.payload, with_id, b"nonsense"):
            await t.send(message.topic, payload)
        await t.settled()
        [letter] = t.dead_letters
    assert letter.headers["x-dispytch-dlq-reason"] == "not reversed"
    assert [body.id for body in seen] == [sent.id, "i2"]
    assert seen[0] == sent


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "not an event envelope"),
        (b"\xff\xfe", "not an event envelope"),
        (b"[]", "not an event envelope"),
        (b"null", "not an event envelope"),
        (b'{"id":"1"}', "type"),
        (b'{"id":"1","type":"frozen","body":{},"timestamp":"soon"}', "timestamp"),
        (b'{"id":1,"type":"frozen","body":{},"timestamp":1}', "id"),
        (
            b'{"id":"1","type":"frozen","body":{"x":"no number"},"timestamp":1}',
            "no valid Frozen: x",
        ),
        (b'{"id":"1","type":"frozen","body":[],"timestamp":1}', "body"),
        (b"[" * 100_000, "not an event envelope"),
        (b'{"id":"\\ud800","type":"frozen","body":{},"timestamp":1}', "not an event envelope"),
    ],
)
async def test_unreadable_is_dead_lettered_at_once_with_the_reason(
    payload: bytes, expected: str
) -> None:
    """What can't be read is not tried again: original bytes, key and headers, and the reason."""
    ours = listener()

    @ours.handler(Frozen)
    async def handle(event: Frozen) -> None: ...

    async with TestListener(ours) as t:
        await t.send("frozen", payload, key="k", headers={"a": b"\xff"})
        await t.settled()
        [letter] = t.dead_letters
    assert (letter.topic, letter.payload, letter.key) == ("frozen.dlq", payload, "k")
    assert letter.headers["a"] == b"\xff"
    assert expected in str(letter.headers["x-dispytch-dlq-reason"])
    assert letter.headers["x-dispytch-dlq-attempts"] == "0"


async def test_validator_that_fails_later_is_dead_lettered() -> None:
    """A body that was valid and is not for the next attempt is dead-lettered, never stuck."""
    times: list[int] = []

    class Moody(BaseModel):
        model_config = ConfigDict(extra="allow")

        def model_post_init(self, context: Any) -> None:
            times.append(1)
            if len(times) > 1:
                raise RuntimeError("another day")

    ours = listener()

    @ours.handler(topic="frozen", event="frozen")
    async def handle(event: Event[Moody]) -> None:
        raise ValueError("first")

    async with TestListener(ours) as t:
        await t.emit(Frozen())
        await t.settled()
        [letter] = t.dead_letters
    assert "another day" in str(letter.headers["x-dispytch-dlq-reason"])
