"""Backend, Capabilities: what a plugin registers."""

import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel

from dispytch.consumer import Consumer
from dispytch.errors import BackendLoadError, ConfigError
from dispytch.producer import Producer

__all__ = ["PLUGIN_API", "Backend", "Capabilities"]

PLUGIN_API = 1
"""The version of the contract between core and plugins."""

_NAME = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend promises; everything undeclared is not promised.

    Attributes:
        durable: a confirmed event survives a restart of the broker.
        confirms: a Receipt means that the broker has the event.
        ordering: what stays in order across competing consumers.
        groups: several groups each get every event, the members of one share them.
        manual_ack: an event not acknowledged comes again.
        delayed_redelivery: `nack(delay)` is done by the broker.
        ttl: an event can expire.
        priority: an event can overtake others.
        headers: headers travel with an event.
        keys: the key travels with an event.
        patterns: topics can be subscribed to by pattern.
        replay: a group can start from earlier events.
    """

    durable: bool = False
    confirms: bool = False
    ordering: Literal["none", "consumer", "key", "total"] = "none"
    groups: bool = False
    manual_ack: bool = False
    delayed_redelivery: bool = False
    ttl: bool = False
    priority: bool = False
    headers: bool = False
    keys: bool = False
    patterns: bool = False
    replay: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend, as its plugin's `dispytch_backend` hook describes it. Imports no client.

    Attributes:
        name: lower case; the entry point's name, and a URL scheme of the backend.
        event_config: the schema of its event configs; None takes any.
        producer: the class, or `"module:Class"`, imported when first needed.
        consumer: the same for receiving; None where the backend only sends.
        connection: the model a URL becomes, see `dispytch.url.Connection`; None: no URLs.
        capabilities: what it promises.
        topic_delimiter: separates the segments of a topic.
        api: the plugin API it was written for.
        origin, distribution: where it comes from, for messages; filled in when it is discovered.
        schemes: URL schemes besides the name; needed where it is registered without entry points.

    Raises:
        ConfigError: a value of the wrong kind, naming it.
    """

    name: str
    event_config: type[BaseModel] | None
    producer: type[Producer] | str
    consumer: type[Consumer] | str | None = None
    connection: type[BaseModel] | None = None
    capabilities: Capabilities = Capabilities()
    topic_delimiter: str = "."
    api: int = 1
    schemes: tuple[str, ...] = ()
    origin: str = field(default="", compare=False, repr=False)
    distribution: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"Backend name {self.name!r}: lower-case letters, digits, + . - only")
        for attribute in ("event_config", "connection"):
            value: Any = getattr(self, attribute)
            if value is not None and not (isinstance(value, type) and issubclass(value, BaseModel)):
                raise ConfigError(
                    f"Backend {self.name!r}: {attribute} must be a pydantic model class"
                )
        for attribute in ("producer", "consumer"):
            value = getattr(self, attribute)
            if isinstance(value, str) and not re.fullmatch(r"[\w.]+:\w+", value):
                raise ConfigError(
                    f"Backend {self.name!r}: {attribute} must be a class or 'module:Class', "
                    f"not {value!r}"
                )

    def load_producer(self) -> type[Producer]:
        """The producer's class; imports the broker's client.

        Raises:
            BackendLoadError: it can't be imported, or is no Producer; the cause is chained.
        """
        loaded = self._load(self.producer)
        if not (isinstance(loaded, type) and issubclass(loaded, Producer)):
            raise self._broken(f"{self.producer!r} is no Producer")
        return loaded

    def make_producer(self, connection: BaseModel) -> Producer:
        """A producer for this connection, which says of itself what this backend says.

        Raises:
            BackendLoadError: as for `load_producer`.
        """
        kind = self.load_producer()
        producer = kind.from_connection(connection)
        producer.backend = self.name
        if producer.event_config is None:
            producer.event_config = self.event_config
        if self.topic_delimiter != ".":
            producer.topic_delimiter = self.topic_delimiter
        if self.capabilities.headers and kind.send_message is not Producer.send_message:
            producer.carries_headers = True
        return producer

    def load_consumer(self) -> type[Consumer]:
        """The consumer's class; imports the broker's client.

        Raises:
            ConfigError: this backend only sends.
            BackendLoadError: it can't be imported, or is no Consumer; the cause is chained.
        """
        if self.consumer is None:
            raise ConfigError(f"backend {self.name!r} has no consumer: it only emits")
        loaded = self._load(self.consumer)
        if not (isinstance(loaded, type) and issubclass(loaded, Consumer)):
            raise self._broken(f"{self.consumer!r} is no Consumer")
        return loaded

    def make_consumer(self, connection: BaseModel) -> Consumer:
        """A consumer for this connection, which says of itself what this backend says.

        Raises:
            ConfigError, BackendLoadError: as for `load_consumer`.
        """
        consumer = self.load_consumer().from_connection(connection)
        consumer.backend = self.name
        if self.topic_delimiter != ".":
            consumer.topic_delimiter = self.topic_delimiter
        if self.capabilities.delayed_redelivery:
            consumer.delays = True
        return consumer

    def _load(self, reference: Any) -> Any:
        if not isinstance(reference, str):
            return reference
        module, _, attribute = reference.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise self._broken(
                f"{reference!r} can't be imported: {type(error).__name__}: {error}"
            ) from error

    def _broken(self, problem: str) -> BackendLoadError:
        origin = f" ({self.origin})" if self.origin else ""
        return BackendLoadError(
            f"backend {self.name!r}{origin}: {problem}",
            name=self.name,
            distribution=self.distribution,
        )
