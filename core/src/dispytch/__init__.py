"""Dispytch: typed events for async Python services, over any broker.

`EventBase` declares an event, `EventEmitter` sends it, a backend's `*EventConfig` says how that
backend carries it, and `plugins` finds the backends that are installed.

A module that only defines events imports only what those need: the rest comes when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dispytch.config import BackendConfig
from dispytch.errors import (
    BackendLoadError,
    BackendNotFoundError,
    ConfigError,
    ConfigMismatchError,
    ConnectError,
    DecodeError,
    DispytchError,
    DuplicateBackendError,
    EmitError,
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    EncodeError,
    EventDefinitionError,
    HandlerDefinitionError,
    IncompatiblePluginError,
    ListenError,
    PluginError,
    ProducerTimeout,
    SerializationError,
    SettleError,
    TemplateError,
    TopicError,
)
from dispytch.event import EventBase

__all__ = [
    "Ack",
    "Backend",
    "BackendConfig",
    "BackendLoadError",
    "BackendNotFoundError",
    "Capabilities",
    "ConfigError",
    "ConfigMismatchError",
    "ConnectError",
    "Connection",
    "Consumer",
    "DeadLetter",
    "DecodeError",
    "Delivery",
    "Depends",
    "Deserializer",
    "DispytchError",
    "Drop",
    "DuplicateBackendError",
    "EmitContext",
    "EmitError",
    "EmitManyError",
    "EmitRejected",
    "EmitUnknown",
    "EncodeError",
    "Envelope",
    "Event",
    "EventBase",
    "EventDefinitionError",
    "EventEmitter",
    "EventListener",
    "HandleContext",
    "HandlerDefinitionError",
    "Health",
    "IncompatiblePluginError",
    "ListenError",
    "Outcome",
    "Outgoing",
    "PluginError",
    "Producer",
    "ProducerTimeout",
    "Receipt",
    "Retry",
    "RetryLater",
    "Router",
    "SerializationError",
    "Serializer",
    "SettleError",
    "Subscription",
    "TemplateError",
    "TopicError",
    "TopicSegment",
    "hookimpl",
    "plugins",
]

if TYPE_CHECKING:
    from dispytch import plugins
    from dispytch.backend import Backend, Capabilities
    from dispytch.consumer import Consumer, Delivery, Subscription
    from dispytch.emitter import EmitContext, EventEmitter
    from dispytch.envelope import Deserializer, Envelope, Serializer
    from dispytch.hooks import hookimpl
    from dispytch.listener import (
        Depends,
        Event,
        EventListener,
        HandleContext,
        Health,
        Retry,
        Router,
        TopicSegment,
    )
    from dispytch.listener.outcome import Ack, DeadLetter, Drop, Outcome, RetryLater
    from dispytch.producer import Outgoing, Producer, Receipt
    from dispytch.url import Connection
else:  # out of sight of type checkers, which would take any misspelt name for one of these
    _HOMES = {
        "Ack": "dispytch.listener.outcome",
        "Backend": "dispytch.backend",
        "Capabilities": "dispytch.backend",
        "Connection": "dispytch.url",
        "Consumer": "dispytch.consumer",
        "DeadLetter": "dispytch.listener.outcome",
        "Delivery": "dispytch.consumer",
        "Depends": "dispytch.listener",
        "Deserializer": "dispytch.envelope",
        "Drop": "dispytch.listener.outcome",
        "EmitContext": "dispytch.emitter",
        "Envelope": "dispytch.envelope",
        "Event": "dispytch.listener",
        "EventEmitter": "dispytch.emitter",
        "EventListener": "dispytch.listener",
        "HandleContext": "dispytch.listener",
        "Health": "dispytch.listener",
        "Outcome": "dispytch.listener.outcome",
        "Outgoing": "dispytch.producer",
        "Producer": "dispytch.producer",
        "Receipt": "dispytch.producer",
        "Retry": "dispytch.listener",
        "RetryLater": "dispytch.listener.outcome",
        "Router": "dispytch.listener",
        "Serializer": "dispytch.envelope",
        "Subscription": "dispytch.consumer",
        "TopicSegment": "dispytch.listener",
        "hookimpl": "dispytch.hooks",
    }

    def __getattr__(name: str) -> Any:
        """Import a public name from its home when it is first used."""
        if name == "plugins":
            return import_module("dispytch.plugins")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
