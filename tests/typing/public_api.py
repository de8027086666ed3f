"""What type checkers must accept and refuse; checked by mypy (twice) and pyright, never run.

An `ignore` that is not needed is an error itself, so each one is a test that the mistake is seen.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar, assert_type

from pydantic import BaseModel, Field

from dispytch import (
    Ack,
    Backend,
    BackendConfig,
    Consumer,
    DeadLetter,
    Delivery,
    Depends,
    Drop,
    EmitContext,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    HandleContext,
    Health,
    Outcome,
    Outgoing,
    Producer,
    Receipt,
    Retry,
    RetryLater,
    Router,
    Subscription,
    TopicSegment,
    hookimpl,
    plugins,
)
from dispytch.testing import TestListener
from dispytch_kafka import KafkaEventConfig
from dispytch_rabbitmq import RabbitMQEventConfig


class User(BaseModel):
    id: str


class UserCreated(EventBase):
    __topic__ = "user_events"
    __event_type__ = "user_created"
    __key__ = "{user.id}"
    __backend_config__ = KafkaEventConfig(headers={"source": "signup"})

    user: User
    timestamp: int


class Several(EventBase):
    __topic__ = "several"
    __event_type__ = "several"
    __backend_config__ = (KafkaEventConfig(partition=1), RabbitMQEventConfig(priority=5))


class Frozen(EventBase, frozen=True):
    __topic__ = "frozen"
    x: int = Field(alias="y")


class Heir(UserCreated):
    more: int = 0


T = TypeVar("T")


class Boxed(EventBase, Generic[T]):
    value: T


user = User(id="u")

# The constructor knows the fields, the id and the config, on every kind of event.
event = UserCreated(
    user=user, timestamp=1, __backend_config__=KafkaEventConfig(partition_key=user.id)
)
UserCreated(user=user, timestamp=1)
UserCreated(user=user, timestamp=1, id="own")
UserCreated(
    user=user, timestamp=1, __backend_config__=(KafkaEventConfig(), RabbitMQEventConfig(priority=1))
)
Heir(user=user, timestamp=1, more=2, __backend_config__=None)
Frozen(y=1, __backend_config__=RabbitMQEventConfig())
boxed = Boxed[int](value=1, __backend_config__=KafkaEventConfig())
assert_type(boxed.value, int)
assert_type(event.user, User)
assert_type(event.id, str)

# What it refuses.
UserCreated(user=user)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
UserCreated(user=user, timestamp=1, nope=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
UserCreated(user=user, timestamp=1, __backend_config__={"a": 1})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
KafkaEventConfig(nope=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
RabbitMQEventConfig(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class MyCustomConfig(BackendConfig):
    foo: int = 0


class MyProducer(Producer):
    event_config = MyCustomConfig

    async def send(self, topic: str, payload: bytes, config: Any = None):  # type: ignore[no-untyped-def]
        return {"foo": config.foo}


class MyTypedProducer(Producer):
    backend = "typed"

    async def send_message(self, out: Outgoing) -> None:
        assert_type(out.payload, bytes)
        assert_type(out.key, str | None)


async def middleware(ctx: EmitContext, call_next: Any) -> Receipt:
    ctx.headers["trace"] = b"1"
    receipt: Receipt = await call_next(ctx)
    return receipt


async def emit() -> None:
    emitter = EventEmitter(MyProducer(), config=MyCustomConfig(foo=1), middleware=[middleware])
    async with EventEmitter.from_url("kafka://localhost:9092", timeout=5) as other:
        assert_type(other, EventEmitter)

    @emitter.before_emit
    def before(event: EventBase) -> None: ...

    @emitter.after_emit
    async def after(event: EventBase, receipt: Receipt) -> None: ...

    @emitter.on_error
    def error(event: EventBase, error: Exception) -> None: ...

    @emitter.on_timeout
    def timeout(event: EventBase) -> None: ...

    before(event)
    assert_type(await emitter.emit(event), Receipt)
    assert_type(await emitter.emit(event, config=MyCustomConfig(foo=2)), Receipt)
    assert_type(await emitter.emit_many([event, boxed]), list[Receipt])
    await emitter.emit("no event")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@hookimpl
def dispytch_backend() -> Backend:
    return Backend(name="mine", event_config=MyCustomConfig, producer=MyProducer)


assert_type(plugins.event_config("kafka"), type[BaseModel] | None)
assert_type(plugins.get_backend("kafka"), Backend)


# Handling.


class MyConsumer(Consumer):
    topic_delimiter = "/"

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        assert_type(subscriptions[0].group, str | None)

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        return []


class Session:
    """What a handler depends on."""


def get_session() -> Session:
    return Session()


async def around(ctx: HandleContext, call_next: Callable[[HandleContext], Awaitable[Any]]) -> Any:
    assert_type(ctx.segments, dict[str, str])
    return await call_next(ctx)


listener = EventListener(
    MyConsumer(),
    group="billing",
    retry=Retry(attempts=5, base=0.5, cap=10, on=(ValueError, OSError), jitter=False),
    middleware=[around],
    unmatched="dead_letter",
    max_in_flight=10,
    max_parked=100,
    max_threads=4,
    drain_timeout=5,
    timeout=3.0,
)
router = Router("user.{user_id}", middleware=[around], retry=Retry(1))


@listener.handler(UserCreated)
async def bill(
    event: Event[UserCreated],
    session: Annotated[Session, Depends(get_session)],
    created: UserCreated,
    own: Annotated[Session, Depends()],
) -> Outcome | None:
    assert_type(event.body, UserCreated)
    assert_type(event.body.user.id, str)
    assert_type(event.key, str | None)
    assert_type(event.attempt, int)
    assert_type(event.headers, tuple[tuple[str, bytes], ...])
    assert_type(session, Session)
    if event.attempt > 3:
        return RetryLater(delay=60)
    return DeadLetter("late") if created.timestamp else Drop()


@router.handler(topic="notification", event="user_notification", retry=Retry(2), ordered=False)
def notify(body: User, user_id: Annotated[int, TopicSegment(gt=0)]) -> Ack:
    assert_type(user_id, int)
    return Ack()


async def handle() -> None:
    # The decorator gives the function back as it was.
    outcome = await bill(Event("i", "t", "user_created", event, 1), get_session(), event, Session())
    assert_type(outcome, Outcome | None)
    assert_type(notify(user, 1), Ack)
    notify(user, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Event("i", "t", "user_created", event, 1).body, UserCreated)

    listener.include_router(router)
    listener.add_middleware(around)
    listener.override(get_session, Session)
    with listener.override(get_session, get_session):
        pass
    async with EventListener.from_url("memory://x", group=None, max_in_flight=1) as other:
        assert_type(other, EventListener)
        assert_type(other.health(), Health)
        assert_type(other.health().problems, tuple[str, ...])
    async with TestListener(listener) as t:
        assert_type(await t.emit(event), Receipt)
        await t.settled()
        assert_type(t.dead_letters[0].payload, bytes)
    await listener.run()

    # What it refuses.
    EventListener(MyConsumer(), nope=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    EventListener(MyConsumer(), unmatched="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventListener("memory://")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    listener.handler(User)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    listener.handler(UserCreated, retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    DeadLetter(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
