"""EventBase: definition, id, and the config an instance carries."""

import copy
import pickle
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_pascal

from dispytch import (
    BackendConfig,
    ConfigError,
    EventBase,
    EventDefinitionError,
    EventEmitter,
    TemplateError,
    TopicError,
)
from dispytch.event import definition_of, new_id
from dispytch.memory import MemoryProducer


class AConfig(BackendConfig):
    partition_key: str | None = None
    headers: dict[str, str] | None = None


class BConfig(BackendConfig):
    priority: int = 0


class User(BaseModel):
    id: str
    name: str | None = None


class UserCreated(EventBase):
    __topic__ = "user_events"
    __event_type__ = "user_created"
    __backend_config__ = AConfig(headers={"source": "signup"})

    user: User
    timestamp: int


USER = User(id="u1")
OWN = AConfig(partition_key="mine")


def made(config: Any = None) -> UserCreated:
    return UserCreated(user=USER, timestamp=1, __backend_config__=config)


# The config on an instance


def test_config_given_to_the_constructor_is_the_instances_config() -> None:
    """An instance's config is read back from it; other instances and the class keep theirs."""
    assert made(OWN).__backend_config__ is OWN
    assert made().__backend_config__ == AConfig(headers={"source": "signup"})
    assert UserCreated.__backend_config__ == AConfig(headers={"source": "signup"})


def test_config_is_no_part_of_the_data() -> None:
    """The config stays out of the dump, JSON, JSON schema, repr, fields and equality."""
    event = made(OWN)
    twin = UserCreated(user=USER, timestamp=1, id=event.id)
    assert set(event.model_dump()) == {"id", "user", "timestamp"}
    assert "mine" not in event.model_dump_json()
    assert "backend_config" not in str(UserCreated.model_json_schema())
    assert "mine" not in repr(event)
    assert "__backend_config__" not in UserCreated.model_fields
    assert event == twin


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event)),
        UserCreated.model_copy, lambda event: event.model_copy(deep=True),
        lambda event: event.model_copy(update={"timestamp": 2}),
    ],
)  # fmt: skip
def test_config_survives_copies_and_pickle(duplicate: Any) -> None:
    """Copies go out as the original would."""
    assert duplicate(made(OWN)).__backend_config__ == OWN


def test_model_copy_update_replaces_the_config_by_objects_only() -> None:
    """model_copy is no way for plain data to set a config either."""
    event = made()
    assert event.model_copy(update={"__backend_config__": OWN}).__backend_config__ == OWN
    copied = event.model_copy(update={"__backend_config__": {"partition_key": "x"}})
    assert copied.__backend_config__ == UserCreated.__backend_config__


class Open(EventBase, extra="allow"):
    __topic__ = "t"
    __event_type__ = "open"
    a: int


class Strict(EventBase, extra="forbid"):
    __topic__ = "t"
    __event_type__ = "strict"
    a: int


class WithInit(EventBase):
    __topic__ = "t"
    __event_type__ = "init"
    a: int

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


class OpenWithInit(Open):
    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


class Plain(EventBase):
    __topic__ = "t"
    __event_type__ = "plain"
    a: int


class Nesting(BaseModel):
    events: list[Plain | Open]


HOSTILE: list[Any] = [
    {"partition_key": "evil"},
    [{"partition_key": "evil"}],
    "evil",
    1,
    OWN,
    (OWN,),
]
KINDS: list[type[EventBase]] = [Plain, Open, Strict, WithInit, OpenWithInit]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("cls", KINDS)
def test_validated_data_never_sets_the_config(cls: type[EventBase], hostile: Any) -> None:
    """model_validate, type adapters and nesting drop the key, even with a config object in it."""
    data = {"a": 1, "__backend_config__": hostile}
    for event in (
        cls.model_validate(data),
        TypeAdapter(cls).validate_python(data),
        TypeAdapter(list[cls]).validate_python([data])[0],  # type: ignore[valid-type]
    ):
        assert event.__backend_config__ is None
        assert "__backend_config__" not in {**event.model_dump(), **(event.model_extra or {})}


@pytest.mark.parametrize("cls", KINDS)
def test_validated_json_never_sets_the_config(cls: type[EventBase]) -> None:
    """Nor does JSON, whatever the class does with unknown keys."""
    event = cls.model_validate_json(b'{"a": 1, "__backend_config__": {"partition_key": "evil"}}')
    assert event.__backend_config__ is None
    assert "__backend_config__" not in (event.model_extra or {})
    nested = Nesting.model_validate_json(b'{"events": [{"a": 1, "__backend_config__": {"p": 1}}]}')
    assert nested.events[0].__backend_config__ is None


