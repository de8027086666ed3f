"""Follower: what a consumer without a group takes: all that is emitted from now on."""

import time
from collections import deque
from collections.abc import Mapping, Sequence

from dispytch_redis.entry import message_of
from dispytch_redis.keys import Keys
from dispytch_redis.script import ENDS, FOLLOW
from dispytch_redis.settling import Settling
from dispytch_redis.shard import STEP_BYTES, RedisDelivery, Shard, in_turn
from dispytch_redis.wire import Wire

__all__ = ["Follower"]


class Follower:
    """Reads all shards of its topics.

    Args:
        settling: of the consumer.
        keys: names in Redis.
    """

    def __init__(self, settling: Settling, keys: Keys) -> None:
        self._settling, self._keys = settling, keys
        self.shards: dict[str, Shard] = {}
        self._turn = 0

    async def begin(self, wire: Wire, topics: dict[str, int]) -> None:
        """Follow topics from their ends on; how many shards each has.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        shards = self._shards_of(topics)
        for part in in_turn(shards, 0):
            ends = await ENDS.run(wire, [shard.stream for shard in part])
            for shard, end in zip(part, ends, strict=True):
                shard.last = end.decode()
        self.shards.update((shard.name, shard) for shard in shards)

    def add(self, topics: dict[str, int]) -> None:
        """Follow topics that are new, from their beginnings on."""
        for shard in self._shards_of(topics):
            shard.last = "0-0"
            self.shards[shard.name] = shard

    async def read(self, wire: Wire, limit: int, taken: deque[RedisDelivery]) -> None:
        """Add what there is after what was read before to `taken`, until it holds `limit`.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        self._turn += 1
        for part in in_turn(list(self.shards.values()), self._turn):
            await self._read_part(wire, part, taken, limit)
            if len(taken) >= limit:
                break

    async def _read_part(
        self, wire: Wire, shards: Sequence[Shard], taken: deque[RedisDelivery], limit: int
    ) -> None:
        found = await FOLLOW.run(
            wire,
            [shard.stream for shard in shards],
            limit - len(taken),
            STEP_BYTES,
            *(shard.last or "0-0" for shard in shards),
        )
        now = time.time() * 1000
        for place, entries in found:
            shard = shards[place]
            for id_, fields in entries:
                message = message_of(fields)
                if message.expires_ms is None or message.expires_ms > now:
                    taken.append(RedisDelivery(shard, id_.decode(), message, 1))
            shard.last = entries[-1][0].decode()

    def _shards_of(self, topics: dict[str, int]) -> list[Shard]:
        return [
            Shard(self._settling, topic, name, self._keys.stream(name))
            for topic, name in self._keys.shards(topics)
        ]

    def marks(self) -> dict[str, str]:
        """Up to where each stream was read."""
        return {shard.stream: shard.last or "0-0" for shard in self.shards.values()}

    def next_due(self) -> None:
        """Nothing is put off on the server."""

    def hear(self, came: Mapping[str, str]) -> None:
        """What is read says it all."""

    def look_again(self) -> None:
        """A reply was lost: nothing is, as we know up to where we have read."""
