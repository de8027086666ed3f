"""Wire: writes messages to a channel, many at once, and tells of each what became of it.

The client's own publishing takes a lock, two futures and a turn of its writer for each message, and
cancelled half-way it could mix up its confirmations. Here a message joins those that wait for the
writer, which takes them all at once, and gets its number while it joins: nothing can come between.

What is used of aiormq beyond what it documents stands here: of a channel its `confirmations`,
`delivery_tag`, `message_id_delivery_tag`, `lock` and `write_queue`, of a connection its `channels`.
"""

import asyncio
import contextlib
import struct
from collections.abc import Coroutine
from typing import Any, TypeAlias

from aiormq import PublishError, spec
from aiormq.abc import AbstractChannel, DeliveredMessage

from dispytch_rabbitmq.errors import CLIENT_ERRORS
from dispytch_rabbitmq.properties import Message

__all__ = ["Outcome", "Wire"]

Outcome: TypeAlias = bool | BaseException | None
"""True: the broker has it. False: it came back, no queue receives it. None: it was not written.

Else what the client told instead of a confirmation.
"""

_BATCH_SIZE = 65_536
_FRAME_END = b"\xce"
_UNLIMITED = 0xFFFF_FFFF
_METHOD = struct.Struct(">BHIHHH").pack  # type, channel, size; class, method, reserved
_HEADER = struct.Struct(">BHIHHQ").pack  # type, channel, size; class, weight, size of the body
_BODY = struct.Struct(">BHI").pack  # type, channel, size
_BASIC = spec.Basic.frame_id
_PUBLISH = _BASIC, spec.Basic.Publish.frame_id


