"""Publisher: publishes on shared channels so that one bad message fails alone.

A broker answers some mistakes by closing the channel: all that was in flight on it then has no
known outcome, and what was refused can't be told from what was stored. So whatever was never seen
to be allowed (an exchange, a larger body, a user id) goes out first on a channel of its own, where
a closed channel is certainly this message's own refusal.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeAlias

from aiormq import ChannelAccessRefused, ChannelNotFoundEntity
from aiormq.abc import AbstractChannel

from dispytch import EmitRejected
from dispytch_rabbitmq.connection import open_channel
from dispytch_rabbitmq.errors import (
    CLIENT_ERRORS,
    Meaning,
    emit_error,
    meaning,
)
from dispytch_rabbitmq.properties import Message
from dispytch_rabbitmq.wire import Wire

__all__ = ["GetChannel", "Publisher"]

GetChannel: TypeAlias = Callable[[], Awaitable[AbstractChannel]]
"""Waits for a channel that is open."""

_MAX_PROVEN = 10_000
_PAUSE = 0.02


class Publisher:
    """Publishes messages and waits for their confirmations.

    Args:
        login: the user's name, or "" if it is not known.

    Attributes:
        forbidden: exchanges that we may not write to, as far as tried.
        missing: exchanges that were not there when tried last.
    """

    def __init__(self, login: str) -> None:
        self._login = login
        self._wires: dict[AbstractChannel, Wire] = {}
        self._alone = asyncio.Lock()
        self._pending, self._idle, self._closed = 0, asyncio.Event(), False
        self._idle.set()
        self._trial: AbstractChannel | None = None
        self._proven: set[Hashable] = set()
        self._largest = -1
        self._guarded: set[str] = set()  # exchanges that refuse some routing keys
        self.forbidden: set[str] = set()
        self.missing: set[str] = set()

    async def publish(self, message: Message, channel_of: GetChannel) -> bool:
        """Publish one message; returns when the broker has it, or gave it back.

        What was not yet written when its connection ended waits for the next one: until its
        deadline, at which the emitter cancels it.

        Returns:
            True; False for a mandatory message that no queue receives: it is not stored.

        Raises:
            EmitRejected: it certainly is not stored.
            EmitUnknown: it may be.
        """
        self._pending += 1
        self._idle.clear()
        try:
            while True:
                if self._closed:
                    raise EmitRejected("not sent: the producer was stopped")
                if (routed := await self._attempt(message, channel_of)) is not None:
                    return routed
                await asyncio.sleep(_PAUSE)
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()

    async def drain(self) -> None:
        """Wait until every message has its outcome."""
        await self._idle.wait()

    async def close(self, timeout: float) -> None:
        """Refuse further messages, and give up what has no outcome yet."""
        self._closed = True
        for wire in list(self._wires.values()):
            wire.give_up(asyncio.CancelledError())
        if self._trial is not None and not self._trial.is_closed:
            with contextlib.suppress(*CLIENT_ERRORS):
                async with asyncio.timeout(timeout):
                    await self._trial.connection.ready()
                    await self._trial.close()

    # One message

    async def _attempt(self, message: Message, channel_of: GetChannel) -> bool | None:
        """Whether it was published; None where nothing of it was written."""
        if not self._is_proven(message):
            async with self._alone:
                if not self._is_proven(message):
                    return await self._publish_alone(message, await channel_of())
        return await self._publish(message, self._wire(await channel_of()), alone=False)

    async def _publish_alone(self, message: Message, shared: AbstractChannel) -> bool | None:
        self._check_size(message, self._wire(shared))
        try:
            channel = await self._trial_channel(shared)
        except CLIENT_ERRORS:
            return None
        return await self._publish(message, self._wire(channel), alone=True)

    async def _trial_channel(self, shared: AbstractChannel) -> AbstractChannel:
        """A channel with nothing on it: the last one, unless it is closed or still waits.

        It is kept rather than closed: aiormq closes a channel twice where the answer is late, as on
        a connection that the broker blocks, and the broker then ends the connection.
        """
        trial = self._trial
        if (
            trial is None
            or trial.is_closed
            or trial.connection is not shared.connection
            or not self._wire(trial).is_idle
        ):
            await shared.connection.ready()
            self._trial = trial = await open_channel(shared.connection)
        return trial

    async def _publish(self, message: Message, wire: Wire, *, alone: bool) -> bool | None:
        self._check_size(message, wire)
        if self._closed:
            return None
        told = await wire.publish(message)
        if isinstance(told, BaseException):
            self._learn(message, told, alone=alone)
            raise emit_error(told, alone=alone, login=self._login)
        if told is not None and alone:
            self._learn(message, None, alone=True)
        return told

    def _wire(self, channel: AbstractChannel) -> Wire:
        wire = self._wires.get(channel)
        if wire is None:
            wire = self._wires[channel] = Wire(channel)
            wire.ended.add_done_callback(lambda _: self._wires.pop(channel, None))
        return wire

    def _check_size(self, message: Message, wire: Wire) -> None:
        if message.header_size > wire.max_header_size:
            raise EmitRejected(
                f"headers: {message.header_size} bytes, "
                f"but {wire.max_header_size} fit into a frame here"
            )

    # What is known to be allowed

    def _claims(self, message: Message) -> tuple[Hashable, ...]:
        guarded = message.exchange in self._guarded
        where = (message.exchange, message.routing_key) if guarded else message.exchange
        user = message.user_id
        return (where,) if user is None else (where, ("user", user))

    def _is_proven(self, message: Message) -> bool:
        return len(message.body) <= self._largest and self._proven.issuperset(self._claims(message))

    def _learn(self, message: Message, error: BaseException | None, *, alone: bool) -> None:
        if error is None or meaning(error) is Meaning.REFUSED:
            self.forbidden.discard(message.exchange)
            self.missing.discard(message.exchange)
            if len(self._proven) > _MAX_PROVEN:
                self._proven.clear()
            self._proven.update(self._claims(message))
            self._largest = max(self._largest, len(message.body))
        elif meaning(error) is Meaning.CHANNEL_REFUSED:
            if "access to topic" in str(error):
                self._guarded.add(message.exchange)
            elif isinstance(error, ChannelAccessRefused):
                self.forbidden.add(message.exchange)
            elif isinstance(error, ChannelNotFoundEntity):
                self.missing.add(message.exchange)
            if not alone:  # what was allowed no longer is
                self._proven.clear()
                self._largest = -1
