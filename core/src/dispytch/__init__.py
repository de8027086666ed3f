"""Dispytch: typed events for async Python services, over any broker.

`EventBase` declares an event, `EventEmitter` sends it, a backend's `*EventConfig` says how that
backend carries it, and `plugins` finds the backends that are installed.
"""

from typing import TYPE_CHECKING, Any

from dispytch import plugins
from dispytch.backend import Backend, Capabilities
from dispytch.config import BackendConfig
from dispytch.consumer import Consumer, Delivery, Subscription
from dispytch.emitter import EmitContext, EventEmitter
from dispytch.envelope import Deserializer, Envelope, Serializer
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
from dispytch.producer import Outgoing, Producer, Receipt
from dispytch.url import Connection

if TYPE_CHECKING:
    from dispytch.hooks import hookimpl

__all__ = [
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
    "DecodeError",
    "Delivery",
    "Deserializer",
    "DispytchError",
    "DuplicateBackendError",
    "EmitContext",
    "EmitError",
    "EmitManyError",
    "EmitRejected",
    "EmitUnknown",
    "EncodeError",
    "Envelope",
    "EventBase",
    "EventDefinitionError",
    "EventEmitter",
    "HandlerDefinitionError",
    "IncompatiblePluginError",
    "ListenError",
    "Outgoing",
    "PluginError",
    "Producer",
    "ProducerTimeout",
    "Receipt",
    "SerializationError",
    "Serializer",
    "SettleError",
    "Subscription",
    "TemplateError",
    "TopicError",
    "hookimpl",
    "plugins",
]


def __getattr__(name: str) -> Any:
    """`hookimpl`, when a plugin asks for it: it imports pluggy, which a service need not."""
    if name == "hookimpl":
        from dispytch.hooks import hookimpl  # noqa: PLC0415

        return hookimpl
    raise AttributeError(f"module 'dispytch' has no attribute {name!r}")
