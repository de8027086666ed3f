"""Subscribed: the topics that a consumer's subscriptions come to, also those that are new."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from dispytch import Subscription
from dispytch_redis.connection import RedisConnection
from dispytch_redis.keys import Keys
from dispytch_redis.topics import register
from dispytch_redis.wire import Wire

__all__ = ["Subscribed"]

_AGAIN = 30.0  # seconds until all topics are looked at, whether there was news of them or not


class Subscribed:
    """Finds topics, and makes the group known to their shards.

    Args:
        keys: names in Redis.
        settings: how many shards a topic has, and where a group begins.
        subscriptions: topics and patterns.
        group: None: there is none.
    """

    def __init__(
        self,
        keys: Keys,
        settings: RedisConnection,
        subscriptions: Sequence[Subscription],
        group: str | None,
    ) -> None:
        self._keys, self._settings, self._group = keys, settings, group
        self._literal = [each.topic for each in subscriptions if each.pattern.is_literal]
        self._patterns = [each.pattern for each in subscriptions if not each.pattern.is_literal]
        self._topics: dict[str, int] = {}
        self._seen = "0-0"
        self._looked_at = 0.0

    async def begin(self, wire: Wire) -> dict[str, int]:
        """The topics there are, with the number of their shards.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        for name in self._literal:
            self._topics[name] = await register(wire, self._keys, name, self._settings.shards)
        found, self._seen = await self._find(wire)
        self._topics.update(found)
        await self._make_groups(wire, self._topics, self._settings.begins_at())
        return self._topics

    def marks(self) -> dict[str, str]:
        """What tells of new topics, and up to where it was read."""
        return {self._keys.new_topics: self._seen} if self._patterns else {}

    async def look(self, wire: Wire, came: Mapping[str, str]) -> dict[str, int]:
        """Topics that have come into being, which are received from their beginnings on.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        now = asyncio.get_running_loop().time()
        is_news = self._keys.new_topics in came or now > self._looked_at + _AGAIN
        if not self._patterns or not is_news:
            return {}
        fresh, seen = await self._find(wire)
        await self._make_groups(wire, fresh, "0")
        self._topics.update(fresh)
        self._seen, self._looked_at = seen, now
        return fresh

    async def backlog(self, wire: Wire) -> int | None:
        """How many events wait for the group; None: the server does not know.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        waiting = 0
        told = await asyncio.gather(
            *(wire.call("XINFO", "GROUPS", stream) for stream in self._streams(self._topics)),
            return_exceptions=True,
        )
        for groups in told:
            if isinstance(groups, ResponseError) and "no such key" in str(groups):
                continue  # the server lost it, and with it all that waited
            if isinstance(groups, BaseException):
                raise groups
            for pairs in groups:
                group = dict(zip(pairs[::2], pairs[1::2], strict=True))
                if group[b"name"].decode() == self._group:
                    if group.get(b"lag") is None:
                        return None
                    waiting += group[b"pending"] + group[b"lag"]
        return waiting

    async def _find(self, wire: Wire) -> tuple[dict[str, int], str]:
        """Topics that match a pattern and are new to us, and up to where there was news of them."""
        if not self._patterns:
            return {}, "0-0"
        # First up to where there is news: what comes after that is seen again.
        last: list[Any] = await wire.call("XREVRANGE", self._keys.new_topics, "+", "-", "COUNT", 1)
        pairs: list[bytes] = await wire.call("HGETALL", self._keys.topics)
        fresh: dict[str, int] = {}
        for name, count in zip(pairs[::2], pairs[1::2], strict=True):
            topic = name.decode()
            is_wanted = any(each.match(topic) is not None for each in self._patterns)
            if is_wanted and topic not in self._topics:
                fresh[topic] = int(count)
        return fresh, last[0][0].decode() if last else "0-0"

    async def _make_groups(self, wire: Wire, topics: Mapping[str, int], begin: str) -> None:
        if self._group is None:
            return
        making = [
            wire.call("XGROUP", "CREATE", stream, self._group, begin, "MKSTREAM")
            for stream in self._streams(topics)
        ]
        for result in await asyncio.gather(*making, return_exceptions=True):
            is_there = isinstance(result, ResponseError) and "BUSYGROUP" in str(result)
            if isinstance(result, BaseException) and not is_there:
                raise result

    def _streams(self, topics: Mapping[str, int]) -> list[str]:
        return [self._keys.stream(shard) for _, shard in self._keys.shards(topics)]
