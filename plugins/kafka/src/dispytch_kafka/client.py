"""What is needed of aiokafka beyond sending: opening, closing for sure, queueing at once.

With `partitions` the only module that reaches behind aiokafka's public surface, and only where
that leaves no way.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.conn import collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalOperation,
    KafkaConnectionError,
    KafkaError,
    ProducerClosed,
    UnknownError,
    kafka_errors,
)

from dispytch import EmitRejected
from dispytch_kafka.connection import KafkaConnection
from dispytch_kafka.errors import as_connect_error, as_rejected
from dispytch_kafka.partitions import choose_partition
from dispytch_kafka.record import Record

__all__ = [
    "HANDOVER_MARGIN",
    "NO_GRACE",
    "STOP_GRACE",
    "append",
    "check_size",
    "close_client",
    "connections_of",
    "hand_over",
    "is_started",
    "not_handed_over",
    "open_client",
    "opened",
    "ping",
    "queue_own",
    "queue_users",
    "start_client",
]

logger = logging.getLogger("dispytch")

T = TypeVar("T")

STOP_GRACE = 5.0
"""Seconds that a client gets to send what it holds and to say goodbye."""

NO_GRACE = 0.5
"""Seconds that one gets whose brokers don't answer: enough to close sockets."""

HANDOVER_MARGIN = 0.05
"""Seconds before an event's deadline when the attempt to hand it to the client ends: what was not
handed over is certainly not stored, and there must be time left to say so."""

_QUESTIONS, _BETWEEN_QUESTIONS = 3, 0.1
"""How often, and with how many seconds between, brokers are asked for a sign of life: one that has
just started knows of no broker, and the client takes that for no answer."""

_RECORD_OVERHEAD = 82  # header of a batch of one, and the largest lengths a record can need


class InvalidRecord(UnknownError):  # type: ignore[misc]  # noqa: N818 - the broker's own name
    """Error 87: refused for a record, for example one without a key for a compacted topic."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The broker failed to validate a record of the batch"


class UnsupportedCompressionType(UnknownError):  # type: ignore[misc]  # noqa: N818 - the broker's own name
    """Error 76: the broker does not know how a batch is compressed."""

    errno = 76
    message = "UNSUPPORTED_COMPRESSION_TYPE"
    description = "The broker does not support the compression of the batch"


# aiokafka reports the codes it does not know as UnknownError, which may mean anything.
for _error in (InvalidRecord, UnsupportedCompressionType):
    kafka_errors.setdefault(_error.errno, _error)


class _NoCredentials(logging.Filter):
    """aiokafka logs who logged in and, for debugging, the bytes of every request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is free of credentials."""
        values = record.args if isinstance(record.args, tuple) else (record.args,)
        return not str(record.msg).startswith("Authenticated as") and not any(
            "Sasl" in type(value).__name__ for value in values
        )


logging.getLogger("aiokafka.conn").addFilter(_NoCredentials())


async def open_client(connection: KafkaConnection) -> Any:
    """A started `AIOKafkaProducer`, or nothing left behind.

    Raises:
        ConnectError: no broker can be reached, or they refuse us.
    """
    return await opened(
        AIOKafkaProducer, connection.producer_settings() | {"partitioner": choose_partition}
    )


async def opened(kind: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """A started client, or nothing left behind.

    Args:
        kind: `AIOKafkaProducer` or `AIOKafkaConsumer`.
        settings: what it is made with.

    Raises:
        ConnectError: no broker can be reached, or they refuse us.
    """
    client = kind(**settings)
    try:
        await start_client(client)
    except KafkaConnectionError as error:
        await close_client(client, grace=NO_GRACE)
        reason = await _reason(settings, error)
        raise as_connect_error(reason, "can't connect to Kafka") from reason
    except BaseException:  # at a deadline too: there is no time for a farewell
        await close_client(client, grace=NO_GRACE)
        raise
    return client


async def start_client(client: Any) -> None:
    """Start a client.

    Raises:
        ConnectError: the brokers refuse us.
        KafkaConnectionError: no broker can be reached.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.wait({starting})
    finally:
        if not starting.done():
            _close_bootstrapping(starting)
            starting.cancel()
            await asyncio.wait({starting})
    try:
        starting.result()
    except KafkaConnectionError:
        raise
    except (KafkaError, OSError) as error:
        raise as_connect_error(error, "can't connect to Kafka") from error


def _close_bootstrapping(starting: asyncio.Task[None]) -> None:
    """Close the connection that `bootstrap` keeps to itself, and forgets when it is cancelled."""
    bootstrapping = getattr(starting.get_coro(), "cr_await", None)
    frame = getattr(bootstrapping, "cr_frame", None)
    connection = frame.f_locals.get("bootstrap_conn") if frame is not None else None
    if connection is not None:
        connection.close()


async def _reason(settings: dict[str, Any], failure: BaseException) -> BaseException:
    """Why bootstrapping failed: aiokafka only logs it, so one more try tells."""
    names = ("client_id", "request_timeout_ms", "ssl_context", "security_protocol")
    login = {name: value for name, value in settings.items() if name.startswith("sasl_")}
    how = {name: settings[name] for name in names} | login
    for host, port, _ in collect_hosts(settings["bootstrap_servers"]):
        try:
            connection = await create_conn(host, port, **how)
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            return error
        connection.close()
    return failure


