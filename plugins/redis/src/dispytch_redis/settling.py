"""Settling: tells the server what is done, and keeps what is to come again."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from dispytch import ConnectError, SettleError
from dispytch_redis.entry import Message
from dispytch_redis.errors import WireError, as_connect_error
from dispytch_redis.keys import GroupKeys
from dispytch_redis.link import Link
from dispytch_redis.script import DONE, LATER
from dispytch_redis.shard import RedisDelivery, Shard, written_again
from dispytch_redis.wire import Wire

__all__ = ["Settling"]

_PAUSE = 0.5  # seconds until what the server refused to take is told again

_NOT_OURS = "its shard is another member's, or the consumer was stopped: it comes again"


@dataclass(slots=True)
class _Lot:
    """What is told in one go.

    Attributes:
        done: what is done, by shard.
        retried: what had been put off and is done.
        waiting: who waits for it.
    """

    done: dict[Shard, list[str]] = field(default_factory=dict[Shard, list[str]])
    retried: list[tuple[Shard, str]] = field(default_factory=list[tuple[Shard, str]])
    waiting: list["asyncio.Future[None]"] = field(default_factory=list["asyncio.Future[None]"])


class Settling:
    """Settles the deliveries of one consumer; those of a turn of the event loop together.

    What can't be told for now is kept and told again: the event is done, and must not run twice
    for that. Acknowledging twice does no harm.

    Args:
        link: to the server.
        wake: called when there is something to be delivered again, or a shard is free.

    Attributes:
        group: None: there is none, and nothing to be told.
        member: who we are in it.
        problem: what the server says to that; None: it takes it.
    """

    def __init__(self, link: Link, wake: Callable[[], None]) -> None:
        self._link, self._wake = link, wake
        self._loop = asyncio.get_running_loop()
        self.group: str | None = None
        self.keys = GroupKeys("")
        self.member = ""
        self.problem: ConnectError | None = None
        self._nacked: list[RedisDelivery] = []
        self._lot = _Lot()
        self._telling: asyncio.Task[None] | None = None
        self._is_over = False

    # What becomes of a delivery

    def done(self, delivery: RedisDelivery) -> "asyncio.Future[None]":
        """It is done; a future of when the server knows."""
        known: asyncio.Future[None] = self._loop.create_future()
        del delivery.shard.held[delivery.id]
        if self.group is None:
            known.set_result(None)
            return known
        self._end(delivery.shard, delivery.id, is_retry=delivery.is_retry)
        self._lot.waiting.append(known)
        return known

    def drop(self, shard: Shard, id_: str, *, is_retry: bool) -> None:
        """An event is worth nothing any more."""
        self._end(shard, id_, is_retry=is_retry)

    async def later(self, delivery: RedisDelivery, delay: float) -> None:
        """It is to come again after so many seconds; returns when the server knows.

        Raises:
            SettleError: it is not ours any more, or the server refuses it: it comes again.
        """
        shard = delivery.shard
        if self.group is None:
            self.again(delivery, delay)
            return
        what = (delivery.id, delivery.attempt, int(delay * 1000) + 1, written_again(delivery))
        wire = await self._link.connected()
        while wire is not None and shard.held.get(delivery.id) is delivery:
            try:
                known = await LATER.run(
                    wire, self.names(shard), self.group, self.member, shard.name, *what
                )
            except WireError:
                wire = await self._link.connected()
                continue  # telling it twice does no harm
            except RedisError as error:
                self.again(delivery, delay)  # it is pending: whatever becomes of us, it is not lost
                raise SettleError(str(as_connect_error(error))) from error
            if known is None or shard.held.get(delivery.id) is not delivery:
                break
            del shard.held[delivery.id]
            at = self._loop.time() + delay
            shard.due = at if shard.due is None else min(shard.due, at)
            self._wake()
            return
        raise SettleError(_NOT_OURS)

    def again(self, old: RedisDelivery, delay: float = 0.0) -> None:
        """It is to come again, and we keep it until then."""
        message = Message(old.payload, old.key, old.headers, None)
        again = RedisDelivery(old.shard, old.id, message, old.attempt + 1, is_retry=old.is_retry)
        if delay:
            self._loop.call_later(delay, self._come_again, again)
        else:
            self._come_again(again)

    def _come_again(self, again: RedisDelivery) -> None:
        if again.lost:
            return
        if again.shard.is_leaving:
            again.shard.leave([again])
        else:
            self._nacked.append(again)
        self._wake()

    def take_again(self, limit: int) -> list[RedisDelivery]:
        """What is to come again now."""
        if not self._nacked:
            return []
        nacked = [each for each in self._nacked if not each.lost]
        taken, self._nacked = nacked[:limit], nacked[limit:]
        return taken

    def give_back(self, shard: Shard, deliveries: Sequence[RedisDelivery]) -> None:
        """No handler has begun these: the next owner's attempt is the same, not one more."""
        wire = self._link.wire
        if self.group is None or wire is None:
            return
        by_attempt: dict[int, list[str]] = {}
        for each in deliveries:
            by_attempt.setdefault(each.attempt, []).append(each.id)
        for attempt, ids in by_attempt.items():
            wire.call(
                "XCLAIM", shard.stream, self.group, "dispytch", 0, *ids,
                "RETRYCOUNT", attempt - 1, "JUSTID",
            )  # fmt: skip

    def names(self, shard: Shard) -> list[str]:
        """The keys of all that is kept for a shard."""
        keys = self.keys
        return [keys.owners, shard.stream, keys.later(shard.name), keys.later_data(shard.name)]

    # Telling it

    async def idle(self) -> None:
        """Wait until the server knows everything."""
        while self._telling is not None:
            await asyncio.wait((self._telling,))

    def abandon(self) -> None:
        """Tell nothing more; who waits gets a SettleError."""
        self._is_over = True
        if self._telling is not None:
            self._telling.cancel()
        for known in self._lot.waiting:
            _fail(known)
        self._lot = _Lot()

    def _end(self, shard: Shard, id_: str, *, is_retry: bool) -> None:
        shard.ending.add(id_)
        if is_retry:
            self._lot.retried.append((shard, id_))
        else:
            self._lot.done.setdefault(shard, []).append(id_)
        self._begin()

    def _begin(self) -> None:
        if self._telling is None and not self._is_over:
            self._telling = self._loop.create_task(self._tell())
            self._telling.add_done_callback(self._told)

    def _told(self, _: object) -> None:
        self._telling = None
        if self._lot.done or self._lot.retried:
            self._begin()

    async def _tell(self) -> None:
        lot, self._lot = self._lot, _Lot()
        try:
            while (wire := await self._link.connected()) is not None:
                try:
                    await self._tell_all(wire, lot)
                except WireError:
                    continue
                except RedisError as error:
                    self.problem = as_connect_error(error)
                    await asyncio.sleep(_PAUSE)
                    continue
                self.problem = None
                for known in lot.waiting:
                    if not known.done():
                        known.set_result(None)
                lot.waiting.clear()
                break
        finally:
            for known in lot.waiting:
                _fail(known)

    async def _tell_all(self, wire: Wire, lot: _Lot) -> None:
        telling = [
            wire.call("XACK", shard.stream, self.group or "", *ids)
            for shard, ids in lot.done.items()
        ]
        retried = [
            DONE.run(wire, self.names(shard)[1:], self.group or "", id_)
            for shard, id_ in lot.retried
        ]
        for result in await asyncio.gather(*telling, *retried, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        is_free = False
        for shard, ids in lot.done.items():
            shard.ending.difference_update(ids)
            is_free = is_free or shard.is_free
        for shard, id_ in lot.retried:
            shard.ending.discard(id_)
            is_free = is_free or shard.is_free
        if is_free:
            self._wake()


def _fail(known: "asyncio.Future[None]") -> None:
    if not known.done():
        known.set_exception(SettleError(_NOT_OURS))
        known.exception()  # whoever waited may be gone
