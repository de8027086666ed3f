"""Publisher: publishes on shared channels so that one bad message fails alone.

A broker answers some mistakes by closing the channel: all that was in flight on it then has no
known outcome, and what was refused can't be told from what was stored. So whatever was never seen
to be allowed (an exchange, a larger body, a user id) goes out first on a channel of its own, where
a closed channel is certainly this message's own refusal.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeAlias

from aiormq import ChannelAccessRefused, ChannelNotFoundEntity, PublishError
from aiormq.abc import AbstractChannel, DeliveredMessage

from dispytch import EmitRejected
from dispytch_rabbitmq.connection import open_channel
from dispytch_rabbitmq.errors import (
    CLIENT_ERRORS,
    Meaning,
    emit_error,
    meaning,
)
from dispytch_rabbitmq.properties import Message

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
        self._tasks: set[asyncio.Task[Any]] = set()
        self._by_id: dict[str, asyncio.Task[Any]] = {}
        self._alone = asyncio.Lock()
        self._pending, self._idle, self._closed = 0, asyncio.Event(), False
        self._idle.set()
        self._trial: AbstractChannel | None = None
        self._trial_task: asyncio.Task[Any] | None = None
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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
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
        channel = await channel_of()
        while (earlier := self._by_id.get(message.id)) is not None:
            await asyncio.wait((earlier,))  # a returned message is told by its id alone
            channel = await channel_of()
        self._check_size(message, channel)
        return await self._publish(message, channel, alone=False)

    async def _publish_alone(self, message: Message, shared: AbstractChannel) -> bool | None:
        self._check_size(message, shared)
        try:
            channel = await self._trial_channel(shared)
        except CLIENT_ERRORS:
            return None
        return await self._publish(message, channel, alone=True)

    async def _trial_channel(self, shared: AbstractChannel) -> AbstractChannel:
        """A channel with nothing on it: the last one, unless it is closed or still waits.

        It is kept rather than closed: aiormq closes a channel twice where the answer is late, as on
        a connection that the broker blocks, and the broker then ends the connection.
        """
        trial, busy = self._trial, self._trial_task is not None and not self._trial_task.done()
        if trial is None or busy or trial.is_closed or trial.connection is not shared.connection:
            await shared.connection.ready()
            self._trial = trial = await open_channel(shared.connection)
        return trial

    async def _publish(
        self, message: Message, channel: AbstractChannel, *, alone: bool
    ) -> bool | None:
        """Publish in a task: cancelled half-way, the client could mix up its confirmations."""
        task = asyncio.create_task(_confirmed(message, channel))
        self._tasks.add(task)
        if alone:
            self._trial_task = task
        else:
            self._by_id[message.id] = task
        task.add_done_callback(lambda done: self._forget(message, done))
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            if not message.properties.written:
                task.cancel()
            raise
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and meaning(error) is Meaning.LOST and not message.properties.written:
            return None
        self._learn(message, error, alone=alone)
        if isinstance(error, PublishError):
            return False
        if error is not None:
            raise emit_error(error, alone=alone, login=self._login)
        return not isinstance(task.result(), DeliveredMessage)  # so without on_return_raises

    def _forget(self, message: Message, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._by_id.get(message.id) is task:
            del self._by_id[message.id]
        if not task.cancelled():
            task.exception()  # it has been seen, also where its caller has gone

    def _check_size(self, message: Message, channel: AbstractChannel) -> None:
        """Headers travel in one frame; the broker ends the connection where it is too large."""
        allowed = channel.connection.connection_tune.frame_max - 4096  # other properties: < 3 KiB
        if message.header_size > allowed:
            raise EmitRejected(
                f"headers: {message.header_size} bytes, but {allowed} fit into a frame here"
            )

    # What is known to be allowed

    def _claims(self, message: Message) -> tuple[Hashable, ...]:
        guarded = message.exchange in self._guarded
        where = (message.exchange, message.routing_key) if guarded else message.exchange
        user = message.properties.user_id
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


async def _confirmed(message: Message, channel: AbstractChannel) -> Any:
    await channel.connection.ready()  # not while the broker blocks us
    return await channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=message.properties,
        mandatory=message.mandatory,
    )