class Wire:
    """Publishes on one channel with confirmations, which others may publish on as well.

    Args:
        channel: an open channel of aiormq.

    Attributes:
        max_header_size: of a message's headers, in bytes: they travel in one frame, and the broker
            ends the connection where it is too large.
        ended: is done when the channel has ended, or this was given up.
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel: Any = channel
        frame_max = channel.connection.connection_tune.frame_max or _UNLIMITED
        self.max_header_size = frame_max - 4096  # other properties: < 3 KiB
        self._max_body_size = frame_max - 8
        self._batch = _Batch(0)
        self._batch.close()  # the first message opens another
        self._turn, self._waiting = asyncio.Lock(), 0
        self._closing: asyncio.Future[Any] = channel.closing
        self._closing.add_done_callback(self._on_closed)

    @property
    def is_idle(self) -> bool:
        """Whether nothing that was published here waits for its confirmation."""
        return not self._unconfirmed()

    async def publish(self, message: Message) -> Outcome:
        """Publish one message; returns when it is known what became of it.

        Cancelled before it could join, it is not written; afterwards it is, and nobody hears of it.
        """
        while True:
            if self._waiting or not self._has_room():
                self._waiting += 1  # a lock that is handed on is not locked for a moment
                try:
                    async with self._turn:  # first come, first served
                        if not await self._make_room():
                            return None
                finally:
                    self._waiting -= 1
            earlier = self._unconfirmed_of(message.id) if message.mandatory else None
            if earlier is None:
                return await self._join(message)
            await asyncio.wait((earlier.told,))  # what comes back is told by its id alone

    def give_up(self, error: BaseException) -> None:
        """Tell all who wait that no confirmation will come."""
        if not self.ended.done():
            self.ended.set_result(None)
        self._closing.remove_done_callback(self._on_closed)
        for confirmation in self._unconfirmed():
            confirmation.set_exception(error)

    # Messages join a batch

    def _takes_more(self) -> bool:
        batch = self._batch
        return (
            batch.size < _BATCH_SIZE
            and batch.last == self._channel.delivery_tag  # nobody else has published behind it
            and self._is_open()
        )

    def _is_open(self) -> bool:
        """As the connection sees it: what is written to a channel once closed ends all of them."""
        channel = self._channel
        known = channel.connection.channels.get(channel.number) is channel
        return known and not self.ended.done()

    def _join(self, message: Message) -> "asyncio.Future[Outcome]":
        frames = self._frames(message)
        channel, batch = self._channel, self._batch
        tag = batch.last = channel.delivery_tag = channel.delivery_tag + 1
        confirmation = channel.confirmations[tag] = _Confirmation(self, batch)
        if message.mandatory:
            ids = channel.message_id_delivery_tag
            ids[message.id] = tag
            confirmation.forget = ids, message.id, tag
        batch.add(frames, len(message.body) + len(message.properties))
        return confirmation.outcome

    def _frames(self, message: Message) -> list[bytes]:
        number, body, size = self._channel.number, message.body, len(message.body)
        properties = message.properties
        frames = [
            self._method(message),
            _HEADER(2, number, len(properties) + 12, _BASIC, 0, size),
            properties,
            _FRAME_END,
        ]
        if size <= self._max_body_size:
            if body:
                frames += _BODY(3, number, size), body, _FRAME_END
            return frames
        for begin in range(0, size, self._max_body_size):
            part = body[begin : begin + self._max_body_size]
            frames += _BODY(3, number, len(part)), part, _FRAME_END
        return frames

    def _method(self, message: Message) -> bytes:
        exchange, key = message.exchange.encode(), message.routing_key.encode()
        return b"".join(
            (
                _METHOD(1, self._channel.number, len(exchange) + len(key) + 9, *_PUBLISH, 0),
                len(exchange).to_bytes(),
                exchange,
                len(key).to_bytes(),
                key,
                message.mandatory.to_bytes(),
                _FRAME_END,
            )
        )

    # Batches wait for the client's writer

    def _has_room(self) -> bool:
        """Whether a batch takes messages, or one could be opened at once."""
        if self._takes_more():
            return True
        if self._is_open():
            _at_once(self._open_batch())
        return self._takes_more()

    async def _make_room(self) -> bool:
        """Wait until one does; False where this channel will have none."""
        while not self._has_room():
            if not self._is_open():
                return False
            opening = asyncio.create_task(self._open_batch())
            try:
                await asyncio.wait((opening, self.ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                opening.cancel()
        return True

    async def _open_batch(self) -> None:
        channel = self._channel
        with contextlib.suppress(*CLIENT_ERRORS):  # of a channel that ends
            await channel.connection.ready()  # not while the broker blocks us
            async with channel.lock:  # nobody is between numbering a message and writing it
                batch = _Batch(channel.delivery_tag)
                await channel.write_queue.put(batch)
                self._batch = batch

    def _on_closed(self, closing: "asyncio.Future[Any]") -> None:
        for confirmation in self._unconfirmed():
            confirmation.drop()
        error = None if closing.cancelled() else closing.exception()
        self.give_up(error or asyncio.CancelledError())

    # Confirmations

    def _unconfirmed(self) -> "list[_Confirmation]":
        all_of_them = self._channel.confirmations.values()
        return [
            each for each in all_of_them if isinstance(each, _Confirmation) and each.wire is self
        ]

    def _unconfirmed_of(self, message_id: str) -> "_Confirmation | None":
        channel = self._channel
        tag = channel.message_id_delivery_tag.get(message_id)
        confirmation = None if tag is None else channel.confirmations.get(tag)
        return confirmation if isinstance(confirmation, _Confirmation) else None


class _Batch:
    """What the client's writer takes out of its queue as one frame: all that joined until then.

    Attributes:
        last: the channel's number for the last message, or for the one before the first.
        size: of the messages, in bytes, more or less; very large when it takes no more.
        is_written: whether the writer has it: until then, nothing can arrive.
        should_close, should_drain: what the writer wants to know.
    """

    __slots__ = ("_frames", "is_written", "last", "size")

    should_close = False
    should_drain = True

    def __init__(self, last: int) -> None:
        self.last, self.size, self.is_written = last, 0, False
        self._frames: list[bytes] = []

    def add(self, frames: list[bytes], size: int) -> None:
        """A message joins."""
        self._frames += frames
        self.size += size

    @property
    def payload(self) -> bytes:
        """All bytes, for the writer, which asks once."""
        self.is_written = True
        return b"".join(self.close())

    def close(self) -> list[bytes]:
        """What joined until now; nothing joins any more."""
        frames, self._frames, self.size = self._frames, [], _UNLIMITED
        return frames

    def drain(self) -> None:
        """The connection takes more bytes; nobody waits for that."""


class _Confirmation:
    """What the client tells of one message, of which it expects a future's methods.

    It is never done for the client: whoever waited may have gone, and what the broker says of this
    message must still be taken for it, and for no other.

    Attributes:
        wire: on which it was published, which need not be the only one of its channel.
        outcome: what became of it; cancelled by whoever no longer wants to know.
        forget: where the client finds this message by its id: the ids, its own and its number.
    """

    __slots__ = ("_batch", "_told", "forget", "outcome", "wire")

    def __init__(self, wire: Wire, batch: _Batch) -> None:
        self.wire, self._batch = wire, batch
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.forget: tuple[dict[str, int], str, int] | None = None
        self._told: asyncio.Future[None] | None = None

    @property
    def told(self) -> "asyncio.Future[None]":
        """Is done when the broker or the client has told, whoever waits for the outcome."""
        if self._told is None:
            self._told = asyncio.get_running_loop().create_future()
        return self._told

    def done(self) -> bool:
        """Whether it takes no outcome."""
        return False

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return False

    def set_result(self, result: Any) -> None:
        """The broker confirmed it; or gave it back, on a channel where that is no error."""
        self._tell(not isinstance(result, DeliveredMessage))

    def set_exception(self, error: BaseException) -> None:
        """The broker gave it back or refused it, or can't tell any more."""
        self._tell(False if isinstance(error, PublishError) else error)

    def drop(self) -> None:
        """The channel has ended: what was not written never will be."""
        if not self._batch.is_written:
            self._batch.close()
            self._tell(None)

    def _tell(self, outcome: Outcome) -> None:
        if not self.outcome.done():  # nor did who waited go, nor has the channel ended before
            self.outcome.set_result(outcome)
        if self._told is not None and not self._told.done():
            self._told.set_result(None)
        if self.forget is not None:
            ids, message_id, tag = self.forget
            if ids.get(message_id) == tag:
                del ids[message_id]


def _at_once(waiting: Coroutine[Any, Any, None]) -> None:
    """Run it to its end if it need not wait; else have it cancelled where it waits."""
    with contextlib.suppress(StopIteration, asyncio.CancelledError):
        waiting.send(None)
        waiting.throw(asyncio.CancelledError())  # `close` leaves a lock's waiter there before 3.13
