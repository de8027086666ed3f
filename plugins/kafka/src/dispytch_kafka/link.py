"""Link: the client in use, and its replacement when it can't go on."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    KafkaTimeoutError,
    ProducerClosed,
)

from dispytch import ConnectError, EmitRejected, EmitUnknown, ProducerTimeout
from dispytch_kafka.client import (
    NO_GRACE,
    STOP_GRACE,
    close_client,
    hand_over,
    is_started,
    open_client,
    queue_own,
    queue_users,
    start_client,
)
from dispytch_kafka.connection import KafkaConnection
from dispytch_kafka.errors import BACKEND, Fate, as_connect_error, fate_of
from dispytch_kafka.partitions import partition_for
from dispytch_kafka.record import Record

__all__ = ["Link"]


class Link:
    """The `AIOKafkaProducer` in use.

    Args:
        connection: how to build one; None where the user gave one.
        client: the user's own, or None.
        owned: whether we start and stop the user's own; None: stop it if we started it.
    """

    def __init__(
        self, connection: KafkaConnection | None, client: Any, *, owned: bool | None
    ) -> None:
        self._connection = connection
        self._client = client
        self._owned = owned
        # Puts a record into a client's queue, if there is room.
        self.queue = queue_users if connection is None else queue_own
        self._closes = True
        self._grace = STOP_GRACE  # what a client gets to say goodbye
        self._replacing: asyncio.Task[None] | None = None
        self._users: Counter[Any] = Counter()  # how many deliveries each client has under way
        self._replaced: set[Any] = set()  # clients that their last user is to close
        self._closing: set[asyncio.Task[None]] = set()
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        """Connect; see `KafkaProducer.start`."""
        self._grace = STOP_GRACE
        if self._connection is not None:
            if self._client is None:
                self._client = await open_client(self._connection)
            return
        running = is_started(self._client)
        self._closes = not running if self._owned is None else self._owned
        if running:
            return
        if self._owned is False:
            raise ConnectError(
                "this AIOKafkaProducer is yours to start (owned=False): await its start() first",
                backend=BACKEND,
                retriable=False,
            )
        try:
            await start_client(self._client)
        except KafkaError as error:
            raise as_connect_error(error, "can't connect to Kafka") from error

    async def stop(self) -> None:
        """Close what is ours to close, within a few seconds whatever happens."""
        if self._replacing is not None and not self._replacing.done():
            self._replacing.cancel()
            await asyncio.wait({self._replacing})
        clients = [*self._replaced]
        if self._client is not None and self._closes:
            clients.append(self._client)
        if self._connection is not None:
            self._client = None
        self._replaced.clear()
        closing = [close_client(client, self._grace) for client in clients]
        await asyncio.gather(*self._closing, *closing)

    async def flush(self, first: Callable[[], Awaitable[None]]) -> None:
        """Wait until all has an outcome; see `KafkaProducer.flush`.

        Args:
            first: empties what will still be handed to the client.
        """
        scope = asyncio.timeout(STOP_GRACE)
        try:
            async with scope:
                await first()
                await self.running().flush()
        except (TimeoutError, asyncio.CancelledError) as error:
            self._grace = NO_GRACE  # its time is used up: a `stop` that follows need not wait again
            if not scope.expired():
                raise
            raise ProducerTimeout(
                f"Kafka did not confirm everything within {STOP_GRACE:g} s", retriable=True
            ) from error

    def running(self) -> Any:
        """The client to send with.

        Raises:
            EmitRejected: there is none: not started, or stopped meanwhile.
        """
        if self._client is None:
            raise EmitRejected("the Kafka producer is not started", retriable=True)
        return self._client

    async def deliver(
        self, queue: Callable[[Any], Awaitable[asyncio.Future[Any]]], topic: str, deadline: float
    ) -> Any:
        """Hand something to the client and wait for the broker's answer.

        What a client refuses because it can't go on was not stored: another one gets it.

        Args:
            queue: puts it into a client's queue; the future is the answer.
            topic: for messages.
            deadline: on the loop's clock; the wait for the answer itself is the caller's to bound.

        Raises:
            EmitRejected: it was not queued, or is not stored, and no client can do better.
            EmitUnknown: the user's client asks for no confirmation.
            KafkaError: it was queued, and met this; `errors` tells what that means.
        """
        while True:
            client = self.running()
            self._users[client] += 1
            try:
                queued = await hand_over(queue(client), topic, deadline)
                return _confirmed(await queued)
            except EmitRejected as rejection:
                cause = rejection.__cause__
                if isinstance(cause, KafkaTimeoutError):  # its queue is full: that is ours to wait
                    continue
                if fate_of(cause) not in {Fate.SPENT, Fate.BROKEN} or self._connection is None:
                    raise
                await hand_over(self._replace(client, self._connection), topic, deadline)
            except KafkaError as error:
                if fate_of(error) is not Fate.SPENT or self._connection is None:
                    raise
                await hand_over(self._replace(client, self._connection), topic, deadline)
            finally:
                self._leave(client)

    async def answer(self, client: Any, queued: asyncio.Future[Any]) -> Any:
        """Wait for the broker's answer; the client stays open until then.

        Raises:
            EmitUnknown, KafkaError: as `deliver`.
        """
        self._users[client] += 1
        try:
            return _confirmed(await queued)
        finally:
            self._leave(client)

    async def partition_for(self, record: Record, deadline: float) -> int:
        """Ask for the partition a record goes to.

        Raises:
            EmitRejected: there is none, or none is known shortly before the deadline.
        """
        client = self.running()
        self._users[client] += 1
        try:
            return await hand_over(partition_for(client, record), record.topic, deadline)
        finally:
            self._leave(client)

    @property
    def renews(self) -> bool:
        """Whether a client that can't go on is replaced."""
        return self._connection is not None

    async def queue_batch(
        self, client: Any, builder: Any, topic: str, partition: int
    ) -> asyncio.Future[Any]:
        """Queue a batch as it is, in turn: aiokafka lets those who wait for a place starve.

        Raises:
            ProducerClosed: while it waited, the client was replaced.
        """
        builder.close()
        async with self._turns[topic, partition]:
            if client is not self._client:
                raise ProducerClosed
            queued: asyncio.Future[Any] = await client.send_batch(
                builder, topic, partition=partition
            )
            return queued

    async def _replace(self, client: Any, connection: KafkaConnection) -> None:
        """Have a new client in the place of one that can't go on.

        All who wait for it wait for one attempt, which none of their deadlines ends.
        """
        if self._client is not client:
            return  # it has been done
        if self._replacing is None or self._replacing.done():
            replacing = self._put_successor(client, connection)
            self._replacing = asyncio.get_running_loop().create_task(replacing)
        try:
            await asyncio.shield(self._replacing)
        except ConnectError as error:
            raise EmitRejected(f"not stored, and {error}", retriable=error.retriable) from error

    async def _put_successor(self, client: Any, connection: KafkaConnection) -> None:
        self._client = await open_client(connection)
        self._replaced.add(client)
        self._users[client] += 1  # all of them may have gone meanwhile: then nobody else closes it
        self._leave(client)

    def _leave(self, client: Any) -> None:
        """Close a replaced client after its last user.

        Until then it stays open: what it has under way for other partitions may end well, and what
        waits for a place in the queue of a stopped client waits for ever.
        """
        self._users[client] -= 1
        if self._users[client]:
            return
        del self._users[client]
        if client in self._replaced:
            self._replaced.discard(client)
            closing = asyncio.get_running_loop().create_task(close_client(client))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _confirmed(stored: Any) -> Any:
    if stored is None:
        raise EmitUnknown("sent, but a client with acks=0 never learns what became of it")
    return stored
