"""Trimmer: deletes old events of the shards that a producer appends to, now and then."""

import asyncio
import logging

from redis.exceptions import RedisError

from dispytch.fields import moment_of
from dispytch_redis.config import RedisEventConfig
from dispytch_redis.errors import WireError
from dispytch_redis.link import Link
from dispytch_redis.script import TRIM

__all__ = ["Trimmer"]

logger = logging.getLogger("dispytch.redis")

_EVERY = 100  # events of a shard
_PART = 10  # or this part of what is kept, where that is less
_MOST = 10_000  # shards that are remembered


class Trimmer:
    """Trims shards as the configs of their events want, beside the emits, while there is a link.

    Args:
        link: to the server.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left: dict[bytes, int] = {}
        self._trimming: dict[bytes, asyncio.Task[None]] = {}

    def appended(self, stream: bytes, shards: int, config: RedisEventConfig) -> None:
        """An event with this config was appended to a shard."""
        keep = None if config.maxlen is None else -(-config.maxlen // shards)
        if len(self._left) >= _MOST:
            self._left.clear()
        left = self._left.get(stream, 0) - 1
        if left > 0 or stream in self._trimming:
            self._left[stream] = left
            return
        self._left[stream] = _EVERY if keep is None else min(_EVERY, keep // _PART)
        task = self._trimming[stream] = asyncio.create_task(self._trim(stream, keep, config))
        task.add_done_callback(lambda _: self._trimming.pop(stream, None))

    async def _trim(self, stream: bytes, keep: int | None, config: RedisEventConfig) -> None:
        age = "" if config.max_age is None else int(moment_of(config.max_age, 0) * 1000)
        limits = ("" if keep is None else keep, age, int(config.trim_unsettled))
        try:
            more = True
            while more and (wire := self._link.wire) is not None:
                _, more = await TRIM.run(wire, [stream.decode()], *limits)
        except WireError:
            pass  # the link tells; another event makes it go on
        except RedisError as error:
            logger.warning("redis: can't delete old events: %s", type(error).__name__)
