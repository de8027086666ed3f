"""What goes out comes back: bodies, envelopes, and the classes that can't."""

import json
import math
import sys
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)
from pydantic.alias_generators import to_camel

from dispytch import (
    DecodeError,
    EncodeError,
    Envelope,
    EventBase,
    EventDefinitionError,
    EventEmitter,
)
from dispytch.envelope import JSONDeserializer, JSONSerializer
from dispytch.memory import MemoryProducer


async def emitted(event: EventBase) -> dict[str, Any]:
    """The envelope of this event as it went to the wire."""
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        await emitter.emit(event)
    envelope: dict[str, Any] = json.loads(producer.messages[0].payload)
    assert list(envelope) == ["id", "type", "body", "timestamp"]
    assert envelope["id"] == event.id
    assert "id" not in envelope["body"]
    return envelope


async def returned(event: EventBase) -> EventBase:
    """The event as a receiver reads it from the wire."""
    envelope = await emitted(event)
    return type(event).model_validate_json(json.dumps({**envelope["body"], "id": envelope["id"]}))


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    id: int
    name: str


class Base(EventBase):
    __topic__ = "t"
    __event_type__ = "e"


class Middle(Base):
    when: datetime


class Leaf(Middle):
    colour: Colour
    numbers: list[int]
    inner: Inner | None = None
    big: int = 2**80
    uid: UUID = UUID(int=5)


class Aliased(Base):
    model_config = ConfigDict(alias_generator=to_camel)
    user_name: str
    one: int = Field(alias="1")
    either: int = Field(validation_alias=AliasChoices("either", "other"))


class Frozen(Base):
    model_config = ConfigDict(frozen=True)
    x: int


class Computed(Base):
    x: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.x * 2


T = TypeVar("T")


class Boxed(Base, Generic[T]):
    value: T


class Serialized(Base):
    x: int
    tag: Annotated[frozenset[str], PlainSerializer(sorted, return_type=list[str])] = frozenset("ab")

    @field_serializer("x")
    def _x(self, value: int) -> str:
        return str(value)


class Custom(Base):
    x: int

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        return {"id": self.id, "x": self.x}


class CustomWrap(Base):
    x: int

    @model_serializer(mode="wrap")
    def _dump(self, handler: Any) -> dict[str, Any]:
        return {**handler(self), "x": self.x}


class Excluded(Base):
    x: int
    cache: int = Field(default=0, exclude=True)


class Later(Base):
    later: "Inner"


WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "event",
    [
        Leaf(when=WHEN, colour=Colour.RED, numbers=[1, 2], inner=Inner(id=1, name="é\u2028\"")),
        Aliased(userName="x", **{"1": 1}, other=3),  # type: ignore[arg-type, call-arg]
        Frozen(x=1), Computed(x=2), Boxed[Inner](value=Inner(id=1, name="n")), Boxed[int](value=1),
        Serialized(x=5), Custom(x=1), CustomWrap(x=1), Excluded(x=1),
        Later(later=Inner(id=1, name="n")),
        Frozen(x=1, id='quote " and \\ and é'),
    ],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
async def test_event_comes_back_as_it_went_out(event: EventBase) -> None:
    """Subclasses of subclasses, aliases, frozen, computed, generic and custom-serialised events."""
    assert await returned(event) == event


async def test_body_is_written_by_alias_and_nested_ids_stay() -> None:
    """Only the event's own id leaves the body."""
    aliased = Aliased(userName="x", **{"1": 1}, either=3)  # type: ignore[arg-type, call-arg]
    assert (await emitted(aliased))["body"] == {"userName": "x", "1": 1, "either": 3}
    later = await emitted(Later(later=Inner(id=7, name="n")))
    assert later["body"] == {"later": {"id": 7, "name": "n"}}


