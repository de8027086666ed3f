"""dispytch.testing.Recorder: what a user's own tests see of what was emitted."""

import subprocess
import sys
from typing import Any
from unittest.mock import ANY

import pytest
from pydantic import BaseModel, ConfigDict, Field

from dispytch import EmitManyError, EmitRejected, EventBase, EventEmitter
from dispytch.memory import MemoryProducer
from dispytch.producer import Outgoing
from dispytch.testing import Recorder


class Config(BaseModel):
    priority: int = 0


class UserEvent(EventBase):
    __topic__ = "users.{name}"
    __key__ = "{name}"
    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="userName")


class UserCreated(UserEvent):
    __event_type__ = "user_created"
    __backend_config__ = Config(priority=1)
    age: int = 0


class UserDeleted(UserEvent):
    __event_type__ = "user_deleted"


class Service:
    def __init__(self, emitter: EventEmitter) -> None:
        self.emitter = emitter

    async def sign_up(self, name: str, age: int = 0) -> None:
        await self.emitter.emit(UserCreated(name=name, age=age))

    async def leave(self, name: str) -> None:
        await self.emitter.emit(UserDeleted(name=name))


async def test_recorder_alone_records_what_a_service_emits() -> None:
    """A service given the recorder's emitter has its events recorded, typed by class, in order."""
    async with Recorder() as recorder:
        service = Service(recorder.emitter)
        await service.sign_up("ada")
        await service.leave("ada")
        await service.sign_up("grace")
    created: list[UserCreated] = recorder.emitted(UserCreated)
    assert [event.name for event in created] == ["ada", "grace"]
    assert recorder.emitted(UserDeleted) == [recorder.events[1]]
    assert recorder.emitted(UserEvent) == recorder.events


async def test_recorder_alone_shows_the_wire() -> None:
    """Topic, key, headers, merged config and decoded body of each event are there."""
    async with Recorder() as recorder:
        await Service(recorder.emitter).sign_up("ada", 36)
    (message,) = recorder.messages
    assert (message.topic, message.type, message.key) == ("users.ada", "user_created", "ada")
    assert message.body == {"userName": "ada", "age": 36}
    assert message.config == Config(priority=1)
    assert message.headers == {}
    assert message.event_id == recorder.events[0].id
    assert message.payload.startswith(b'{"id":"' + message.event_id.encode())


async def test_recorder_around_an_emitter_listens_while_entered() -> None:
    """Around an emitter, the recorder hears what is emitted inside the block and nothing else."""
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        service = Service(emitter)
        await service.sign_up("before")
        with Recorder(emitter) as recorder:
            await service.sign_up("within")
            await emitter.emit_many([UserDeleted(name="a"), UserDeleted(name="b")])
        await service.sign_up("after")
        async with Recorder(emitter) as again:
            await service.sign_up("again")
    assert [event.name for event in recorder.emitted(UserEvent)] == ["within", "a", "b"]
    assert [event.name for event in again.emitted(UserEvent)] == ["again"]
    assert len(producer.messages) == 6


async def test_recorder_records_only_what_was_accepted() -> None:
    """An event that was rejected was not emitted."""

    class Refusing(MemoryProducer):
        async def send_message(self, out: Outgoing, /) -> Any:
            if out.key == "bad":
                raise EmitRejected("no")
            return await super().send_message(out)

    async with EventEmitter(Refusing()) as emitter:
        with Recorder(emitter) as recorder:
            with pytest.raises(EmitRejected):
                await emitter.emit(UserDeleted(name="bad"))
            with pytest.raises(EmitManyError):
                await emitter.emit_many([UserDeleted(name="good"), UserDeleted(name="bad")])
    assert [event.name for event in recorder.emitted(UserDeleted)] == ["good"]