def connections_of(client: Any) -> Any:
    """The `AIOKafkaClient` of a producer or a consumer."""
    return client.client if isinstance(client, AIOKafkaProducer) else client._client


def is_started(client: Any) -> bool:
    """Whether somebody has started this client: then it knows brokers."""
    return bool(connections_of(client).cluster.brokers())


async def close_client(client: Any, grace: float = STOP_GRACE) -> None:
    """Stop a client within `grace` seconds and a little, whatever state it and the brokers are in.

    What it still holds is sent if the brokers take it, and dropped otherwise.
    """
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait({stopping}, timeout=grace)
    finally:
        # With the brokers gone `stop` waits for them, or is cancelled from within.
        if not stopping.done() or stopping.cancelled() or stopping.exception() is not None:
            logger.warning("kafka: brokers don't answer; the client is dropped with what it holds")
            await _abandon(client, stopping)


async def _abandon(client: Any, stopping: asyncio.Task[None]) -> None:
    """End what a `stop` left: tasks, connections, and futures that somebody may wait for.

    The client keeps no list of its tasks; they are found by whose methods they run. One that is
    cancelled may wait for another that is not yet, so that is repeated.
    """
    connections = connections_of(client)
    names = ("_sender", "_message_accumulator", "_coordinator", "_fetcher")
    parts = (client, connections, *(getattr(client, name, None) for name in names))
    for _ in range(10):
        tasks = [task for task in asyncio.all_tasks() if _runs_method_of(task, parts)]
        tasks += [] if stopping.done() else [stopping]
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=0.1)
    if isinstance(client, AIOKafkaProducer):
        _fail_pending(client._message_accumulator)
    with contextlib.suppress(KafkaError, OSError):
        await asyncio.wait_for(connections.close(), timeout=NO_GRACE)


def _fail_pending(accumulator: Any) -> None:
    """Tell those who wait for a batch that nobody will."""
    batches = [batch for queue in accumulator._batches.values() for batch in queue]
    batches += accumulator._pending_batches
    accumulator.fail_all(ProducerClosed())
    for batch in batches:
        for future in (batch.future, batch._drain_waiter):
            if future.done() and not future.cancelled():
                future.exception()  # seen: nobody may be waiting


def _runs_method_of(task: asyncio.Task[Any], parts: tuple[Any, ...]) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    owner = frame.f_locals.get("self") if frame is not None else None
    sender = getattr(owner, "_sender", None)  # of the objects that handle one request each
    return any(owner is part or sender is part for part in parts if part is not None)


def check_size(client: Any, record: Record) -> None:
    """Refuse what can't fit into a request.

    Raises:
        EmitRejected: the record alone is larger than a request may be.
    """
    size = _RECORD_OVERHEAD + record.size
    limit: int = client._max_request_size
    if size > limit:
        raise EmitRejected(
            f"too large: the event needs {size} bytes, a request may have {limit} "
            "(max_request_bytes)"
        )


def queue_own(client: Any, record: Record, partition: int) -> asyncio.Future[Any] | None:
    """Queue a record in a client that `open_client` made; None: there is no room, or it is closed.

    What its `send` would look up and convert first is known already.
    """
    where = TopicPartition(record.topic, partition)
    room = client._request_timeout_ms / 1000
    return _at_once(
        client._message_accumulator.add_message(
            where, record.key, record.value, room, record.timestamp_ms, record.headers
        )
    )


def queue_users(client: Any, record: Record, partition: int) -> asyncio.Future[Any] | None:
    """The same with a client of the user's, which may have serializers and transactions."""
    return _at_once(
        client.send(
            record.topic, record.value, record.key, partition, record.timestamp_ms, record.headers
        )
    )


def _at_once(
    queueing: Coroutine[Any, Any, asyncio.Future[Any]],
) -> asyncio.Future[Any] | None:
    """What this returns, if it need not wait for anything; else it ends, and nothing is queued."""
    try:
        queueing.send(None)
    except StopIteration as returned:
        queued: asyncio.Future[Any] = returned.value
        return queued
    except (KafkaError, IllegalOperation):  # who sends it in a batch will be told the same
        return None
    queueing.close()
    return None


def append(builder: Any, record: Record) -> bool:
    """Add a record to a batch, if it fits; the first one always does."""
    added = builder.append(
        timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=record.headers
    )
    return added is not None


async def hand_over(handing: Awaitable[T], topic: str, deadline: float) -> T:
    """Await what hands an event to the client, until shortly before the deadline.

    Raises:
        EmitRejected: it was not handed over and never will be; the client's error is its cause.
    """
    scope = asyncio.timeout_at(deadline - HANDOVER_MARGIN)
    try:
        async with scope:
            return await handing
    except (KafkaError, IllegalOperation) as error:
        raise as_rejected(error, topic) from error
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise not_handed_over(topic) from error


def not_handed_over(topic: str) -> EmitRejected:
    """The outcome of an event that was still ours at its deadline."""
    return EmitRejected(
        f"not sent to {topic!r} before the deadline: the brokers don't answer, or what they "
        "have not confirmed yet fills the client's queue",
        retriable=True,
    )


async def ping(client: Any) -> None:
    """Ask any broker for the cluster's layout.

    Raises:
        ConnectError: none answers.
    """
    for _ in range(_QUESTIONS):
        if await connections_of(client).force_metadata_update():
            return
        await asyncio.sleep(_BETWEEN_QUESTIONS)
    raise as_connect_error(KafkaConnectionError("no broker answers"), "no sign of life")
