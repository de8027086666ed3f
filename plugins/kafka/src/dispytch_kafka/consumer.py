"""KafkaConsumer: receives events from Kafka."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Self

from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from dispytch import ConfigError, ConnectError, Consumer, Delivery, Producer, Subscription
from dispytch_kafka.client import (
    NO_GRACE,
    STOP_GRACE,
    close_client,
    connections_of,
    is_started,
    opened,
    ping,
    start_client,
)
from dispytch_kafka.connection import KafkaConnection
from dispytch_kafka.delivery import Inbox
from dispytch_kafka.errors import BACKEND, Reading, as_connect_error, reading_of, told
from dispytch_kafka.group import Group
from dispytch_kafka.groupless import Groupless
from dispytch_kafka.producer import KafkaProducer
from dispytch_kafka.session import Reader, Session, Stuck
from dispytch_kafka.topics import Wanted, create_topic, missing

__all__ = ["KafkaConsumer"]

logger = logging.getLogger("dispytch")

_LARGEST_DEAD_LETTER = 64 * 1024 * 1024

_LAST_COMMIT = 3.0
"""Seconds that the commit at the end may take."""

_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two attempts to get a new client: first, and at most."""


class KafkaConsumer(Consumer):
    """Receives events from Kafka through aiokafka.

    Args:
        client: an `AIOKafkaConsumer` of your own, made with `enable_auto_commit=False` and the
            group that is subscribed with; or a `KafkaConnection`: then clients are built here, and
            built anew whenever one can't go on.
        owned: whether `start` starts and `stop` stops a client of yours. None: `stop` stops it if
            `start` started it, that is, if it was not running before. One that is not stopped
            leaves its group. A client that was stopped can't be started again.

    Raises:
        ConfigError: `client` is neither, or commits by itself, or deserializes.
    """

    backend = BACKEND

    def __init__(
        self, client: AIOKafkaConsumer | KafkaConnection, *, owned: bool | None = None
    ) -> None:
        self._connection = client if isinstance(client, KafkaConnection) else None
        self._own: Any = client if isinstance(client, AIOKafkaConsumer) else None
        if self._own is not None:
            _check(self._own)
        elif self._connection is None:
            raise ConfigError(
                "KafkaConsumer takes an AIOKafkaConsumer or a KafkaConnection, "
                f"not a {type(client).__name__}"
            )
        self._options = self._connection or KafkaConnection(hosts=("unused",))
        self._owned = owned
        self._closes = self._connection is not None
        self._group: str | None = None
        self._wanted = Wanted(())
        self._inbox = Inbox()
        self._client: Any = None
        self._reader: Reader | None = None
        self._session: Session | None = None
        self._keeping: asyncio.Task[None] | None = None

    @classmethod
    def from_connection(cls, connection: KafkaConnection, /) -> Self:
        """Make a consumer from a URL's connection; `start` builds its client.

        Raises:
            ConfigError: a TLS file can't be loaded.
        """
        connection.ssl_context()
        return cls(connection)

    async def start(self) -> None:
        """Connect; with a client of yours, where it is not started and `owned` is not False.

        Raises:
            ConnectError: no broker can be reached, they refuse us, or the client can't be started.
        """
        if self._client is not None:
            return
        self._inbox = Inbox()
        if self._connection is not None:
            self._client = await self._open_client(None)
            return
        running = is_started(self._own)
        self._closes = not running if self._owned is None else self._owned
        if not running:
            if self._owned is False:
                raise ConnectError(
                    "this AIOKafkaConsumer is yours to start (owned=False): await its start() "
                    "first",
                    backend=BACKEND,
                    retriable=False,
                )
            try:
                await start_client(self._own)
            except KafkaError as error:
                raise as_connect_error(error, "can't connect to Kafka") from error
        self._client = self._own

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        """Begin to receive. Topics that are missing are created, with the broker's defaults.

        Without a group it returns once the position in each partition is fixed; with one, once
        partitions are assigned, or after 5 s: other members may need up to `rebalance_timeout_ms`
        to finish, or `session_timeout_ms` to be found dead. Nothing is missed meanwhile.

        Raises:
            ConfigError: a topic's name is not legal, or the subscriptions name several groups, or
                another one than the client of yours.
            ConnectError: the brokers don't answer or refuse us; or a topic is missing and can't be
                created, naming it.
        """
        self._wanted = Wanted(subscriptions)
        self._group = self._only_group(subscriptions)
        if self._client is None:
            raise ConnectError("the Kafka consumer is not started", backend=BACKEND)
        options = self._options
        if self._group is None:
            self._reader = Groupless(
                self._wanted,
                self._inbox,
                discovery_interval=options.discovery_interval_ms / 1000,
            )
        else:
            self._reader = Group(
                self._wanted,
                self._inbox,
                drain_timeout=self.drain_timeout,
                commit_interval=options.commit_interval_ms / 1000,
                commit_every=options.commit_every,
            )
            if self._connection is not None:  # the client so far is of no group
                await close_client(self._client)
                self._client = None
        self._session = await self._open_session(self._reader)
        self._keeping = asyncio.get_running_loop().create_task(self._keep_going(self._reader))

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        """Wait for deliveries: at least one, at most `limit`. Nothing is fetched in between.

        While brokers are away it waits: the client connects again, or a new one does.

        Raises:
            ConnectError: not retriable: access was denied, or the client of yours can't go on.
        """
        return await self._inbox.take(limit)

    async def ping(self) -> None:
        """Ask any broker for the cluster's layout.

        Raises:
            ConnectError: none answers, or the consumer is not started or is connecting.
        """
        if self._keeping is not None and self._session is None:
            raise ConnectError("Kafka: connecting again", backend=self.backend)
        if self._client is None:
            raise ConnectError("the Kafka consumer is not started", backend=self.backend)
        await ping(self._client)

    async def backlog(self) -> int | None:
        """How many records of the assigned partitions are not done; None: not known now."""
        if self._session is None:
            return None
        try:
            return await self._session.backlog()
        except KafkaError:
            return None

    def dead_letter_producer(self) -> Producer | None:
        """A producer to the same brokers; None with a client of yours."""
        connection = self._dead_letter_connection()
        return None if connection is None else KafkaProducer(connection)

    async def stop(self) -> None:
        """Commit what is done, leave the group and close what is ours, within about 8 s."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        self._inbox.fail(ConnectError("the Kafka consumer is stopped", backend=self.backend))
        reader, self._reader, self._keeping = self._reader, None, None
        await self._close_client(reader)

    def _dead_letter_connection(self) -> KafkaConnection | None:
        """The connection, fit for the largest events.

        The brokers limit what others sent by its compressed size, a client by that before.
        """
        connection = self._connection
        if connection is None:
            return None
        larger: dict[str, Any] = {
            "max_request_bytes": max(connection.max_request_bytes, _LARGEST_DEAD_LETTER)
        }
        if connection.compression == "none":
            larger["compression"] = "gzip"
        return connection.model_copy(update=larger)

    def _only_group(self, subscriptions: Sequence[Subscription]) -> str | None:
        groups = {subscription.group for subscription in subscriptions}
        if len(groups) != 1:
            raise ConfigError(f"a Kafka consumer is a member of one group, not of {groups}")
        (group,) = groups
        if self._own is not None and group != self._own._group_id:
            raise ConfigError(
                f"subscribed with the group {group!r}, but this AIOKafkaConsumer was made with "
                f"group_id={self._own._group_id!r}"
            )
        return group

    async def _open_client(self, group: str | None) -> Any:
        if self._connection is None:
            return self._own
        settings = self._connection.consumer_settings(group, self.drain_timeout)
        return await opened(AIOKafkaConsumer, settings)

    async def _open_session(self, reader: Reader) -> Session:
        """Subscribe with the client there is, or a new one; nothing is left behind on failure."""
        try:
            if self._client is None:
                self._client = await self._open_client(self._group)
            await self._create_missing()
            await reader.join(self._client)
        except KafkaError as error:
            await self._close_client(reader)
            raise _refused(error, "can't subscribe") from error
        except BaseException:
            await self._close_client(reader)
            raise
        interval = self._client._max_poll_interval_ms / 1000
        replaceable = self._connection is not None
        return Session(
            self._client,
            reader,
            self._inbox,
            max_poll_interval=interval,
            replaceable=replaceable,
        )

    async def _create_missing(self) -> None:
        connections = connections_of(self._client)
        for topic in await missing(connections, self._wanted.literals):
            try:
                await create_topic(connections, topic)
            except (KafkaError, TimeoutError) as error:
                raise _refused(
                    error, f"the topic {topic!r} does not exist and can't be created"
                ) from error

    async def _keep_going(self, reader: Reader) -> None:
        """Have a session at all times; what ends that, `receive` tells."""
        try:
            while self._session is not None:
                await self._outlive(self._session)
                self._session = None
                await self._close_client(reader)
                self._session = await self._next_session(reader)
        except Exception as error:  # noqa: BLE001 - whatever it is must reach somebody
            self._session = None
            self._inbox.fail(error)

    async def _outlive(self, session: Session) -> None:
        """Return when a session has ended and another client may do better.

        Raises:
            ConnectError: none will.
        """
        try:
            await session.run()
        except (KafkaError, Stuck, AssertionError) as error:  # it asserts its own states
            if self._connection is None or reading_of(error) is Reading.REFUSED:
                refused = _refused(error, "can't receive")
                refused.retriable = False
                raise refused from error
            logger.warning("kafka: the client can't go on and is replaced: %s", told(error))

    async def _next_session(self, reader: Reader) -> Session:
        """Try until there is one.

        Raises:
            ConnectError: trying again is of no use.
        """
        pause = _PAUSE
        while True:
            try:
                return await self._open_session(reader)
            except ConnectError as error:
                if not error.retriable:
                    raise
                logger.warning("kafka: no new client yet: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _close_client(self, reader: Reader | None) -> None:
        """End the assignments and the client, or our use of it."""
        client, self._client, self._session = self._client, None, None
        if client is None:
            return
        committed = reader is None or await reader.leave(_LAST_COMMIT)
        if self._closes:
            await close_client(client, STOP_GRACE if committed else NO_GRACE)
        else:
            client.unsubscribe()


def _check(client: Any) -> None:
    """Refuse a client whose settings would lose events or change their bytes."""
    if client._group_id is not None and client._enable_auto_commit:
        raise ConfigError(
            "this AIOKafkaConsumer commits by itself, whether events were handled or not: make it "
            "with enable_auto_commit=False"
        )
    if client._key_deserializer or client._value_deserializer:
        raise ConfigError(
            "this AIOKafkaConsumer deserializes, but events come as bytes: make it without "
            "key_deserializer and value_deserializer"
        )


def _refused(error: BaseException, where: str) -> ConnectError:
    refused = as_connect_error(error, where)
    refused.retriable = refused.retriable and reading_of(error) is not Reading.REFUSED
    return refused
