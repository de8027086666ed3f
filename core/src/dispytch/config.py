"""BackendConfig and the layering of configs: call over instance over class over emitter.

A *given* config is what a user hands in: one config object or a tuple of them, each of
another backend's schema. A *layer* is what of it concerns one producer.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from operator import attrgetter
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from dispytch.errors import ConfigError, ConfigMismatchError
from dispytch.template import Template, check_fields

__all__ = [
    "BackendConfig",
    "ClassConfig",
    "Given",
    "checked",
    "explain",
    "explicit",
    "layer_of",
    "merge",
    "own_layer",
    "revalidated",
]

Given: TypeAlias = BaseModel | tuple[BaseModel, ...] | None
Schema: TypeAlias = type[BaseModel] | None


class BackendConfig(BaseModel):
    """The base of a backend's event config: frozen, and unknown fields are refused.

    A config says how *one backend* carries an event (partition, priority, headers, ...). It is
    validated when it is built. A third party's config may be any pydantic model; this base only
    gives it the behaviour of ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def checked(value: object, where: str) -> Given:
    """A config as given by code: None, one config object, or a tuple of them.

    Raises:
        ConfigError: it is anything else, or holds two configs of one schema.
    """
    if value is None or isinstance(value, BaseModel):
        return value
    if isinstance(value, tuple):
        return _distinct(cast("tuple[object, ...]", value), where)
    raise ConfigError(
        f"{where}: expected a backend config or a tuple of them, got {_describe(value)}"
    )


def _distinct(members: tuple[object, ...], where: str) -> tuple[BaseModel, ...]:
    seen: set[type] = set()
    for member in members:
        if not isinstance(member, BaseModel):
            raise ConfigError(
                f"{where}: a tuple of configs holds backend configs only, not {_describe(member)}"
            )
        if type(member) in seen:
            raise ConfigError(
                f"{where}: two {type(member).__name__} in one tuple; "
                "give each backend's config once"
            )
        seen.add(type(member))
    return cast("tuple[BaseModel, ...]", members)


def layer_of(given: Given, schema: Schema) -> tuple[BaseModel, ...]:
    """The configs in `given` that concern a producer of this schema (None: all of them)."""
    members = given if isinstance(given, tuple) else () if given is None else (given,)
    if schema is None:
        return members
    own = tuple(member for member in members if isinstance(member, schema))
    if len(own) > 1:
        names = " and ".join(type(member).__name__ for member in own)
        raise ConfigError(f"{names} are both {schema.__name__}; give one of them")
    return own


def own_layer(given: Given, schema: Schema, backend: str, where: str) -> tuple[BaseModel, ...]:
    """Like `layer_of`, for a place that must name this backend: an instance, a call, an emitter.

    Raises:
        ConfigMismatchError: a config was given, but none of this backend's schema.
    """
    layer = layer_of(given, schema)
    if not layer and given is not None and schema is not None:
        members = given if isinstance(given, tuple) else (given,)
        names = ", ".join(type(member).__name__ for member in members) or "an empty tuple"
        raise ConfigMismatchError(
            f"{where}: backend {backend!r} takes {schema.__name__}, got {names}; "
            f"add a {schema.__name__}, or leave the config to the event class, where configs "
            "of other backends may stand"
        )
    return layer


def merge(layers: Iterable[tuple[BaseModel, ...]]) -> Given:
    """Merge layers, the farthest first: what a nearer layer set explicitly wins.

    `headers` are merged by key. One layer is returned as it is; a merge is validated again.

    Raises:
        ConfigError: the merged settings contradict each other.
    """
    by_schema: dict[type[BaseModel], list[BaseModel]] = {}
    for layer in layers:
        for config in layer:
            for schema, members in by_schema.items():
                if isinstance(config, schema) or issubclass(schema, type(config)):
                    members.append(config)
                    break
            else:
                by_schema[type(config)] = [config]
    merged = tuple(_merge_one(members) for members in by_schema.values())
    return merged[0] if len(merged) == 1 else merged or None


