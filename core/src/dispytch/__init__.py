"""Dispytch: typed events for async Python services, over any broker.

`EventBase` declares an event, `EventEmitter` sends it, a backend's `*EventConfig` says how that
backend carries it, and `plugins` finds the backends that are installed.
"""

from dispytch import plugins
from dispytch.backend import Backend, Capabilities
from dispytch.config import BackendConfig
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
from dispytch.hooks import hookimpl
from dispytch.producer import Outgoing, Producer, Receipt
from dispytch.url import Connection

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
    "DecodeError",
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
    "TemplateError",
    "TopicError",
    "hookimpl",
    "plugins",
]