async def test_envelope_says_type_and_time_of_emission() -> None:
    """`timestamp` is milliseconds since 1970 UTC."""
    before = datetime.now(UTC).timestamp() * 1000 - 1
    envelope = await emitted(Frozen(x=1))
    assert envelope["type"] == "e"
    assert before <= envelope["timestamp"] <= datetime.now(UTC).timestamp() * 1000 + 1


# What can't come back


class Nested(BaseModel):
    value: float | None = None
    any: Any = None


class Floats(Base):
    value: float = 0.0
    any: Any = None
    nested: Nested | None = None
    texts: tuple[str | None, ...] = ()


class Strings(Base):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    value: float


bad_floats = st.sampled_from([math.nan, math.inf, -math.inf])


@given(
    bad_floats.flatmap(
        lambda bad: st.sampled_from(
            [
                Floats(value=bad), Floats(any=bad), Floats(any=[{"a": bad}]),
                Floats(any={"a": [None, bad]}),
                Floats(nested=Nested(value=bad)), Floats(nested=Nested(any=bad)),
                Floats(any=Nested(value=bad)), Floats(any=[Nested(any=(bad,))]),
            ]
        )
    )
)  # fmt: skip
async def test_nan_and_infinity_are_refused_wherever_they_hide(event: EventBase) -> None:
    """JSON has no value for them: null would come back as something else."""
    with pytest.raises(EncodeError, match="NaN or infinity"):
        await emitted(event)


@pytest.mark.parametrize(
    "event",
    [
        Floats(texts=("NaN", "Infinity", None)), Floats(any="NaN"), Floats(nested=Nested()),
        Strings(value=math.inf),
    ],
    ids=["texts", "any", "nested", "infinity as a text"],
)  # fmt: skip
async def test_texts_that_look_like_nan_pass(event: EventBase) -> None:
    """The letters N, a, N in a string are no NaN; nor is null, nor a configured string form."""
    assert await returned(event) == event


async def test_value_that_is_no_json_is_refused() -> None:
    """Bytes that are no UTF-8, lone surrogates and objects without a JSON form are refused."""

    class Odd(Base):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        raw: bytes = b""
        any: Any = None

    for event in (Odd(raw=b"\xff"), Odd(any="\ud800"), Odd(any=object())):
        with pytest.raises(EncodeError, match="Odd"):
            await emitted(event)


async def test_model_serializer_that_gives_no_dict_is_refused() -> None:
    """A body is a JSON object."""

    class Listy(Base):
        @model_serializer
        def _dump(self) -> list[int]:
            return [1]

    with pytest.raises(EncodeError, match="dict"):
        await emitted(Listy())


def refused(**namespace: Any) -> EventDefinitionError:
    with pytest.raises(EventDefinitionError) as caught:
        type("Refused", (EventBase,), {"__module__": __name__, **namespace})
    return caught.value


class OneWay(BaseModel):
    x: int = Field(serialization_alias="y")


@pytest.mark.parametrize(
    ("annotation", "field"),
    [
        (int, Field(serialization_alias="y")),
        (int, Field(validation_alias="y")),
        (int, Field(validation_alias=AliasPath("a", "b"))),
        (int, Field(exclude=True)),
        (SecretStr, Field()),
        (list[SecretStr] | None, Field(default=None)),
    ],
)
def test_field_that_cannot_come_back_is_refused_with_the_class(annotation: Any, field: Any) -> None:
    """One-way aliases, required fields that are excluded, and secrets are refused, by name."""
    error = refused(__annotations__={"x": annotation}, x=field)
    assert error.field == "x"
    assert "Refused.x" in str(error)


def test_nested_model_that_cannot_come_back_is_refused_with_its_path() -> None:
    """Models inside the event are checked too."""
    assert refused(__annotations__={"items": list[OneWay]}).field == "items.x"


def test_computed_field_with_extra_forbidden_is_refused() -> None:
    """It is written, and refused when read."""
    with pytest.raises(EventDefinitionError, match="double"):

        class Forbidding(Computed):
            model_config = ConfigDict(extra="forbid")