def _merge_one(members: list[BaseModel]) -> BaseModel:
    if len(members) == 1:
        return members[0]
    values: dict[str, Any] = {}
    for config in members:
        for name, value in explicit(config).items():
            if name == "headers" and values.get(name) and value is not None:
                value = _merge_headers(values[name], value)  # noqa: PLW2901
            values[name] = value
    return revalidated(
        max((type(config) for config in members), key=lambda t: len(t.__mro__)), values
    )


def explicit(config: BaseModel) -> dict[str, Any]:
    """What was set explicitly on a config, by field name."""
    values = {name: getattr(config, name) for name in config.model_fields_set}
    return values | (config.model_extra or {})


def revalidated(schema: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """Build a config of `schema` from values by field name.

    Raises:
        ConfigError: naming the fields at fault, without their values.
    """
    try:
        return schema.model_validate(values, by_name=True, by_alias=False)
    except ValidationError as error:
        raise ConfigError(explain(error, schema.__name__)) from error


def _merge_headers(far: Any, near: Any) -> Any:
    if isinstance(far, Mapping) and isinstance(near, Mapping):
        return {**far, **near}
    far_pairs = far.items() if isinstance(far, Mapping) else far
    near_pairs = list(near.items() if isinstance(near, Mapping) else near)
    replaced = {name for name, _ in near_pairs}
    return [pair for pair in far_pairs if pair[0] not in replaced] + near_pairs


def explain(error: ValidationError, subject: str) -> str:
    """A pydantic error as one line naming each field, without the values, which may be secrets."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    parts = []
    for detail in details:
        path = ".".join(str(step) for step in detail["loc"])
        parts.append(f"{path}: {detail['msg']}" if path else detail["msg"])
    return f"{subject}: " + "; ".join(parts)


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself (call it)"
    return f"a {type(value).__name__}"


class ClassConfig:
    """A class-level config, whose string values may hold placeholders for the event's fields.

    Args:
        config: the config as it stands in the class.
        model: the event class; None leaves the placeholders' names unchecked.
        lookup: how a placeholder reads its value, see `Template`.

    Raises:
        PlaceholderError: a template is malformed or names no field of `model`.
        ConfigError: the text without its doubled braces is not valid.
    """

    __slots__ = ("_config", "_fills", "constant")

    def __init__(
        self,
        config: BaseModel,
        model: type[BaseModel] | None,
        lookup: Callable[[str], Callable[[Any], Any]] = attrgetter,
    ) -> None:
        templates: list[Template] = []
        fills = {
            name: fill
            for name, value in explicit(config).items()
            if (fill := _compile(value, lookup, templates)) is not None
        }
        if model is not None:
            for template in templates:
                check_fields(template, model)
        self._config, self._fills = config, fills
        self.constant = not any(template.fields for template in templates)
        if self.constant and any(template.text != template.render(None) for template in templates):
            self._config = self._rendered(None)

    def render(self, source: Any) -> BaseModel:
        """The config for this event, validated again where it has placeholders.

        Raises:
            PlaceholderError: a placeholder has no usable value.
            ConfigError: what was rendered is not valid.
        """
        return self._config if self.constant else self._rendered(source)

    def _rendered(self, source: Any) -> BaseModel:
        values = explicit(self._config)
        for name, fill in self._fills.items():
            values[name] = fill(source)
        return revalidated(type(self._config), values)


def _compile(
    value: Any, lookup: Callable[[str], Callable[[Any], Any]], templates: list[Template]
) -> Callable[[Any], Any] | None:
    """A function that fills the templates inside `value`, or None where it holds no string."""
    if isinstance(value, str) and not isinstance(value, Enum):
        template = Template(value, lookup)
        templates.append(template)
        return template.render
    if isinstance(value, Mapping):
        fills = {key: _compile(member, lookup, templates) for key, member in value.items()}
        return lambda source: {
            key: member if (fill := fills[key]) is None else fill(source)
            for key, member in value.items()
        }
    if isinstance(value, list | tuple):
        steps = [(member, _compile(member, lookup, templates)) for member in value]
        build = list if isinstance(value, list) else tuple  # RabbitMQ's headers tell them apart
        return lambda source: build(
            member if fill is None else fill(source) for member, fill in steps
        )
    return None
