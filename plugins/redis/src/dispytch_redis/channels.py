"""Channels: what subscriptions come to in Redis, and which of them a message is for."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from dispytch import ConfigError, Subscription
from dispytch.topics import REST

__all__ = ["Channels", "Route"]

_REMEMBERED = 4096


class Route(NamedTuple):
    """Where a message belongs: its topic, and `Delivery.via`."""

    topic: str
    via: tuple[str, ...] | None


class Channels:
    """The channels and patterns of some subscriptions.

    Redis sends a message once for its channel, and once for each pattern that matches it. Its
    patterns know no segments and so match more than ours, which then decide.

    Args:
        subscriptions: topics and patterns.
        prefix: what the channels' names begin with.

    Attributes:
        literal: the names of channels, for SUBSCRIBE.
        globs: for PSUBSCRIBE.

    Raises:
        ConfigError: a subscription can't be written.
    """

    def __init__(self, subscriptions: Sequence[Subscription], prefix: str) -> None:
        self.literal: dict[bytes, list[Subscription]] = {}
        self.globs: dict[bytes, list[Subscription]] = {}
        self._skip = len(prefix.encode())
        self._routes: dict[tuple[bytes | None, bytes], Route | None] = {}
        for each in subscriptions:
            found = self.literal if each.pattern.is_literal else self.globs
            try:
                name = _name_of(each, prefix).encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"topic {each.topic!r} holds what UTF-8 can't encode") from error
            found.setdefault(name, []).append(each)

    def route(self, glob: bytes | None, channel: bytes) -> Route | None:
        """What a message is; None: nobody wants it.

        Args:
            glob: the pattern by which it came; None: by its channel.
            channel: where it was published.
        """
        place = glob, channel
        try:
            return self._routes[place]
        except KeyError:
            if len(self._routes) >= _REMEMBERED:
                self._routes.clear()
            route = self._routes[place] = self._find(glob, channel)
            return route

    def _find(self, glob: bytes | None, channel: bytes) -> Route | None:
        topic = channel[self._skip :].decode("utf-8", "surrogateescape")
        ways: dict[bytes | None, list[str]] = {
            by: [each.topic for each in subscriptions if each.pattern.match(topic) is not None]
            for by, subscriptions in self.globs.items()
        }
        ways[None] = [each.topic for each in self.literal.get(channel, ())]
        if not ways.get(glob):
            return None
        several = sum(map(bool, ways.values())) > 1
        return Route(topic, tuple(ways[glob]) if several else None)


def _name_of(subscription: Subscription, prefix: str) -> str:
    """The channel of a topic, or the pattern that matches at least those that ours does."""
    pattern = subscription.pattern
    text = pattern.wildcards(REST, REST)
    if pattern.is_literal:
        return prefix + text
    segments = text.split(pattern.delimiter)
    return _escaped(prefix) + _escaped(pattern.delimiter).join(
        REST if segment == REST else _escaped(segment) for segment in segments
    )


def _escaped(text: str) -> str:
    return re.sub(r"[\\*?\[\]^]", r"\\\g<0>", text)
