"""Config layering: call over instance over class over emitter, merged field by field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, model_validator

from dispytch import (
    BackendConfig,
    ConfigError,
    ConfigMismatchError,
    EventBase,
    EventDefinitionError,
    EventEmitter,
    Producer,
)
from dispytch.memory import MemoryProducer
from dispytch.producer import Outgoing


class AConfig(BackendConfig):
    partition_key: str | None = None
    partition: int | None = None
    headers: dict[str, str] | tuple[tuple[str, str], ...] | None = None

    @model_validator(mode="after")
    def _one_way_to_a_partition(self) -> "AConfig":
        if self.partition is not None and self.partition_key == "pinned":
            raise ValueError("a pinned key has no partition")
        return self


class BConfig(BackendConfig):
    priority: int = 0
    headers: dict[str, str] | None = None


class Plain(BaseModel):
    """A third party's config need not derive from BackendConfig."""

    foo: int = 1
    bar: str = "b"


class Recording(Producer):
    """Keeps what it was given; for one schema."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []

    async def send_message(self, out: Outgoing) -> None:
        self.sent.append(out)


class A(Recording):
    backend = "a"
    event_config = AConfig


class PlainProducer(Recording):
    backend = "plain"
    event_config = Plain


def event_class(config: Any = None, **attributes: Any) -> Any:
    namespace = {
        "__module__": __name__, "__topic__": "t", "__event_type__": "e",
        "__backend_config__": config, "__annotations__": {"who": str}, "who": "me", **attributes,
    }  # fmt: skip
    return type("Layered", (EventBase,), namespace)


async def sent_config(
    producer: Recording, cls: Any, *, own: Any = None, call: Any = None, emitter: Any = None
) -> Any:
    async with EventEmitter(producer, config=emitter) as running:
        await running.emit(cls(__backend_config__=own), config=call)
    return producer.sent[-1].config


fields = st.fixed_dictionaries(
    {},
    optional={
        "partition_key": st.sampled_from(["k1", "k2", None]),
        "partition": st.integers(0, 3),
        "headers": st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3),
    },
)
layers = st.one_of(st.none(), fields)


def expected(given_layers: list[dict[str, Any] | None]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in given_layers:
        for name, value in (layer or {}).items():
            both = name == "headers" and merged.get("headers") and value is not None
            merged[name] = {**merged["headers"], **value} if both else value
    return merged


@given(layers, layers, layers, layers)
async def test_nearer_layer_wins_field_by_field(
    emitter: Any, cls: Any, own: Any, call: Any
) -> None:
    """Whatever each layer sets explicitly, the nearest wins; headers are merged by key."""
    given_layers = [emitter, cls, own, call]
    configs = [None if layer is None else AConfig(**layer) for layer in given_layers]
    config = await sent_config(
        A(), event_class(configs[1]), emitter=configs[0], own=configs[2], call=configs[3]
    )
    if all(layer is None for layer in given_layers):
        assert config is None
    else:
        assert config.model_dump(exclude_unset=True) == expected(given_layers)


@given(st.permutations([AConfig(partition_key="k"), BConfig(priority=5), Plain(foo=7)]))
async def test_producer_takes_the_config_of_its_own_schema_from_a_tuple(
    configs: list[BaseModel],
) -> None:
    """Events may carry configs for several backends, in any order."""
    assert await sent_config(A(), event_class(tuple(configs))) == AConfig(partition_key="k")
    assert await sent_config(A(), event_class(), own=tuple(configs)) == AConfig(partition_key="k")
    assert await sent_config(PlainProducer(), event_class(tuple(configs))) == Plain(foo=7)


async def test_default_that_was_not_set_does_not_win() -> None:
    """A nearer config only counts for what it sets explicitly, on any pydantic model."""
    config = await sent_config(PlainProducer(), event_class(Plain(foo=5)), own=Plain(bar="c"))
    assert config == Plain(foo=5, bar="c")


async def test_header_pairs_replace_all_farther_ones_of_their_name() -> None:
    """Merging headers keeps order and duplicates, and works between dicts and pairs."""
    far = AConfig(headers=(("a", "1"), ("b", "2"), ("a", "3")))
    near = AConfig(headers={"a": "4"})
    config = await sent_config(A(), event_class(far), own=near)
    assert list(config.headers) == [("b", "2"), ("a", "4")]


async def test_class_config_of_another_backend_is_that_backends_default() -> None:
    """A class-level config of another schema does not concern this producer."""
    assert await sent_config(A(), event_class(BConfig(priority=1))) is None


@pytest.mark.parametrize("where", ["own", "call"])
@pytest.mark.parametrize("wrong", [BConfig(), (BConfig(), Plain()), ()])
async def test_config_of_another_backend_is_refused_on_instance_and_call(
    where: Any, wrong: Any
) -> None:
    """It would be dropped otherwise; the error names event, backend, expected and given."""
    producer = A()
    with pytest.raises(ConfigMismatchError) as caught:
        await sent_config(producer, event_class(), **{where: wrong})
    for part in ("Layered", "'a'", "AConfig", "BConfig" if wrong else "empty"):
        assert part in str(caught.value)
    assert isinstance(caught.value, ValueError | TypeError)
    assert producer.sent == []


def test_emitter_config_of_another_backend_is_refused_when_built() -> None:
    """The emitter's own default must be of its backend."""
    with pytest.raises(ConfigMismatchError, match="AConfig"):
        EventEmitter(A(), config=BConfig())


