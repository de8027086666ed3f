"""Routing: from a topic and a type to the handlers."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dispytch.envelope import Deserializer
from dispytch.listener.handler import Handler
from dispytch.listener.reading import TopicReader

__all__ = ["Routes", "Station", "Target"]

_REMEMBERED = 4096


class Target(NamedTuple):
    """A handler, and the segments its pattern finds in a topic."""

    handler: Handler
    segments: Mapping[str, str]


class Station(NamedTuple):
    """What happens to the messages of one topic.

    Attributes:
        reader: reads them.
        by_type: who handles which type.
    """

    reader: TopicReader
    by_type: Mapping[str, tuple[Target, ...]]


class Routes:
    """Finds the station of a topic, and remembers it.

    Args:
        handlers: all handlers of a listener.
        deserializer: the format; None: JSON.
    """

    def __init__(self, handlers: Iterable[Handler], deserializer: Deserializer | None) -> None:
        self._handlers = tuple(handlers)
        self._deserializer = deserializer
        self._stations: dict[Any, Station | None] = {}
        self._readers: dict[tuple[Handler, ...], TopicReader] = {}

    def to(self, topic: str, via: tuple[str, ...] | None = None) -> Station | None:
        """The station of this topic; None where nobody handles it.

        Args:
            topic: where a message was emitted to.
            via: the only topics and patterns whose handlers are asked; None: all.
        """
        place = topic if via is None else (topic, via)
        try:
            return self._stations[place]
        except KeyError:
            if len(self._stations) >= _REMEMBERED:
                self._stations.clear()
            station = self._stations[place] = self._find(topic, via)
            return station

    def _find(self, topic: str, via: tuple[str, ...] | None) -> Station | None:
        found: list[Target] = []
        for handler in self._handlers:
            if via is not None and handler.pattern.text not in via:
                continue
            values = handler.pattern.match(topic)
            if values is not None:
                segments = dict(zip(handler.pattern.names, values, strict=True))
                found.append(Target(handler, segments))
        if not found:
            return None
        by_type: dict[str, tuple[Target, ...]] = {}
        for target in found:
            kind = target.handler.kind
            by_type[kind] = (*by_type.get(kind, ()), target)
        return Station(self._reader(tuple(target.handler for target in found)), by_type)

    def _reader(self, handlers: tuple[Handler, ...]) -> TopicReader:
        if handlers not in self._readers:
            readers = {handler.kind: handler.reader for handler in reversed(handlers)}
            self._readers[handlers] = TopicReader(readers, self._deserializer)
        return self._readers[handlers]
