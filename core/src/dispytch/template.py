"""Placeholders in topics, keys and class-level configs, parsed once.

`"user.{user.id}.events"` names fields by their Python names, dotted for nested models;
`{{` and `}}` are literal braces. It is never `str.format`: a template reaches the fields of
the model and nothing else, which `check_fields` proves before the first event.
"""

import re
from collections.abc import Callable
from datetime import date, time
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel

__all__ = ["PlaceholderError", "Template", "check_fields", "key_text", "literals_and_fields"]

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_KEY_TYPES = (int, UUID, Decimal, date, time)
_NO_TEXT = (bool, float, complex, bytes, bytearray, BaseModel, dict, list, tuple, set, frozenset)


class PlaceholderError(ValueError):
    """A placeholder that can't be parsed, names no field, or has no usable value.

    Internal: callers turn it into the public error that fits where the template stands.
    """

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class Template:
    """A text with placeholders, parsed when it is made.

    Args:
        text: the template.
        lookup: makes, from a dotted field name, the function that reads it from the value
            given to `render`; by default attribute access, for models.

    Raises:
        PlaceholderError: a brace without its partner, or a name that can't be a field's.
    """

    __slots__ = ("_head", "_holes", "fields", "text")

    def __init__(
        self, text: str, lookup: Callable[[str], Callable[[Any], Any]] = attrgetter
    ) -> None:
        literals, fields = literals_and_fields(text)
        self.text = text
        self.fields = fields
        self._head = literals[0]
        self._holes = tuple(
            (field, lookup(field), literal)
            for field, literal in zip(fields, literals[1:], strict=True)
        )

    def render(self, source: Any, delimiter: str | None = None) -> str:
        """Fill the placeholders from `source`.

        With `delimiter` the text is a topic: a value that is empty or holds the delimiter would
        change the topic's shape and is refused.

        Raises:
            PlaceholderError: a value is missing, None, of a type without one obvious text, or
                unfit for a topic.
        """
        text = self._head
        for field, get, literal in self._holes:
            try:
                value = get(source)
            except (AttributeError, LookupError, TypeError):
                raise PlaceholderError(f"{field!r} has no value", field) from None
            part = value if type(value) is str else _text(value, field)
            if delimiter is not None and (not part or delimiter in part):
                why = f"contains the delimiter {delimiter!r}" if part else "is empty"
                raise PlaceholderError(
                    f"{field!r} {why}, so it can't stand in a topic: {part!r}", field
                )
            text += part + literal
        return text


def key_text(value: object) -> str | None:
    """The text of a value used as a key: the one rule for every backend.

    str as it is; int, UUID, Decimal, date, datetime and time by `str()`; an Enum by its value.
    None for everything else, bool and float included: their texts are not what people expect.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, _KEY_TYPES) and not isinstance(value, bool):
        return str(value)
    return None


def _text(value: object, field: str) -> str:
    text = key_text(value)
    if text is not None:
        return text
    if value is None:
        raise PlaceholderError(f"{field!r} is None, and a placeholder needs a value", field)
    if isinstance(value, _NO_TEXT):
        raise PlaceholderError(
            f"{field!r} is a {type(value).__name__}, which has no one obvious text; "
            "name a str, int, UUID, Decimal, date or Enum",
            field,
        )
    return str(value)  # addresses, URLs and users' own value types know their text


def literals_and_fields(text: str) -> tuple[list[str], tuple[str, ...]]:
    """Take a template apart: the texts around its placeholders, one more than there are of them.

    Raises:
        PlaceholderError: a brace without its partner, or a name that can't be a field's.
    """
    literals, fields, end = [""], [], 0
    for match in _TOKEN.finditer(text):
        literals[-1] += text[end : match.start()]
        end = match.end()
        token, name = match.group(), match.group(1)
        if token in {"{{", "}}"}:
            literals[-1] += token[0]
        elif name is None:
            raise PlaceholderError(
                f"{text!r} has a lone {token!r} at position {match.start()}; "
                f"write {token * 2!r} for a literal brace"
            )
        elif not _FIELD.fullmatch(name):
            raise PlaceholderError(
                f"{text!r} has the placeholder {{{name}}}, which is no field name: only names "
                "joined by dots can stand in braces",
                name,
            )
        else:
            fields.append(name)
            literals.append("")
    literals[-1] += text[end:]
    return literals, tuple(fields)


def check_fields(template: Template, model: type[BaseModel]) -> None:
    """Prove that every placeholder names a field of `model`, or of models nested in it.

    Raises:
        PlaceholderError: with the name that is not a field's.
    """
    for field in template.fields:
        annotations: list[Any] = [model]
        for name in field.split("."):
            annotations = [
                _annotation_of(owner, name, field)
                for annotation in annotations
                for owner in _alternatives(annotation)
            ]


def _annotation_of(owner: Any, name: str, field: str) -> Any:
    if not (isinstance(owner, type) and issubclass(owner, BaseModel)):
        raise PlaceholderError(
            f"{{{field}}}: {name!r} can't be looked up in {_name(owner)}, which is no model", field
        )
    if name not in owner.model_fields:
        known = ", ".join(sorted(owner.model_fields))
        raise PlaceholderError(
            f"{{{field}}}: {owner.__name__} has no field {name!r}; it has: {known}", field
        )
    return owner.model_fields[name].annotation


def _alternatives(annotation: Any) -> list[Any]:
    """What a value annotated so can be, besides None."""
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _alternatives(annotation.__value__)
    if isinstance(annotation, TypeVar) and annotation.__bound__ is not None:
        return _alternatives(annotation.__bound__)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return [
            alternative
            for argument in get_args(annotation)
            if argument is not NoneType
            for alternative in _alternatives(argument)
        ]
    return [annotation]


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
