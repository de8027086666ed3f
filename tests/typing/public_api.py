"""What type checkers must accept and refuse; checked by mypy (twice) and pyright, never run.

An `ignore` that is not needed is an error itself, so each one is a test that the mistake is seen.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Any, Generic, TypeVar, assert_type

from pydantic import BaseModel, Field

from dispytch import (
    Backend,
    BackendConfig,
    EmitContext,
    EventBase,
    EventEmitter,
    Outgoing,
    Producer,
    Receipt,
    hookimpl,
    plugins,
)
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
