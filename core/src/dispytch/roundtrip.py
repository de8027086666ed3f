"""What goes out must come back: the checks of an event class, and the writer of its bodies."""

import math
from collections.abc import Iterator
from typing import Any, cast, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, from_json, to_json

from dispytch.errors import EncodeError, EventDefinitionError

__all__ = ["BodyWriter", "check_round_trip"]


def check_round_trip(cls: type[BaseModel]) -> None:
    """Refuse a class whose events can't be read back from what they are written as.

    Models nested in it are checked too; one with a `@model_serializer` of its own is trusted.

    Raises:
        EventDefinitionError: naming the field and what to do.
    """
    for model, path in _models(cls, "", set()):
        if model.__pydantic_decorators__.model_serializers:
            continue
        if model.model_config.get("extra") == "forbid" and model.model_computed_fields:
            name = next(iter(model.model_computed_fields))
            raise _error(
                cls, path + name, "is computed and written, but extra='forbid' refuses it when read"
            )
        writers: dict[str, str] = {}
        for name, written in _written(model):
            if (other := writers.setdefault(written, name)) != name:
                raise _error(cls, path + name, f"is written as {written!r}, like {other!r}")
        for name, field in model.model_fields.items():
            if model is cls and name == "id":
                continue
            problem = _problem(model, name, field)
            if problem:
                raise _error(cls, path + name, problem)