class Timed(EventBase, strict=True):
    """Strict: of datetime, UUID and tuple only JSON takes another form."""

    __topic__ = "t"
    __event_type__ = "timed"
    at: datetime
    by: uuid.UUID
    where: tuple[int, int]


class TimedOpen(Timed, extra="allow"):
    pass


TIMED: list[type[Timed]] = [Timed, TimedOpen]
AT, BY = datetime(2026, 1, 2, tzinfo=UTC), uuid.UUID(int=7)


@pytest.mark.parametrize("cls", TIMED)
def test_strict_event_comes_back_from_json(cls: type[Timed]) -> None:
    """Dropping the key leaves JSON to be read as JSON, in the event and in one nested in it."""
    event = cls(at=AT, by=BY, where=(3, 4), __backend_config__=OWN)
    text = event.model_dump_json()
    assert "__backend_config__" not in text
    hostile = text[:-1] + ',"__backend_config__": {"partition_key": "evil"}}'
    nested = TypeAdapter(list[cls])  # type: ignore[valid-type]
    for back in (
        cls.model_validate_json(text),
        cls.model_validate_json(hostile),
        nested.validate_json(f"[{hostile}]")[0],
    ):
        assert back == event
        assert back.__backend_config__ is None
        assert not back.model_extra
        assert "__backend_config__" not in back.model_fields_set


class LaxForbids(Timed, extra="forbid", strict=False):
    pass


class LaxWithInit(Timed, strict=False):
    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


@pytest.mark.parametrize("cls", [LaxForbids, LaxWithInit])
def test_event_that_sees_unknown_keys_comes_back_from_json(cls: type[Timed]) -> None:
    """Neither a class that forbids extra fields nor an __init__ of its own meets the key."""
    event = cls(at=AT, by=BY, where=(1, 2))
    text = event.model_dump_json()[:-1] + ',"__backend_config__": {"partition_key": "evil"}}'
    back = cls.model_validate_json(text)
    assert back == event
    assert back.__backend_config__ is None


class Revalidated(Open, revalidate_instances="always"):
    pass


def test_validating_an_event_again_keeps_its_config_out_of_the_body() -> None:
    """`revalidate_instances` reads the instance as data, so its config is dropped, not kept."""
    event = Revalidated(a=1, more=2, __backend_config__=OWN)
    again = Revalidated.model_validate(event)
    assert again.__backend_config__ is None
    assert again.model_extra == {"more": 2}
    assert "__backend_config__" not in again.model_dump()


def test_events_of_a_union_are_written_without_a_warning() -> None:
    """Pydantic counts fields to tell the members of a union apart: the config is none of them."""
    nesting = Nesting(events=[Plain(id="1", a=1, __backend_config__=OWN), Open(id="2", a=2)])
    assert nesting.model_dump_json() == '{"events":[{"id":"1","a":1},{"id":"2","a":2}]}'


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_json_schema_never_shows_the_config(cls: type[EventBase], mode: Any) -> None:
    """What reads the schema learns the body's fields and nothing of the transport."""
    assert set(cls.model_json_schema(mode=mode)["properties"]) == {"id", "a"}


