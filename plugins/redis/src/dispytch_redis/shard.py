"""RedisDelivery and Shard: what is on its way to the handlers, and what is ours."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dispytch import Delivery, SettleError
from dispytch.consumer import Headers
from dispytch_redis.entry import Message

if TYPE_CHECKING:
    from dispytch_redis.settling import Settling

__all__ = ["STEP_BYTES", "RedisDelivery", "Shard", "in_turn", "read_again", "written_again"]

STEP_BYTES = 1024 * 1024
"""Bytes of events that are read in one step of the server, and one more read."""

_SHARDS = 500  # looked at in one step


class RedisDelivery(Delivery):
    """An event on its way to the handlers.

    Attributes:
        shard: where it is from.
        id: of its entry.
        is_retry: whether it had been put off.
    """

    __slots__ = ("id", "is_retry", "shard")

    def __init__(
        self, shard: "Shard", id_: str, message: Message, attempt: int, *, is_retry: bool = False
    ) -> None:
        super().__init__(shard.topic, message.payload, message.key, message.headers, attempt)
        self.shard, self.id, self.is_retry = shard, id_, is_retry
        shard.held[id_] = self

    async def ack(self) -> None:
        """It is done; returns when the server knows.

        Raises:
            SettleError: it is not ours any more, or was settled before: it comes again.
        """
        self._check()
        await self.shard.settling.done(self)

    async def nack(self, delay: float | None = None) -> None:
        """It comes again at once; with a `delay`, by itself after so many seconds.

        Raises:
            SettleError: as for `ack`.
        """
        self._check()
        if delay:
            await self.shard.settling.later(self, delay)
        else:
            self.shard.settling.again(self)

    def _check(self) -> None:
        if self.shard.held.get(self.id) is not self:
            raise SettleError(
                "it was settled before, or is another member's by now; in that case it comes again"
            )


class Shard:
    """A shard of a topic while it is ours.

    Attributes:
        settling: settles its deliveries.
        topic: the topic it is of.
        name: what it is called in the keys of Redis.
        stream: the key of its stream.
        last: the id of the last entry that was given to us; None: we have not begun yet.
        recovered: what was pending was looked at up to this id; None: all of it.
        is_inherited: what is pending was delivered by the owner before us: what we claim of it
            may have been begun.
        attempts: of what was claimed here and no handler has begun.
        looks: how often we had to look again.
        due: when the next of what was put off is due, on the loop's clock; None: there is none.
        held: what we delivered and is not settled, by id.
        ending: ids of what is settled, until the server knows.
        is_ours: nobody else has it.
        is_leaving: it is to be given away.
        is_asked: the server is asked for events of it at this moment.
    """

    __slots__ = (
        "attempts", "due", "ending", "held", "is_asked", "is_inherited", "is_leaving", "is_ours",
        "last", "looks", "name", "recovered", "settling", "stream", "topic",
    )  # fmt: skip

    def __init__(self, settling: "Settling", topic: str, name: str, stream: str) -> None:
        self.settling, self.topic, self.name, self.stream = settling, topic, name, stream
        self.last: str | None = None
        self.recovered: str | None = "-"
        self.is_inherited = True
        self.attempts: dict[str, int] = {}
        self.looks = 0
        self.due: float | None = None
        self.held: dict[str, RedisDelivery] = {}
        self.ending: set[str] = set()
        self.is_ours, self.is_leaving, self.is_asked = True, False, False

    @property
    def is_read(self) -> bool:
        """Whether events of it are delivered here."""
        return self.is_ours and not self.is_leaving

    @property
    def is_free(self) -> bool:
        """Whether it can be given away: nothing of it is under way."""
        return self.is_leaving and not (self.held or self.ending or self.is_asked)

    def look_again(self) -> None:
        """Begin anew with what is pending, where a reply may be lost or the shard another's.

        Of what is pending then and not held no handler has begun anything.
        """
        self.last, self.recovered = None, "-"
        self.looks += 1

    def doubt(self) -> None:
        """It may be another's: what no handler works on comes again, here or there.

        The server is told nothing of that: its count of deliveries may be the other's by now.
        """
        self._let_go(self._unbegun())
        self.look_again()

    def leave_unbegun(self) -> None:
        """Leave what no handler works on to the next owner."""
        self.leave(self._unbegun())

    def leave_all(self) -> None:
        """Leave everything to the next owner."""
        self.leave(list(self.held.values()))

    def leave(self, deliveries: list[RedisDelivery]) -> None:
        """Leave some to the next owner, who may be ourselves."""
        self._let_go(deliveries)
        self.settling.give_back(self, [each for each in deliveries if not each.running])

    def lose(self) -> None:
        """It is not ours any more."""
        self.is_ours = False
        for delivery in self.held.values():
            delivery.lost = True
        self.held.clear()

    def _unbegun(self) -> list[RedisDelivery]:
        return [each for each in self.held.values() if not each.running]

    def _let_go(self, deliveries: list[RedisDelivery]) -> None:
        for delivery in deliveries:
            del self.held[delivery.id]
            delivery.lost = True
            if not delivery.running:
                self.attempts[delivery.id] = delivery.attempt


def in_turn(shards: Sequence[Shard], turn: int) -> Iterator[list[Shard]]:
    """Shards in parts, each for one step; which one comes first in its part is up to the turn."""
    for first in range(0, len(shards), _SHARDS):
        part = shards[first : first + _SHARDS]
        place = turn % len(part)
        yield [*part[place:], *part[:place]]


def written_again(delivery: RedisDelivery) -> str:
    """What comes with an event again that is put off, its headers: JSON, other bytes escaped."""
    pairs = [(name, value.decode("utf-8", "surrogateescape")) for name, value in delivery.headers]
    return json.dumps(pairs)


def read_again(written: bytes) -> Headers:
    """The same, read again."""
    pairs = json.loads(written)
    return tuple((name, value.encode("utf-8", "surrogateescape")) for name, value in pairs)
