"""Segments: values in a topic, asked for by name and validated."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from dispytch.config import explain
from dispytch.errors import DecodeError

__all__ = ["SegmentError", "TopicSegment", "segment_validator"]

_SAMPLES = ("1", "a", "true", "2000-01-01", "00000000-0000-4000-8000-000000000000")


class SegmentError(DecodeError):
    """A segment of the topic is not what the handler declares; internal."""


class TopicSegment:
    """Asks for a segment of the topic: `user_id: Annotated[int, TopicSegment(gt=0)]`.

    An event whose segment is not valid is dead-lettered at once.

    Args:
        name: the placeholder's name; None: that of the parameter, in which `_` may stand for a `.`.
        constraints: those of pydantic's `Field`: gt, ge, lt, le, min_length, pattern, ...
    """

    __slots__ = ("constraints", "name")

    def __init__(self, name: str | None = None, **constraints: Any) -> None:
        self.name = name
        self.constraints = constraints


def segment_validator(name: str, annotation: Any, metadata: Sequence[Any]) -> Callable[[str], Any]:
    """What validates a segment, and raises `SegmentError` for a value that is wrong.

    Args:
        name: the segment's name.
        annotation: its type.
        metadata: constraints, as they stood in `Annotated`; a `TopicSegment` for its own.

    Raises:
        TypeError: there is no such constraint, or not for this type.
    """
    for each in metadata:
        constraint = _field(each) if isinstance(each, TopicSegment) else each
        if constraint is not None:
            annotation = Annotated[annotation, constraint]
    try:
        validate = TypeAdapter[Any](annotation).validate_strings
    except (PydanticUserError, SchemaError, RuntimeError) as error:
        raise TypeError(str(error)) from error
    for sample in _SAMPLES:  # some misfits are not seen before there is a value
        try:
            validate(sample)
        except TypeError as error:
            if str(error).startswith("Unable to apply constraint"):
                raise
        except Exception:  # noqa: BLE001, S112 - the sample's fault, whatever a validator raises
            continue

    def read(text: str) -> Any:
        try:
            return validate(text)
        except ValidationError as error:
            raise SegmentError(explain(error, f"segment {name!r} of the topic")) from error

    return read


def _field(marker: TopicSegment) -> Any:
    if unknown := sorted(marker.constraints.keys() - inspect.signature(Field).parameters.keys()):
        raise TypeError(f"there is no constraint {', '.join(unknown)}")
    return Field(**marker.constraints) if marker.constraints else None
