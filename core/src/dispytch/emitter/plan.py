"""EmitPlan: all that can be known of an event class before one of its events is emitted."""

import time
from collections.abc import Hashable
from contextlib import suppress

from pydantic import BaseModel

from dispytch.config import Given, checked, merge, own_layer
from dispytch.envelope import Envelope, Serializer, json_frame, pack_json
from dispytch.errors import ConfigError, EventDefinitionError, TopicError
from dispytch.event import EventBase, definition_of
from dispytch.producer import Outgoing, Producer
from dispytch.template import PlaceholderError, Template

__all__ = ["EmitPlan", "Plans"]


class EmitPlan:
    """How the events of one class go out through one producer.

    Args:
        cls: the event class.
        producer: the producer; its schema picks the configs that concern it.
        defaults: the emitter's own configs, already of that schema.
        serializer: None for the default JSON, which is written without a detour.

    Raises:
        EventDefinitionError: the class lacks a topic or a type, or can't work.
        ConfigError: its configs and the emitter's contradict each other.
    """

    def __init__(
        self,
        cls: type[EventBase],
        producer: Producer,
        defaults: tuple[BaseModel, ...],
        serializer: Serializer | None,
    ) -> None:
        definition = definition_of(cls)
        if definition.topic is None or definition.event_type is None:
            missing = "__topic__" if definition.topic is None else "__event_type__"
            raise EventDefinitionError(
                f"{cls.__name__} has no {missing}; give it one to emit it", event=cls
            )
        self._name, self._type = cls.__name__, definition.event_type
        self._topic, self._key = definition.topic, definition.key
        self._frame, self._body = json_frame(definition.event_type), definition.body
        self._serializer = serializer
        self._backend, self._schema = producer.backend, producer.event_config
        self._delimiter = producer.topic_delimiter
        self._defaults = defaults
        own = [
            (schema, config)
            for schema, config in definition.configs
            if self._schema is None or issubclass(schema, self._schema)
        ]
        if len(own) > 1 and self._schema is not None:
            names = " and ".join(schema.__name__ for schema, _ in own)
            raise ConfigError(
                f"{self._name}.__backend_config__: {names} are both {self._schema.__name__}; "
                "give one of them"
            )
        self._by_class = tuple(config for _, config in own)
        # The merge of emitter and class is known now, unless it depends on the event.
        self._constant = all(config.constant for config in self._by_class)
        self._known: Given = self._merged(None, ()) if self._constant else None

    @property
    def type(self) -> str:
        """The event's type."""
        return self._type

    def topic(self, event: EventBase) -> str:
        """The topic of this event.

        Raises:
            TopicError: a field's value can't stand in a topic.
        """
        return self._rendered(self._topic, "__topic__", event, self._delimiter)

    def key(self, event: EventBase) -> str | None:
        """What this event must stay in order with, or None.

        Raises:
            TopicError: a field's value can't stand in a key.
        """
        if self._key is None:
            return None
        return self._rendered(self._key, "__key__", event, None)

    def config(self, event: EventBase, call: Given = None) -> Given:
        """The merged config of this event for this producer, or None.

        Args:
            event: the event, whose own config counts.
            call: the config given to `emit`.

        Raises:
            ConfigMismatchError: event or call give configs, but none of this producer's schema.
            ConfigError: a placeholder has no value, or the merged config is not valid.
        """
        own: Given = event.__dict__.get("__backend_config__")
        if own is None and call is None:
            return self._known if self._constant else self._merged(event, ())
        near = [
            own_layer(checked(given, where), self._schema, self._backend, where)
            for given, where in ((own, f"{self._name}(...)"), (call, f"emit({self._name})"))
            if given is not None
        ]
        return self._merged(event, tuple(near))

    def payload(self, event: EventBase) -> bytes:
        """The bytes that travel; the time of emission is now.

        Raises:
            EncodeError: the event can't be written so that it comes back as it was.
        """
        timestamp = time.time_ns() // 1_000_000
        if self._serializer is None:
            return pack_json(event.id, self._frame, self._body(event), timestamp)
        envelope = Envelope(event.id, self._type, self._body.dump(event), timestamp)
        return self._serializer.serialize(envelope)

    def _merged(self, event: EventBase | None, near: tuple[tuple[BaseModel, ...], ...]) -> Given:
        try:
            by_class = tuple(config.render(event) for config in self._by_class)
        except PlaceholderError as error:
            raise ConfigError(f"{self._name}.__backend_config__: {error}") from error
        return merge((self._defaults, by_class, *near))

    def _rendered(
        self, template: Template, attribute: str, event: EventBase, delimiter: str | None
    ) -> str:
        try:
            return template.render(event, delimiter)
        except PlaceholderError as error:
            raise TopicError(
                f"{self._name}.{attribute}: {error}", event=event, field=error.field
            ) from error


class Plans:
    """The plans of one emitter, made when an event of a class is first seen.

    Args:
        producer: what will send.
        defaults: the emitter's own configs, already of the producer's schema.
        serializer: None for the default JSON.
    """

    def __init__(
        self, producer: Producer, defaults: tuple[BaseModel, ...], serializer: Serializer | None
    ) -> None:
        self._producer, self._defaults, self._serializer = producer, defaults, serializer
        self._plans: dict[type[EventBase], EmitPlan] = {}

    def of(self, event: EventBase) -> EmitPlan:
        """The plan for this event's class; raises what `EmitPlan` raises."""
        cls = type(event)
        plan = self._plans.get(cls)
        if plan is None:
            plan = EmitPlan(cls, self._producer, self._defaults, self._serializer)
            self._plans[cls] = plan
        return plan

    def outgoing(self, event: EventBase, config: Given, deadline: float) -> Outgoing:
        """This event, encoded and ready to be sent; raises what the plan's methods raise."""
        plan = self.of(event)
        return Outgoing(
            event.id,
            plan.type,
            plan.topic(event),
            plan.payload(event),
            plan.key(event),
            plan.config(event, config),
            {},
            deadline,
        )

    def ordering_key(self, event: EventBase, config: Given = None) -> Hashable | None:
        """The key, as far as it can be told, of an event that may not be sendable at all."""
        try:
            plan = self.of(event)
            out = Outgoing(event.id, plan.type, "", b"", plan.key(event))
        except Exception:  # noqa: BLE001 - its real error is reported when it is emitted
            return None
        with suppress(Exception):  # a wrong config leaves the event's own key
            out.config = plan.config(event, config)
        return self._producer.ordering_key(out)

    def topic_of(self, event: EventBase) -> str:
        """The topic, or "" where there is none to tell: to complete another error."""
        try:
            return self.of(event).topic(event)
        except Exception:  # noqa: BLE001 - the other error is the one that counts
            return ""
