"""Every error Dispytch raises, as one tree.

::

    DispytchError
    |- EventDefinitionError(.event .field)       the event class is wrong: fix the class
    |   `- TemplateError (also TopicError)       ... in the template of a topic or a key
    |- TopicError(.event .field)                 this event's values make no topic or key
    |- ConfigError (also ValueError)             a transport setting or a URL is wrong
    |   `- ConfigMismatchError (also TypeError)  a setting of another backend was given
    |- PluginError
    |   |- BackendNotFoundError(.name .installed)
    |   |- BackendLoadError(.name .distribution)
    |   |- DuplicateBackendError(.name)
    |   `- IncompatiblePluginError(.name)
    |- SerializationError
    |   |- EncodeError                           this event can't be written
    |   `- DecodeError(.payload)                 these bytes are no event
    |- EmitError(.event .backend .topic .retriable)
    |   |- EmitRejected                          certainly not stored
    |   `- EmitUnknown                           may have arrived
    |       `- ProducerTimeout                   ... the deadline passed first
    |- EmitManyError(.results)
    `- ListenError
        |- ConnectError                          the broker could not be reached or refused us
        |- SettleError
        `- HandlerDefinitionError
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackendLoadError",
    "BackendNotFoundError",
    "ConfigError",
    "ConfigMismatchError",
    "ConnectError",
    "DecodeError",
    "DispytchError",
    "DuplicateBackendError",
    "EmitError",
    "EmitManyError",
    "EmitRejected",
    "EmitUnknown",
    "EncodeError",
    "EventDefinitionError",
    "HandlerDefinitionError",
    "IncompatiblePluginError",
    "ListenError",
    "PluginError",
    "ProducerTimeout",
    "SerializationError",
    "SettleError",
    "TemplateError",
    "TopicError",
]


class DispytchError(Exception):
    """The base of every error Dispytch raises itself."""


class EventDefinitionError(DispytchError):
    """An event class can't work as it is written; nothing was sent.

    Attributes:
        event: the event class.
        field: the dotted name of the field at fault, or None.
    """

    def __init__(self, message: str, *, event: Any = None, field: str | None = None) -> None:
        super().__init__(message)
        self.event = event
        self.field = field


class TopicError(DispytchError):
    """The values of this event make no valid topic or key; nothing was sent.

    Attributes:
        event: the event (its class, where the template itself is wrong).
        field: the dotted name of the field at fault, or None.
    """

    def __init__(self, message: str, *, event: Any = None, field: str | None = None) -> None:
        super().__init__(message)
        self.event = event
        self.field = field


class TemplateError(EventDefinitionError, TopicError):
    """The template of `__topic__` or `__key__` is malformed or names no field of its event."""


class ConfigError(DispytchError, ValueError):
    """A transport setting, a URL or one of its options is wrong; nothing was sent."""


class ConfigMismatchError(ConfigError, TypeError):
    """An event was given the config of another backend; nothing was sent."""


class PluginError(DispytchError):
    """The base of what can be wrong with a backend plugin.

    Attributes:
        name: the backend or URL scheme that was asked for.
    """

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class BackendNotFoundError(PluginError):
    """No installed distribution offers this backend or URL scheme.

    Attributes:
        name: what was asked for.
        installed: the names that are there.
    """

    def __init__(self, message: str, *, name: str = "", installed: Sequence[str] = ()) -> None:
        super().__init__(message, name=name)
        self.installed = tuple(installed)


class BackendLoadError(PluginError):
    """A backend is installed but its plugin can't be loaded; the cause is chained.

    Attributes:
        name: the entry point's name.
        distribution: the distribution that offers it, or None if unknown.
    """

    def __init__(self, message: str, *, name: str = "", distribution: str | None = None) -> None:
        super().__init__(message, name=name)
        self.distribution = distribution


class DuplicateBackendError(PluginError):
    """Two distributions offer one backend name or URL scheme; both are named."""


class IncompatiblePluginError(PluginError):
    """A plugin was written for another version of the plugin API than this core's."""


class SerializationError(DispytchError):
    """The base of what can be wrong with an event's bytes."""


class EncodeError(SerializationError):
    """An event can't be written so that it comes back as it was; nothing was sent."""


class DecodeError(SerializationError):
    """Bytes that are no event.

    Attributes:
        payload: the bytes as they came.
    """

    def __init__(self, message: str, *, payload: bytes = b"") -> None:
        super().__init__(message)
        self.payload = payload


class EmitError(DispytchError):
    """An emit that got no confirmation. Producers raise it bare, the emitter completes it.

    Attributes:
        event: the event that was to be emitted.
        backend: the backend's name.
        topic: the topic it was to go to.
        retriable: whether the same emit may succeed later, as far as the broker tells.
    """

    def __init__(
        self,
        message: str,
        *,
        event: Any = None,
        backend: str = "",
        topic: str = "",
        retriable: bool = False,
    ) -> None:
        super().__init__(message)
        self.event = event
        self.backend = backend
        self.topic = topic
        self.retriable = retriable


class EmitRejected(EmitError):  # noqa: N818 - a public name: it says the outcome
    """The event is certainly not stored."""


class EmitUnknown(EmitError):  # noqa: N818 - a public name: it says the outcome
    """The event may have arrived or may still arrive; its id lets handlers drop a second copy."""


class ProducerTimeout(EmitUnknown):
    """The deadline passed before the broker answered: the event may still arrive."""


class EmitManyError(DispytchError):
    """At least one event of a batch was not accepted.

    Attributes:
        results: one per event, in the order given: its Receipt, or the exception it met.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        self.results = list(results)
        failed = [result for result in self.results if isinstance(result, BaseException)]
        kinds = Counter(type(error).__name__ for error in failed)
        listed = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
        first = f"; the first: {failed[0]}" if failed else ""
        super().__init__(
            f"{len(failed)} of {len(self.results)} events not accepted: {listed}{first}"
        )

    def __reduce__(self) -> tuple[type["EmitManyError"], tuple[list[Any]]]:
        return type(self), (self.results,)


class ListenError(DispytchError):
    """The base of what goes wrong between the broker and the handlers."""


class ConnectError(ListenError):
    """The broker could not be reached, or refused this client.

    Attributes:
        backend: the backend's name.
        retriable: whether the same attempt may succeed later.
    """

    def __init__(self, message: str, *, backend: str = "", retriable: bool = True) -> None:
        super().__init__(message)
        self.backend = backend
        self.retriable = retriable


class SettleError(ListenError):
    """A delivery could not be acknowledged or returned; the broker will deliver it again."""


class HandlerDefinitionError(ListenError):
    """A handler can't work as it is declared; raised when it is registered."""