@pytest.mark.parametrize("hostile", [{"partition_key": "evil"}, [{"a": 1}], "evil", 1, None, b"x"])
@pytest.mark.parametrize("cls", KINDS)
def test_plain_data_in_the_constructor_is_dropped_and_logged(
    cls: Any, hostile: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """`Event(**untrusted)` can't choose where an event goes, and says what it ignored."""
    untrusted = {"a": 1, "__backend_config__": hostile}
    event = cls(**untrusted)
    assert event.__backend_config__ is None
    assert "__backend_config__" not in (event.model_extra or {})
    assert bool(caplog.records) == (hostile is not None)
    assert "evil" not in caplog.text


@pytest.mark.parametrize("cls", KINDS)
def test_config_object_reaches_events_with_any_constructor(cls: Any) -> None:
    """A class's own __init__ and extra="allow" don't cost the config."""
    event = cls(a=1, __backend_config__=OWN)
    assert event.__backend_config__ is OWN
    assert not event.model_extra


@pytest.mark.parametrize("wrong", [AConfig, object(), (OWN, {"a": 1}), (object(),), [OWN]])
def test_config_of_a_wrong_kind_is_refused_at_once(wrong: Any) -> None:
    """What can only be a mistake of the code is an error where it is given."""
    with pytest.raises(ConfigError, match="UserCreated"):
        made(wrong)


def test_two_configs_of_one_schema_are_refused_where_the_tuple_is_given() -> None:
    """A tuple holds one config per backend, on an instance and on a class."""
    with pytest.raises(ConfigError, match="two AConfig"):
        made((OWN, AConfig()))
    with pytest.raises(ConfigError, match="two AConfig"):

        class Twice(EventBase):
            __backend_config__ = (OWN, AConfig())


def test_class_config_of_a_wrong_kind_is_refused_when_the_class_is_made() -> None:
    """A dict is no config."""
    with pytest.raises(ConfigError, match=r"Wrong\.__backend_config__"):

        class Wrong(EventBase):
            __backend_config__: ClassVar[Any] = {"partition_key": "x"}


# The id


def test_ids_are_unique_uuids_of_version_7_and_ordered_by_time() -> None:
    """Ids are RFC 9562 version 7: valid, unique, sortable by time."""
    ids = [new_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert all(
        uuid.UUID(i).version == 7 and uuid.UUID(i).variant == uuid.RFC_4122 for i in ids[:500]
    )
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)


def test_ids_differ_after_a_fork_and_despite_a_seeded_random_module() -> None:
    """Neither fork nor random.seed makes two processes mint the same ids."""
    code = (
        "import random, os, time; random.seed(1)\n"
        "time.time_ns = lambda: 10**18  # all in one millisecond\n"
        "from dispytch.event import new_id\n"
        "new_id()\n"
        "pid = os.fork()\n"
        "tail = [new_id()[19:] for _ in range(3)]\n"
        "os.write(1, (' '.join(tail) + chr(10)).encode())\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    lines = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout
        for _ in range(2)
    ]
    tails = " ".join(lines).split()
    assert len(tails) == len(set(tails)) == 12


@pytest.mark.parametrize(
    "body",
    [
        {"__annotations__": {"id": int}}, {"id": "x"}, {"id": property(lambda self: "x")},
        {"__annotations__": {"id": str}, "id": Field(alias="ID")},
        {"__annotations__": {"id": str}, "id": Field(default_factory=lambda: "x")},
    ],
)  # fmt: skip
def test_redefined_id_is_refused(body: dict[str, Any]) -> None:
    """The id is the envelope's; a subclass can neither retype nor alias it."""
    with pytest.raises(EventDefinitionError, match="id") as caught:
        type("Redefining", (EventBase,), {"__module__": __name__, **body})
    assert caught.value.field == "id"


def test_alias_generators_leave_the_id_alone() -> None:
    """The id keeps its name under an alias generator."""

    class Pascal(EventBase):
        model_config = ConfigDict(alias_generator=to_pascal)
        user_name: str

    event = Pascal(UserName="x", id="i")  # type: ignore[call-arg]
    assert event.id == "i"


def test_empty_id_is_refused() -> None:
    """An id names one event, so it is not empty."""
    with pytest.raises(ValidationError):
        UserCreated(user=USER, timestamp=1, id="")


# Definition


@pytest.mark.parametrize(
    "template", ["{nope}", "{user.nope}", "{user.__class__}", "{user", "{user!r}"]
)
@pytest.mark.parametrize("attribute", ["__topic__", "__key__"])
def test_wrong_template_is_refused_when_the_class_is_made(template: str, attribute: str) -> None:
    """An unknown field fails at once, with its name."""
    namespace = {"__module__": __name__, "__annotations__": {"user": User}, attribute: template}
    with pytest.raises(TemplateError, match=attribute) as caught:
        type("Wrong", (EventBase,), namespace)
    assert isinstance(caught.value, TopicError)


def test_wrong_template_in_a_class_config_is_refused_when_the_class_is_made() -> None:
    """The strings of a class-level config are templates too."""
    with pytest.raises(EventDefinitionError, match="nope"):

        class Wrong(EventBase):
            __backend_config__ = AConfig(headers={"a": "{nope}"})


@pytest.mark.parametrize("value", [None, 5, b"x", ""])
def test_topic_that_is_no_text_is_refused(value: Any) -> None:
    """`__topic__` is a non-empty str; None is as good as none."""
    namespace = {"__module__": __name__, "__topic__": value}
    if value is None:
        type("NoTopic", (EventBase,), namespace)
    else:
        with pytest.raises(EventDefinitionError, match="__topic__"):
            type("Wrong", (EventBase,), namespace)


@pytest.mark.parametrize("missing", ["__topic__", "__event_type__"])
async def test_event_without_topic_or_type_is_refused_when_emitted(missing: str) -> None:
    """An intermediate class may leave them out; emitting it says what lacks."""
    namespace = {"__module__": __name__, "__topic__": "t", "__event_type__": "e"}
    del namespace[missing]
    cls = type("Intermediate", (EventBase,), namespace)
    async with EventEmitter(MemoryProducer()) as emitter:
        with pytest.raises(EventDefinitionError, match=missing):
            await emitter.emit(cls())


class Later(EventBase):
    __topic__ = "later.{target.id}"
    __event_type__ = "later"
    target: "Target"


class WrongLater(EventBase):
    __topic__ = "later.{target.nope}"
    __event_type__ = "later"
    target: "Target"


class Target(BaseModel):
    id: int


def test_forward_reference_is_resolved_at_the_latest_when_needed() -> None:
    """Templates over forward references are parsed once these are known, and then checked."""
    assert definition_of(Later).topic is not None
    assert Later(target=Target(id=1)).target.id == 1
    with pytest.raises(TemplateError, match="nope"):
        definition_of(WrongLater)


def test_forward_reference_that_stays_unknown_is_explained() -> None:
    """A name that can't be resolved is an error of the definition, with the remedy."""
    cls = type(
        "Dangling", (EventBase,),
        {"__module__": __name__, "__annotations__": {"x": "Nowhere"}, "__topic__": "t"},
    )  # fmt: skip
    with pytest.raises(EventDefinitionError, match="model_rebuild"):
        definition_of(cls)


T = TypeVar("T")


class Wrapped(EventBase, Generic[T]):
    __topic__ = "wrapped.{payload.id}"
    __event_type__ = "wrapped"
    payload: T


def test_generic_event_is_checked_when_parametrised() -> None:
    """Each parametrisation has its own fields, so its own check."""
    topic = definition_of(Wrapped[User]).topic
    assert topic is not None
    assert topic.render(Wrapped[User](payload=USER)) == "wrapped.u1"
    with pytest.raises(TemplateError, match="int"):
        Wrapped[int]
    with pytest.raises(EventDefinitionError, match="generic"):
        definition_of(Wrapped)


# What pydantic does to an instance afterwards


class Assigned(EventBase, validate_assignment=True):
    n: int = 0


class AssignedOpen(Assigned, extra="allow"):
    pass


class AssignedStrict(Assigned, extra="forbid"):
    pass


class AssignedWithInit(AssignedOpen):
    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


@pytest.mark.parametrize("cls", [Assigned, AssignedOpen, AssignedStrict, AssignedWithInit])
def test_config_survives_assignment_that_validates(cls: Any) -> None:
    """Validating an assignment neither loses the config nor takes it into the body."""
    more = {"more": 2} if cls.model_config.get("extra") == "allow" else {}
    event = cls(n=1, **more, __backend_config__=OWN)
    event.n = 3
    assert event.__backend_config__ is OWN
    assert (event.model_extra or {}) == more
    assert event.model_dump(exclude={"id"}) == {"n": 3, **more}
    plain = cls(n=1)
    plain.n = 3
    assert plain.__backend_config__ is None
    assert plain.n == 3


def test_model_construct_takes_the_config_like_the_constructor() -> None:
    """`model_construct` keeps a config object and never lets one into the body."""
    assert UserCreated.model_construct(__backend_config__=OWN).__backend_config__ is OWN
    hostile = Open.model_construct(__backend_config__={"partition_key": "evil"})
    assert hostile.__backend_config__ is None
    assert not hostile.model_extra


class WrongTwice(UserCreated):
    model_config = ConfigDict(defer_build=True)
    __topic__ = "{nope}"


def test_deferred_mistake_is_told_every_time() -> None:
    """A class that is found wrong when first used is still wrong the second time."""
    for _ in range(2):
        with pytest.raises(TemplateError, match="nope"):
            definition_of(WrongTwice)
