"""Topics: how many shards each has. The first who uses a topic decides, for all."""

import asyncio
import time
from dataclasses import dataclass

from dispytch_redis.entry import shard_of
from dispytch_redis.keys import Keys
from dispytch_redis.script import REGISTER
from dispytch_redis.wire import Wire

__all__ = ["Topic", "Topics", "register", "stream_of"]

_FRESH = 30.0  # seconds until a topic in use is made known again: the server may have lost it
_MOST = 10_000  # topics that are remembered


@dataclass(slots=True, eq=False)
class Topic:
    """A topic in use.

    Attributes:
        stem: what the keys of its streams begin with; their numbers follow.
        shards: how many it has.
        until: when it is made known again, as `time.monotonic()`.
        turn: counts its events without a key.
    """

    stem: bytes
    shards: int
    until: float
    turn: int = 0


class Topics:
    """The topics that a producer uses.

    Args:
        keys: names in Redis.
        shards: of topics that are new.
    """

    def __init__(self, keys: Keys, shards: int) -> None:
        self._keys, self._shards = keys, shards
        self._known: dict[str, Topic] = {}
        self._learning: dict[str, asyncio.Task[Topic]] = {}

    def get(self, name: str) -> Topic | None:
        """A topic that is known; None: `learn` it."""
        topic = self._known.get(name)
        return None if topic is None or topic.until < time.monotonic() else topic

    async def learn(self, name: str, wire: Wire) -> Topic:
        """Make a topic known, or learn how many shards it has; once for all who ask meanwhile.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        learning = self._learning.get(name)
        if learning is None:
            learning = self._learning[name] = asyncio.create_task(self._learn(name, wire))
            learning.add_done_callback(lambda done: self._learnt(name, done))
        return await asyncio.shield(learning)

    async def _learn(self, name: str, wire: Wire) -> Topic:
        topic = self._known.get(name)
        # As it was, where the server has lost it: who receives goes by that.
        wanted = self._shards if topic is None else topic.shards
        shards = await register(wire, self._keys, name, wanted)
        until = time.monotonic() + _FRESH
        if topic is not None and topic.shards == shards:
            topic.until = until
            return topic
        if len(self._known) >= _MOST:
            self._known.clear()
        stem = self._keys.stream(f"{self._keys.topic(name)}:").encode()
        topic = self._known[name] = Topic(stem, shards, until)
        return topic

    def make_known_again(self) -> None:
        """The server may have lost them: each is made known again before its next event."""
        for topic in self._known.values():
            topic.until = 0.0

    def _learnt(self, name: str, learning: "asyncio.Task[Topic]") -> None:
        del self._learning[name]
        if not learning.cancelled():
            learning.exception()  # it has been seen, also where all who asked are gone


async def register(wire: Wire, keys: Keys, name: str, shards: int) -> int:
    """Make a topic known to all, with so many shards unless it is known; how many it has.

    Raises:
        redis.exceptions.RedisError, WireError: see `Wire.call`.
    """
    told: int = await REGISTER.run(wire, [keys.topics, keys.new_topics], name, shards)
    return told


def stream_of(topic: Topic, key: bytes | None) -> bytes:
    """The stream for an event: by its key, or each in turn."""
    if key is None:
        number = topic.turn = (topic.turn + 1) % topic.shards
    else:
        number = shard_of(key, topic.shards)
    return b"%b%d" % (topic.stem, number)
