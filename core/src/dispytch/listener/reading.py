"""Reading: bytes -> a validated body, straight from JSON where the format allows it."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictStr, TypeAdapter
from pydantic import ValidationError as Invalid
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from dispytch.config import explain
from dispytch.envelope import Deserializer, JSONDeserializer
from dispytch.errors import DecodeError
from dispytch.event import EventBase

__all__ = ["BodyReader", "Read", "TopicReader", "head_of"]

Id = Annotated[StrictStr, Field(min_length=1)]


class Read(TypedDict):
    """An envelope, its body validated."""

    id: str
    type: str
    body: Any
    timestamp: int


class BodyReader:
    """Reads the events of one type into one class of bodies.

    Args:
        kind: the event's type.
        body: the class; None: nobody asks for the body, which then is a plain dict.
        deserializer: the format; None: JSON.
    """

    def __init__(
        self, kind: str, body: type[BaseModel] | None, deserializer: Deserializer | None
    ) -> None:
        self.kind, self._body = kind, body
        self.wire: Any = _wire(kind, dict[str, Any] if body is None else body)
        self._deserializer = deserializer
        self._sets_id = body is not None and issubclass(body, EventBase)
        self.validate_wire = TypeAdapter[Any](self.wire).validator.validate_json
        bodies: Any = dict[str, Any] if body is None else body
        self._validate_body = TypeAdapter[Any](bodies).validator

    def read(self, payload: bytes) -> Read:
        """The event in these bytes.

        Raises:
            DecodeError: they are none, or its body is not valid; values are not repeated.
        """
        if self._deserializer is not None:
            return self._read_slowly(self._deserializer, payload)
        try:
            read: Read = self.validate_wire(payload)
        except Invalid:
            return self._read_slowly(JSONDeserializer(), payload)
        return self.finished(read)

    def finished(self, read: Read) -> Read:
        """Give the body the envelope's id."""
        if self._sets_id:
            # Also where it is frozen; past validate_assignment.
            read["body"].__dict__["id"] = read["id"]
        return read

    def _read_slowly(self, deserializer: Deserializer, payload: bytes) -> Read:
        """Tell what is wrong; a body's own `id` is ignored like any field it does not know.

        The body is validated as JSON in every format: that is what strict fields come back from.
        """
        envelope = deserializer.deserialize(payload)
        fields = envelope.body
        if self._sets_id:
            fields = {name: value for name, value in fields.items() if name != "id"}
        body = to_json(fields, inf_nan_mode="constants")
        found = self._of(lambda: self._validate_body.validate_json(body), payload)
        return self.finished(
            {"id": envelope.id, "type": self.kind, "body": found, "timestamp": envelope.timestamp}
        )

    def _of(self, validate: Callable[[], Any], payload: bytes) -> Any:
        try:
            return validate()
        except Invalid as error:
            name = self._body.__name__ if self._body is not None else self.kind
            raise DecodeError(
                explain(error, f"the body is no valid {name}"), payload=payload
            ) from error


class TopicReader:
    """Reads what comes on a topic: its type and its body in one pass.

    Args:
        readers: a reader per type.
        deserializer: the format; None: JSON.
    """

    def __init__(self, readers: dict[str, BodyReader], deserializer: Deserializer | None) -> None:
        self._readers, self._deserializer = readers, deserializer
        first, *others = readers.values()
        union: Any = first.wire
        for reader in others:
            union |= reader.wire
        self._validate = first.validate_wire
        if others:
            whole: Any = Annotated[union, Discriminator("type")]
            self._validate = TypeAdapter[Any](whole).validator.validate_json

    def read(self, payload: bytes) -> Read | str:
        """The event in these bytes, or the type of one that nobody reads.

        Raises:
            DecodeError: they are no event, or its body is not valid.
        """
        if self._deserializer is None:
            try:
                read: Read = self._validate(payload)
            except Invalid:
                kind = JSONDeserializer().deserialize(payload).type
            else:
                return self._readers[read["type"]].finished(read)
        else:
            kind = self._deserializer.deserialize(payload).type
        reader = self._readers.get(kind)
        return kind if reader is None else reader.read(payload)

    def kind_of(self, payload: bytes) -> str | None:
        """The type in these bytes; None where they are no event."""
        try:
            return (self._deserializer or JSONDeserializer()).deserialize(payload).type
        except Exception:  # noqa: BLE001 - a deserializer of the user's may raise anything
            return None


def _wire(kind: str, body: Any) -> Any:
    fields = {"id": Id, "type": Literal[kind], "body": body, "timestamp": int}
    make: Any = TypedDict
    wire = make("Wire", fields)
    wire.__pydantic_config__ = ConfigDict(hide_input_in_errors=True)
    return wire


def head_of(payload: bytes) -> tuple[str, str]:
    """Id and type, as far as broken bytes still tell them; for the dead letter's headers."""
    try:
        data = from_json(payload, allow_partial=True)
    except ValueError:
        return "", ""
    if not isinstance(data, dict):
        return "", ""
    event_id, kind = data.get("id"), data.get("type")
    return (event_id if isinstance(event_id, str) else "", kind if isinstance(kind, str) else "")
