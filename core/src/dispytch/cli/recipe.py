"""Recipe: how a line of JSON becomes an event ready to be sent."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from dispytch.config import ClassConfig, revalidated
from dispytch.envelope import json_frame, pack_json
from dispytch.errors import ConfigError, DecodeError, TopicError
from dispytch.event import new_id
from dispytch.producer import Outgoing, Producer
from dispytch.template import PlaceholderError, Template

__all__ = ["Recipe"]


class AnyConfig(BaseModel):
    """The config for a backend that takes any."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Recipe:
    """Makes events of lines; all that can be wrong before the first line is found at once.

    Args:
        producer: what will send them.
        topic: where to; this and the following may name fields of the line: `"gh.{event}"`.
        event_type: their type.
        key: what stays in order, or None.
        config: the backend's event config as JSON, or None; its strings may name fields.

    Raises:
        ConfigError: naming the option at fault.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        topic: str,
        event_type: str,
        key: str | None,
        config: str | None,
    ) -> None:
        self._producer = producer
        self._topic = _template("--topic", topic)
        self._type = _template("--type", event_type)
        self._key = None if key is None else _template("--key", key)
        self._config = None if config is None else _config(config, producer)

    def outgoing(self, text: bytes, timestamp: int, deadline: float) -> Outgoing:
        """The event of one line; its body is exactly the line's JSON object.

        Args:
            text: the line.
            timestamp: milliseconds since 1970 UTC.
            deadline: on the loop's clock.

        Raises:
            DecodeError: the line is no JSON object.
            TopicError: a field it must have for topic, type or key is missing or unfit.
            ConfigError: the same for the config.
        """
        body = _object(text)
        out = self._ordered(body)
        out.topic = _rendered("--topic", self._topic, body, self._producer.topic_delimiter)
        out.type = _rendered("--type", self._type, body)
        out.payload = pack_json(out.event_id, json_frame(out.type), text, timestamp)
        out.deadline = deadline
        return out

    def ordering_key(self, text: bytes) -> Hashable | None:
        """What a line stays in order with, as far as it can be told; else None."""
        try:
            return self._producer.ordering_key(self._ordered(_object(text)))
        except (ConfigError, DecodeError, TopicError):
            return None

    def _ordered(self, body: dict[str, Any]) -> Outgoing:
        """What decides the order; the rest is still missing."""
        out = Outgoing(new_id(), "", "", b"")
        out.key = None if self._key is None else _rendered("--key", self._key, body)
        try:
            out.config = None if self._config is None else self._config.render(body)
        except PlaceholderError as error:
            raise ConfigError(f"--config: {error}") from error
        return out


def _object(text: bytes) -> dict[str, Any]:
    try:
        body = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise DecodeError(f"not JSON: {error}", payload=text) from error
    if not isinstance(body, dict):
        raise DecodeError("not a JSON object", payload=text)
    return body


def _rendered(
    option: str, template: Template, body: dict[str, Any], delimiter: str | None = None
) -> str:
    try:
        text = template.render(body, delimiter)
    except PlaceholderError as error:
        raise TopicError(f"{option}: {error}", field=error.field) from error
    if not text:
        raise TopicError(f"{option} {template.text!r} is empty for this line")
    return text


def _field(name: str) -> Callable[[Any], Any]:
    """Reads a dotted name from nested JSON objects."""
    steps = name.split(".")

    def read(body: Any) -> Any:
        for step in steps:
            body = body[step]
        return body

    return read


def _template(option: str, text: str) -> Template:
    if not text:
        raise ConfigError(f"{option} is empty")
    try:
        text.encode()
        return Template(text, _field)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{option} is not valid Unicode") from error
    except PlaceholderError as error:
        raise ConfigError(f"{option}: {error}") from error


def _config(text: str, producer: Producer) -> ClassConfig:
    try:
        values = from_json(text)
    except ValueError as error:
        raise ConfigError(f"--config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("--config must be a JSON object")
    schema = producer.event_config or AnyConfig
    _check_names(values, schema, producer.backend)
    try:
        return ClassConfig(revalidated(schema, values), None, _field)
    except (ConfigError, PlaceholderError) as error:
        raise ConfigError(f"--config: {error}") from error


def _check_names(values: Mapping[str, Any], schema: type[BaseModel], backend: str) -> None:
    """Refuse what another backend's config would have: a lenient schema would drop it."""
    unknown = sorted(set(values) - set(schema.model_fields))
    if unknown and schema.model_config.get("extra") != "allow":
        raise ConfigError(
            f"--config: {schema.__name__} has no field {', '.join(map(repr, unknown))}; it has: "
            f"{', '.join(schema.model_fields)} (see: dispytch schema {backend})"
        )