def _written(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each name that is written, with the key it is written under."""
    for name, field in model.model_fields.items():
        if not field.exclude:
            yield name, field.serialization_alias or name
    for name, computed in model.model_computed_fields.items():
        yield name, computed.alias or name


def _error(cls: type[BaseModel], field: str, problem: str) -> EventDefinitionError:
    return EventDefinitionError(f"{cls.__name__}.{field} {problem}", event=cls, field=field)


def _problem(model: type[BaseModel], name: str, field: FieldInfo) -> str | None:
    if field.exclude:
        if field.is_required():
            return "is required but excluded from what is written; give it a default"
        return None
    written = field.serialization_alias or name
    accepted = _accepted(model, name, field)
    if written not in accepted:
        return (
            f"is written as {written!r} but read as {' or '.join(map(repr, accepted))}; "
            "give it one `alias`, or the matching validation_alias"
        )
    problem = _lost_by_itself(model.model_config, field)
    return None if problem and _has_serializer(model, name, field) else problem


def _lost_by_itself(config: ConfigDict, field: FieldInfo) -> str | None:
    mentioned = list(_mentioned(field.annotation))  # no set: metadata may be unhashable
    if (bytes in mentioned or bytearray in mentioned) and (
        config.get("ser_json_bytes", "utf8") != config.get("val_json_bytes", "utf8")
    ):
        return "holds bytes; set val_json_bytes to the same as ser_json_bytes"
    if SecretStr in mentioned or SecretBytes in mentioned:
        return "is a secret, written as asterisks; give it a field_serializer or leave it out"
    return None


def _has_serializer(model: type[BaseModel], name: str, field: FieldInfo) -> bool:
    """Whether a field is written by a function of the user's."""
    from pydantic import PlainSerializer, WrapSerializer  # noqa: PLC0415 - 2 ms, needed by few

    decorated = any(
        name in decorator.info.fields or "*" in decorator.info.fields
        for decorator in model.__pydantic_decorators__.field_serializers.values()
    )
    return decorated or any(
        isinstance(item, PlainSerializer | WrapSerializer) for item in field.metadata
    )


def _accepted(model: type[BaseModel], name: str, field: FieldInfo) -> list[str]:
    alias, config = field.validation_alias, model.model_config
    by_alias = config.get("validate_by_alias", True)
    by_name = config.get("validate_by_name", False) or config.get("populate_by_name", False)
    accepted: list[str] = []
    if alias is not None and by_alias is not False:
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        accepted = [choice if isinstance(choice, str) else str(choice.path) for choice in choices]
    if alias is None or by_name:
        accepted.append(name)
    return accepted


def _models(
    model: type[BaseModel], path: str, seen: set[type]
) -> Iterator[tuple[type[BaseModel], str]]:
    if model in seen:
        return
    seen.add(model)
    yield model, path
    for name, field in model.model_fields.items():
        for part in _mentioned(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _models(part, f"{path}{name}.", seen)


def _mentioned(annotation: Any) -> Iterator[Any]:
    """Every type an annotation is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _mentioned(argument)


class BodyWriter:
    """Writes the body of an event class: JSON by alias, without `id`, refusing NaN and infinity.

    Args:
        cls: a complete event class.
    """

    __slots__ = ("_custom", "_hides_nan", "_to_json", "_to_python")

    def __init__(self, cls: type[BaseModel]) -> None:
        serializer = cls.__pydantic_serializer__
        self._to_json = serializer.to_json
        self._to_python = serializer.to_python
        self._custom = bool(cls.__pydantic_decorators__.model_serializers)
        self._hides_nan = _hides_nan(cast("Any", cls.__pydantic_core_schema__), "null")

    def __call__(self, event: BaseModel) -> bytes:
        """The body as JSON bytes.

        Raises:
            EncodeError: a value can't be written, or could not be read back (NaN, infinity).
        """
        try:
            if self._custom:
                body = to_json(self._dump(event), inf_nan_mode="constants")
            else:
                body = self._to_json(event, by_alias=True, exclude=_ID)
        except (PydanticSerializationError, UnicodeError) as error:
            raise EncodeError(
                f"{type(event).__name__} can't be written as JSON: {error}"
            ) from error
        if (
            (_N in body and b"NaN" in body)
            or (_I in body and b"Infinity" in body)
            or (self._hides_nan and b"null" in body)
        ):
            self._refuse_nan(event, body)
        return body

    def dump(self, event: BaseModel) -> dict[str, Any]:
        """The body as a dict of what JSON can hold, for a serializer of another format.

        Raises:
            EncodeError: as for calling it.
        """
        return cast("dict[str, Any]", from_json(self(event)))

    def _dump(self, event: BaseModel) -> dict[str, Any]:
        dumped: Any = self._to_python(event, mode="json", by_alias=True)
        if not isinstance(dumped, dict):
            raise EncodeError(
                f"the model_serializer of {type(event).__name__} gave a {type(dumped).__name__}; "
                "an event's body is a dict"
            )
        return {
            name: value for name, value in cast("dict[str, Any]", dumped).items() if name != "id"
        }

    def _refuse_nan(self, event: BaseModel, body: bytes) -> None:
        """Tell the bare constants from the same letters inside a string, and find hidden ones."""
        try:
            from_json(body, allow_inf_nan=False)
            hidden = self._hides_nan and not _finite(self._to_python(event))
        except ValueError:
            hidden = True
        if hidden:
            raise EncodeError(
                f"{type(event).__name__} holds NaN or infinity, which JSON has no value for and "
                "the receiver could not read; use None or a str"
            )


_ID = {"id"}
_N, _I = b"NI"
"""Letters, as numbers: to look for one costs a tenth of looking for a word."""


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(member) for member in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_finite(member) for member in cast("list[Any]", value))
    if isinstance(value, BaseModel):
        return _finite(value.__dict__)
    return True


def _hides_nan(schema: Any, mode: str) -> bool:
    """Whether a float of this core schema may be written as null.

    The mode is the setting of the nearest model; "any" values follow the models they hold.
    """
    if isinstance(schema, list | tuple):
        return any(_hides_nan(member, mode) for member in cast("list[Any]", schema))
    if not isinstance(schema, dict):
        return False
    node = cast("dict[str, Any]", schema)
    kind = node.get("type")
    if kind == "any" or (kind == "float" and mode == "null"):
        return True
    if kind in {"model", "dataclass", "typed-dict"}:
        mode = cast("dict[str, str]", node.get("config") or {}).get("ser_json_inf_nan", "null")
    return any(
        _hides_nan(member, mode)
        for name, member in node.items()
        if name not in {"config", "metadata", "serialization"}
    )
