"""Recorder: what was emitted, asserted by event class."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from dispytch.emitter import EventEmitter
from dispytch.envelope import JSONDeserializer
from dispytch.event import EventBase
from dispytch.memory import MemoryBroker, MemoryMessage, MemoryProducer
from dispytch.producer import Receipt

__all__ = ["RecordedMessage", "Recorder"]

_SHOWN = 20
_E = TypeVar("_E", bound=EventBase)


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """An event as it went over the wire.

    Attributes:
        event_id: the event's id.
        type: its `__event_type__`.
        topic: where it went, placeholders filled.
        key: what it stays in order with, or None.
        headers: set by middleware.
        config: the merged config; a tuple where the event has several; None where it has none.
        body: its fields as they travel: by alias, as what JSON can hold, without `id`.
        payload: the envelope's bytes.
    """

    event_id: str
    type: str
    topic: str
    key: str | None
    headers: Mapping[str, str | bytes]
    config: Any
    body: dict[str, Any]
    payload: bytes


class Recorder:
    """Records the events that were accepted, in order.

    On its own it brings an emitter, which sends to a memory broker nobody else has::

        async with Recorder() as recorder:
            await Service(recorder.emitter).sign_up("ada")
        recorder.assert_emitted(UserCreated, times=1, name="ada")

    Around an emitter of yours it listens from entering to leaving; the events go where they
    always go::

        with Recorder(emitter) as recorder:
            await service.sign_up("ada")

    Events are kept as the objects that were emitted: what changes one later changes the record.

    Args:
        emitter: the emitter to listen to; None makes one.

    Attributes:
        emitter: the emitter listened to.
        events: everything recorded.
    """

    def __init__(self, emitter: EventEmitter | None = None) -> None:
        self._broker = MemoryBroker() if emitter is None else None
        self.emitter = emitter or EventEmitter(MemoryProducer(self._broker))
        self.events: list[EventBase] = []

    def __enter__(self) -> Self:
        if self._broker is not None:
            raise TypeError("Recorder() starts an emitter of its own: use `async with`")
        self.emitter.after_emit(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self.emitter.remove_hook(self._record)

    async def __aenter__(self) -> Self:
        self.emitter.after_emit(self._record)
        if self._broker is not None:
            await self.emitter.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._broker is not None:
            await self.emitter.stop()
        self.emitter.remove_hook(self._record)

    def _record(self, event: EventBase, _: Receipt) -> None:
        self.events.append(event)

    @property
    def messages(self) -> list[RecordedMessage]:
        """What went over the wire, in order.

        Raises:
            TypeError: the emitter is yours, and so is its wire.
        """
        if self._broker is None:
            raise TypeError("only a Recorder() with an emitter of its own sees the wire")
        return [_message(message) for message in self._broker.messages]

    def emitted(self, event_class: type[_E], /) -> list[_E]:
        """The recorded events of this class and its subclasses, in order."""
        return [event for event in self.events if isinstance(event, event_class)]

    def clear(self) -> None:
        """Forget everything recorded so far."""
        self.events.clear()
        if self._broker is not None:
            self._broker.clear()

    def assert_emitted(
        self, event_class: type[_E], /, *, times: int | None = None, **fields: Any
    ) -> list[_E]:
        """Assert that such events were emitted, and return them.

        Args:
            event_class: subclasses count.
            times: how many; None: at least one.
            fields: values the event's fields must equal.

        Raises:
            AssertionError: telling what was emitted instead.
            TypeError: the class has no such field.
        """
        __tracebackhide__ = True
        found = self._matching(event_class, fields)
        if len(found) == times or (found and times is None):
            return found
        raise AssertionError(
            f"expected {'at least 1' if times is None else times} "
            f"{_wanted(event_class, fields)}, found {len(found)}"
            f"{self._story(event_class, fields)}"
        )

    def assert_not_emitted(self, event_class: type[EventBase], /, **fields: Any) -> None:
        """Assert that no such event was emitted; the arguments are those of `assert_emitted`.

        Raises:
            AssertionError: telling what was emitted.
            TypeError: the class has no such field.
        """
        __tracebackhide__ = True
        self.assert_emitted(event_class, times=0, **fields)

    def assert_nothing_emitted(self) -> None:
        """Assert that no event at all was emitted.

        Raises:
            AssertionError: telling what was emitted.
        """
        __tracebackhide__ = True
        if self.events:
            raise AssertionError(f"expected no event{self._story(EventBase, {})}")

    def _matching(self, event_class: type[_E], fields: Mapping[str, Any]) -> list[_E]:
        unknown = sorted(fields.keys() - event_class.model_fields.keys())
        if unknown:
            raise TypeError(
                f"{event_class.__name__} has no field {', '.join(map(repr, unknown))}; "
                f"it has: {', '.join(event_class.model_fields)}"
            )
        return [event for event in self.emitted(event_class) if not _differences(event, fields)]

    def _story(self, event_class: type[EventBase], fields: Mapping[str, Any]) -> str:
        if not self.events:
            return "; nothing was emitted"
        lines = []
        for number, event in enumerate(self.events[:_SHOWN], start=1):
            lines.append(f"  {number}. {event!r}")
            if isinstance(event, event_class):
                lines += (f"     {difference}" for difference in _differences(event, fields))
        if len(self.events) > _SHOWN:
            lines.append(f"  ... and {len(self.events) - _SHOWN} more")
        return "; emitted were:\n" + "\n".join(lines)


def _differences(event: EventBase, fields: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: expected {expected!r}, got {actual!r}"
        for name, expected in fields.items()
        if not expected == (actual := getattr(event, name))  # noqa: SIM201 - ANY and matchers
    ]


def _wanted(event_class: type[EventBase], fields: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"{event_class.__name__}({given})" if given else event_class.__name__


def _message(message: MemoryMessage) -> RecordedMessage:
    return RecordedMessage(
        message.event_id,
        message.type,
        message.topic,
        message.key,
        message.headers,
        message.config,
        JSONDeserializer().deserialize(message.payload).body,
        message.payload,
    )