def test_serialised_secret_is_accepted() -> None:
    """A field_serializer that reveals the secret says that it is meant to travel."""

    class Revealing(Base):
        token: SecretStr

        @field_serializer("token")
        def _token(self, value: SecretStr) -> str:
            return value.get_secret_value()

    assert Revealing(token=SecretStr("x"))


# Envelopes

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text("ab"), children),
    max_leaves=8,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, texts, st.dictionaries(texts, json_values, max_size=4), st.integers(0, 2**53))
def test_envelope_survives_the_wire(event_id: str, type_: str, body: Any, timestamp: int) -> None:
    """Any envelope is valid JSON of exactly four keys and reads back equal."""
    envelope = Envelope(event_id, type_, body, timestamp)
    payload = JSONSerializer().serialize(envelope)
    assert json.loads(payload) == {
        "id": event_id, "type": type_, "body": body, "timestamp": timestamp,
    }  # fmt: skip
    assert JSONDeserializer().deserialize(payload) == envelope


def test_unknown_keys_of_an_envelope_are_ignored() -> None:
    """A newer sender may add keys."""
    payload = b'{"id": "1", "type": "t", "body": {"a": 1}, "timestamp": 2, "trace": "x"}'
    assert JSONDeserializer().deserialize(payload) == Envelope("1", "t", {"a": 1}, 2)


VALID = {"id": "1", "type": "t", "body": {}, "timestamp": 2}


@given(
    st.binary(max_size=40)
    | st.sampled_from(sorted(VALID)).map(
        lambda key: json.dumps({k: v for k, v in VALID.items() if k != key}).encode()
    )
    | st.tuples(st.sampled_from(["id", "type"]), st.none() | st.integers()).map(
        lambda pair: json.dumps({**VALID, pair[0]: pair[1]}).encode()
    )
    | st.sampled_from(
        [b"[]", b"null", b"[" * (sys.getrecursionlimit() * 10), b'{"id": NaN}', b"\xff"]
    )
)
def test_bytes_that_are_no_envelope_are_refused(payload: bytes) -> None:
    """Whatever arrives is an envelope or a DecodeError that has the bytes."""
    with pytest.raises(DecodeError) as caught:
        JSONDeserializer().deserialize(payload)
    assert caught.value.payload == payload


async def test_serializer_replaces_the_format() -> None:
    """A serializer of one's own gets the whole envelope and decides the bytes."""

    class Spaced:
        def serialize(self, envelope: Envelope) -> bytes:
            return f"{envelope.type} {envelope.id} {envelope.body['x']}".encode()

    producer = MemoryProducer()
    event = Frozen(x=5)
    async with EventEmitter(producer, serializer=Spaced()) as emitter:
        await emitter.emit(event)
    assert producer.messages[0].payload == f"e {event.id} 5".encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": (int, Field(alias="id"))},
        {"a": (int, Field(alias="x")), "b": (int, Field(alias="x"))},
    ],
)
def test_two_fields_written_under_one_name_are_refused(fields: dict[str, Any]) -> None:
    """Of two values under one key only one would come back; `id` is the envelope's."""
    namespace = {name: field for name, (_, field) in fields.items()}
    annotations = {name: annotation for name, (annotation, _) in fields.items()}
    error = refused(__annotations__=annotations, **namespace)
    assert error.field in fields


def test_bytes_written_in_another_way_than_read_are_refused() -> None:
    """`ser_json_bytes` without the same `val_json_bytes` gives other bytes to the receiver."""
    config = ConfigDict(ser_json_bytes="base64")
    assert refused(__annotations__={"raw": bytes}, model_config=config).field == "raw"


class Annotations(Base):
    many: list[Annotated[int, {"a note": "that has no hash"}]] = Field(default=[])


async def test_annotations_may_hold_anything() -> None:
    """Metadata of other libraries inside a field's type is none of our business."""
    assert (await emitted(Annotations(many=[1])))["body"] == {"many": [1]}
