"""SQLiteDelivery and Share: what is on its way to the handlers, and how far each partition is."""

from collections import deque
from typing import TYPE_CHECKING, Any

from dispytch import Delivery, SettleError
from dispytch_sqlite.group import Mark, Pairs, Tenure

if TYPE_CHECKING:
    from dispytch_sqlite.settling import Settling

__all__ = ["SQLiteDelivery", "Share"]


class SQLiteDelivery(Delivery):
    """An event on its way to the handlers."""

    __slots__ = ("is_retry", "seq", "share")

    def __init__(self, share: "Share", seq: int, *message: Any, is_retry: bool = False) -> None:
        super().__init__(*message)
        self.share, self.seq, self.is_retry = share, seq, is_retry
        share.held[seq] = self

    async def ack(self) -> None:
        """It is done; returns when that is written down.

        Raises:
            SettleError: it is not ours any more, or was settled before: it comes again.
        """
        self._check()
        await self.share.settling.done(self)

    async def nack(self, delay: float | None = None) -> None:
        """It comes again, before those after it; with a `delay`, by itself after so many seconds.

        Raises:
            SettleError: as for `ack`.
        """
        self._check()
        if delay:
            await self.share.settling.later(self, delay)
        else:
            self.share.settling.again(self)

    def _check(self) -> None:
        if self.share.held.get(self.seq) is not self:
            raise SettleError(
                "it was settled before, or is another member's by now; in that case it comes again"
            )


class Share:
    """A partition of what is subscribed to, while it is ours.

    Attributes:
        settling: settles its deliveries.
        topic: the topic or pattern it is of.
        partition: its number.
        cursor, epoch: where the group's progress is; 0: there is no group.
        position: all up to here was delivered, or is not for us.
        left: what the owner before us left open and we have not delivered yet.
        held: what we delivered and is not settled.
        ending: numbers of those that came again and were settled, until that is written down.
        is_ours: nobody else has it.
        is_leaving: it is to be given away.
        told: what is open is written down one by one up to here; what is beyond comes as new to the
            next owner. No farther than is needed, as each commit holds all of it.
    """

    __slots__ = (
        "cursor", "ending", "epoch", "held", "is_leaving", "is_ours", "left", "partition",
        "position", "settling", "told", "topic",
    )  # fmt: skip

    def __init__(
        self,
        settling: "Settling",
        topic: str,
        partition: int,
        position: int,
        *,
        cursor: int = 0,
        epoch: int = 0,
        left: Pairs = (),
    ) -> None:
        self.settling, self.topic, self.partition = settling, topic, partition
        self.cursor, self.epoch, self.position = cursor, epoch, position
        self.left = deque(left)
        self.held: dict[int, SQLiteDelivery] = {}
        self.ending: set[int] = set()
        self.is_ours, self.is_leaving = True, False
        self.told = position

    @property
    def tenure(self) -> Tenure:
        """Which cursor it is, and since which epoch."""
        return self.cursor, self.epoch

    @property
    def mark(self) -> Mark:
        """How far it is; given away when nothing of it is held any more."""
        is_release = self.is_leaving and not self.held
        return Mark(self.cursor, self.epoch, self.told, self.open, is_release)

    @property
    def open(self) -> Pairs:
        """What is not settled, in order; what waits in the table of retries is not among it."""
        told, held = self.told, self.held.items()
        open_ = [(seq, each.attempt) for seq, each in held if seq <= told and not each.is_retry]
        open_ += [pair for pair in self.left if pair[0] <= told]
        return sorted(open_)

    @property
    def is_read(self) -> bool:
        """Whether events of it are delivered here."""
        return self.is_ours and not self.is_leaving

    def let_go(self, delivery: SQLiteDelivery) -> None:
        """A delivery is settled."""
        del self.held[delivery.seq]
        self.told = max(self.told, delivery.seq)

    def is_busy_with(self, seq: int) -> bool:
        """Whether what is in the table of retries is under way, or about to leave the table."""
        return seq in self.held or seq in self.ending

    def leave_unbegun(self) -> None:
        """Leave what no handler works on to the next owner."""
        self._leave([each for each in self.held.values() if not each.running])

    def leave_all(self) -> None:
        """Leave everything to the next owner."""
        self._leave(list(self.held.values()))

    def lose(self) -> None:
        """It is not ours any more."""
        self.is_ours = False
        self.leave_all()

    def _leave(self, deliveries: list[SQLiteDelivery]) -> None:
        self.told = self.position
        for delivery in deliveries:
            del self.held[delivery.seq]
            delivery.lost = True
            if not delivery.is_retry:
                self.left.append((delivery.seq, delivery.attempt))
