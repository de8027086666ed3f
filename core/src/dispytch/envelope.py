"""What travels: id, type, body, timestamp <-> bytes."""

from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from dispytch.config import explain
from dispytch.errors import DecodeError, EncodeError

__all__ = [
    "Deserializer",
    "Envelope",
    "JSONDeserializer",
    "JSONSerializer",
    "Serializer",
    "json_frame",
    "pack_json",
]


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event on its way.

    Attributes:
        id: the event's id.
        type: its `__event_type__`.
        body: its fields by alias, without `id`, as what JSON can hold.
        timestamp: when it was emitted, in milliseconds since 1970 UTC.
    """

    id: str
    type: str
    body: dict[str, Any]
    timestamp: int


class Serializer(Protocol):
    """Turns an envelope into the bytes that travel, in a format other than the default JSON."""

    def serialize(self, envelope: Envelope, /) -> bytes:
        """The bytes of this envelope. What it raises reaches the caller of `emit` as it is."""
        ...


class Deserializer(Protocol):
    """The way back."""

    def deserialize(self, payload: bytes, /) -> Envelope:
        """The envelope in these bytes.

        Raises:
            DecodeError: they are none.
        """
        ...


class JSONSerializer:
    """The default format: a JSON object with exactly id, type, body and timestamp."""

    def serialize(self, envelope: Envelope, /) -> bytes:
        """The envelope as compact JSON.

        Raises:
            EncodeError: the body holds what JSON can't.
        """
        try:
            body = to_json(envelope.body, inf_nan_mode="constants")
        except (PydanticSerializationError, UnicodeError) as error:
            raise EncodeError(f"the body can't be written as JSON: {error}") from error
        return pack_json(envelope.id, json_frame(envelope.type), body, envelope.timestamp)


class _Wire(BaseModel):
    model_config = ConfigDict(defer_build=True, hide_input_in_errors=True)

    id: StrictStr
    type: StrictStr
    body: dict[str, Any]
    timestamp: int


class JSONDeserializer:
    """Reads the default format; keys it does not know are ignored."""

    def deserialize(self, payload: bytes, /) -> Envelope:
        """The envelope in these bytes.

        Raises:
            DecodeError: not JSON, not an object, or a key is missing or of a wrong type.
        """
        try:
            wire = _Wire.model_validate_json(payload)
        except ValidationError as error:
            raise DecodeError(explain(error, "not an event envelope"), payload=payload) from error
        return Envelope(wire.id, wire.type, wire.body, wire.timestamp)


def json_frame(event_type: str) -> bytes:
    """The constant bytes between the id and the body of every event of one type."""
    return b',"type":' + encode_basestring_ascii(event_type).encode() + b',"body":'


def pack_json(event_id: str, frame: bytes, body: bytes, timestamp: int) -> bytes:
    """An envelope around a body that is JSON already."""
    head = encode_basestring_ascii(event_id).encode()
    return b'{"id":%b%b%b,"timestamp":%d}' % (head, frame, body, timestamp)