@pytest.mark.parametrize("wrong", [{"partition": 1}, AConfig, "x", [AConfig()]])
async def test_config_that_is_no_object_is_refused_on_a_call(wrong: Any) -> None:
    """A call is code: plain data there is a mistake, not something to drop."""
    with pytest.raises(ConfigError, match="emit"):
        await sent_config(A(), event_class(), call=wrong)
    with pytest.raises(ConfigError, match="EventEmitter"):
        EventEmitter(A(), config=wrong)


async def test_merge_that_contradicts_itself_is_refused_before_sending() -> None:
    """The merged result is validated again, ahead of time where it can be known."""
    pinned, partition = AConfig(partition_key="pinned"), AConfig(partition=1)
    producer = A()
    with pytest.raises(ConfigError, match="pinned key"):
        await sent_config(producer, event_class(pinned), own=partition)
    with pytest.raises(ConfigError, match="pinned key"):
        await sent_config(producer, event_class(pinned), emitter=partition)
    assert producer.sent == []


async def test_strings_of_a_class_config_are_templates() -> None:
    """Placeholders in a class-level config are filled from the event."""
    cls = event_class(AConfig(partition_key="{who}", headers={"who": "is {who}", "b": "{{x}}"}))
    config = await sent_config(A(), cls)
    assert config == AConfig(partition_key="me", headers={"who": "is me", "b": "{x}"})


async def test_doubled_braces_of_a_constant_class_config_become_single() -> None:
    """A class-level config without placeholders still is a template."""
    config = await sent_config(A(), event_class(AConfig(partition_key="{{x}}")))
    assert config.partition_key == "{x}"


async def test_strings_given_on_an_instance_or_a_call_are_literal() -> None:
    """Only class-level strings are templates."""
    literal = AConfig(partition_key="{who}{{")
    assert (await sent_config(A(), event_class(), own=literal)).partition_key == "{who}{{"
    assert (await sent_config(A(), event_class(), call=literal)).partition_key == "{who}{{"
    assert (await sent_config(A(), event_class(), emitter=literal)).partition_key == "{who}{{"


async def test_none_in_a_class_config_is_refused_when_emitting() -> None:
    """A placeholder whose field is None is an error, not the text 'None'."""
    cls = event_class(AConfig(partition_key="{who}"), __annotations__={"who": str | None}, who=None)
    producer = A()
    with pytest.raises(ConfigError, match="'who' is None"):
        await sent_config(producer, cls)
    assert producer.sent == []


async def test_rendered_config_is_validated_again() -> None:
    """What a template renders must be as valid as what is written out."""
    cls = event_class(AConfig(partition_key="{who}", partition=1), who="pinned")
    with pytest.raises(ConfigError, match="pinned key"):
        await sent_config(A(), cls)


async def test_memory_takes_any_config() -> None:
    """The built-in backend keeps whatever config an event has."""
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        await emitter.emit(
            event_class(AConfig(partition=1))(__backend_config__=BConfig(priority=2))
        )
        await emitter.emit(event_class(AConfig(partition_key="{who}"))())
    assert producer.messages[0].config == (AConfig(partition=1), BConfig(priority=2))
    assert producer.messages[1].config == AConfig(partition_key="me")


class Special(AConfig):
    extra_field: int = 0


async def test_subclass_of_a_schema_is_of_that_schema() -> None:
    """A user's own extension of a config is taken, and merged with its base."""
    config = await sent_config(A(), event_class(AConfig(partition=1)), own=Special(extra_field=3))
    assert config == Special(partition=1, extra_field=3)


async def test_two_configs_of_one_family_are_refused() -> None:
    """A schema and its extension in one tuple leave open which one counts."""
    with pytest.raises(ConfigError, match="give one of them"):
        await sent_config(A(), event_class((AConfig(), Special())))


def test_unknown_field_is_refused_when_the_config_is_built() -> None:
    """BackendConfig forbids what it does not know, and is frozen."""
    with pytest.raises(ValueError, match="nope"):
        AConfig(nope=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frozen"):
        AConfig().partition = 1  # type: ignore[misc]


def test_subclass_replaces_the_config_of_its_base() -> None:
    """Class-level configs are inherited and overridden as attributes are."""
    base = event_class(AConfig(partition=1))
    heir = type("Heir", (base,), {"__module__": __name__})
    other = type("Other", (base,), {"__module__": __name__, "__backend_config__": BConfig()})
    assert heir.__backend_config__ == AConfig(partition=1)
    assert other.__backend_config__ == BConfig()


def test_wrong_field_in_a_class_config_names_the_field() -> None:
    """A template that names no field is an error of the event's definition."""
    with pytest.raises(EventDefinitionError) as caught:
        event_class(AConfig(headers={"a": "{who.x}"}))
    assert caught.value.field == "who.x"