async def test_assert_emitted_returns_the_matching_events() -> None:
    """What matches by class and fields is returned; matchers such as ANY work."""
    async with Recorder() as recorder:
        await Service(recorder.emitter).sign_up("ada", 36)
        await Service(recorder.emitter).sign_up("ada", 37)
    assert [event.age for event in recorder.assert_emitted(UserCreated)] == [36, 37]
    assert recorder.assert_emitted(UserCreated, times=1, age=37, name=ANY) == [recorder.events[1]]
    recorder.assert_emitted(UserEvent, times=2, name="ada")
    recorder.assert_not_emitted(UserDeleted)
    recorder.assert_not_emitted(UserCreated, age=38)


async def test_assert_emitted_failure_tells_what_was_emitted_instead() -> None:
    """The message has what was expected, how often it came, and each event with its differences."""
    async with Recorder() as recorder:
        service = Service(recorder.emitter)
        await service.sign_up("ada", 36)
        await service.leave("grace")
    with pytest.raises(AssertionError) as caught:
        recorder.assert_emitted(UserCreated, times=2, name="ada", age=37)
    one, two = recorder.events
    assert str(caught.value) == (
        "expected 2 UserCreated(name='ada', age=37), found 0; emitted were:\n"
        f"  1. {one!r}\n"
        "     age: expected 37, got 36\n"
        f"  2. {two!r}"
    )
    with pytest.raises(AssertionError, match="expected 0 UserDeleted, found 1"):
        recorder.assert_not_emitted(UserDeleted)
    with pytest.raises(
        AssertionError, match=r"expected no event; emitted were:\n  1\. UserCreated"
    ):
        recorder.assert_nothing_emitted()


async def test_assert_emitted_with_nothing_recorded_says_so() -> None:
    """Where nothing was emitted the message says just that."""
    async with Recorder() as recorder:
        recorder.assert_nothing_emitted()
    with pytest.raises(AssertionError) as caught:
        recorder.assert_emitted(UserCreated)
    assert str(caught.value) == ("expected at least 1 UserCreated, found 0; nothing was emitted")


async def test_assert_emitted_lists_a_bounded_number() -> None:
    """A long record does not flood the message."""
    async with Recorder() as recorder:
        await recorder.emitter.emit_many([UserDeleted(name=str(n)) for n in range(50)])
    with pytest.raises(AssertionError, match=r"\.\.\. and 30 more"):
        recorder.assert_emitted(UserCreated)


async def test_assert_with_a_misspelt_field_is_a_type_error() -> None:
    """A field the class does not have can't make an assertion pass."""
    async with Recorder() as recorder:
        pass
    with pytest.raises(TypeError, match="UserCreated has no field 'nmae'; it has: id, name"):
        recorder.assert_not_emitted(UserCreated, nmae="ada")


async def test_clear_forgets_events_and_messages() -> None:
    """After clear the record begins anew."""
    async with Recorder() as recorder:
        await Service(recorder.emitter).sign_up("ada")
        recorder.clear()
        recorder.assert_nothing_emitted()
        assert recorder.messages == []


def test_recorder_used_the_wrong_way_says_how() -> None:
    """A recorder of its own needs `async with`; one around an emitter does not see the wire."""
    with pytest.raises(TypeError, match="use `async with`"), Recorder():
        pass
    with pytest.raises(TypeError, match="sees the wire"):
        _ = Recorder(EventEmitter(MemoryProducer())).messages


async def test_two_recorders_share_nothing() -> None:
    """Each recorder of its own has a broker of its own."""
    async with Recorder() as one, Recorder() as other:
        await Service(one.emitter).sign_up("ada")
        other.assert_nothing_emitted()
        assert other.messages == []


def test_testing_needs_no_test_framework() -> None:
    """`dispytch.testing` imports no pytest, and `import dispytch` no `dispytch.testing`."""
    code = (
        "import sys, dispytch\n"
        "assert 'dispytch.testing' not in sys.modules\n"
        "import dispytch.testing\n"
        "assert 'pytest' not in sys.modules and '_pytest' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
