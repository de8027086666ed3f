"""What tests do to any Kafka, ours or one that was running before: topics, offsets, reading back.

Uses aiokafka bare, so that what the code under test claims is checked without that code.
"""

import asyncio
import contextlib
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brokers.elsewhere import in_process, in_thread
from brokers.process import BrokerError


@dataclass(frozen=True)
class Record:
    """A record as the broker stored it; timestamp type 0 is the producer's time, 1 the broker's."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


_UNKNOWN_TOPIC = 3  # an error code of the protocol


class KafkaAccess:
    """Blocking helpers; they may be called with an event loop running, which they hold up."""

    @property
    @abstractmethod
    def bootstrap(self) -> str:
        """The addresses of the plain listener, as `host:port[,host:port]`."""

    def create_topic(
        self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic and return when its partitions can be written."""
        in_thread(_create_topic(self.bootstrap, name, partitions, dict(config or {})))

    def delete_topic(self, name: str) -> None:
        """Delete a topic and return when it is gone."""
        in_thread(_delete_topic(self.bootstrap, name))

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The offset after the last record of each partition."""
        return in_thread(_end_offsets(self.bootstrap, topic))

    def read_all(
        self, topic: str, count: int = 0, timeout: float = 30.0, *, committed_only: bool = False
    ) -> list[Record]:
        """Read a topic in another process; see the function of the same name."""
        return read_all(self.bootstrap, topic, count, timeout, committed_only=committed_only)


class RunningKafka(KafkaAccess):
    """A Kafka that somebody else started."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def bootstrap(self) -> str:
        return _bootstrap(self.url)


def read_all(
    source: str | int,
    topic: str,
    count: int = 0,
    timeout: float = 30.0,
    *,
    committed_only: bool = False,
) -> list[Record]:
    """Read a topic from its start to its end with a bare client in another process.

    Args:
        source: A URL, `host:port`, or a port on this machine.
        topic: Its partitions are read together; each one's records come in their order.
        count: How many records to wait for; what is there beyond them is returned too, so that a
            duplicate shows. With 0 it returns what is there now.
        timeout: After it, what has been read so far is returned, for the test to compare.
        committed_only: Leave out records of open and aborted transactions.
    """
    arguments = (_bootstrap(source), topic, count, timeout, committed_only)
    return in_process(_read_all, *arguments, timeout=timeout + 30)


def _bootstrap(source: str | int) -> str:
    if isinstance(source, int):
        return f"127.0.0.1:{source}"
    return source.removeprefix("kafka://").partition("/")[0].partition("?")[0]


@contextlib.asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[Any]:
    from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        await _unfenced(admin)
        yield admin
    finally:
        await admin.close()


async def _unfenced(admin: Any) -> None:
    """Wait until the cluster names a broker: one that was frozen is fenced for a moment."""
    deadline = time.monotonic() + 30
    while admin._client.cluster.controller is None:
        if time.monotonic() > deadline:
            raise BrokerError("no broker is in the cluster")
        await admin._client.force_metadata_update()
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _reader(bootstrap: str, topic: str, **settings: object) -> AsyncIterator[Any]:
    """A consumer without a group, which is assigned all partitions from their start."""
    from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", **settings
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def _create_topic(bootstrap: str, name: str, partitions: int, config: dict[str, str]) -> None:
    from aiokafka.admin import NewTopic

    topic = NewTopic(name, partitions, 1, topic_configs=config)
    async with _admin(bootstrap) as admin:
        answer = await admin.create_topics([topic])
        _refuse_errors(f"create topic {name!r}", answer.topic_errors)
        await _settled(admin, name, lambda error, led: error == 0 and led == partitions)
    await _end_offsets(bootstrap, name)  # elected leaders refuse requests for another moment


async def _delete_topic(bootstrap: str, name: str) -> None:
    async with _admin(bootstrap) as admin:
        answer = await admin.delete_topics([name])
        _refuse_errors(f"delete topic {name!r}", answer.topic_error_codes)
        await _settled(admin, name, lambda error, _led: error == _UNKNOWN_TOPIC)


async def _settled(admin: Any, name: str, wanted: Callable[[int, int], bool]) -> None:
    """Wait until error code and number of led partitions are as wanted: brokers learn late."""
    deadline = time.monotonic() + 30
    while True:
        (topic,) = await admin.describe_topics([name])
        led = [one for one in topic["partitions"] if one["leader"] >= 0]
        if wanted(topic["error_code"], len(led)):
            return
        if time.monotonic() > deadline:
            raise BrokerError(f"the topic does not settle: {topic}")
        await asyncio.sleep(0.02)


def _refuse_errors(what: str, errors: list[tuple[Any, ...]]) -> None:
    """Raise aiokafka's own exception: its admin client leaves looking at the answer to us."""
    from aiokafka.errors import for_code  # type: ignore[import-untyped]

    for _name, code, *details in errors:
        if code != 0:
            raise for_code(code)(f"cannot {what}: {details}")


async def _end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    async with _reader(bootstrap, topic) as consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        return {partition.partition: offset for partition, offset in sorted(ends.items())}


async def _read_all(
    bootstrap: str, topic: str, count: int, timeout: float, committed_only: bool
) -> list[Record]:
    isolation = "read_committed" if committed_only else "read_uncommitted"
    deadline = time.monotonic() + timeout
    records: list[Record] = []
    async with _reader(bootstrap, topic, isolation_level=isolation) as consumer:
        while time.monotonic() < deadline:
            for batch in (await consumer.getmany(timeout_ms=100)).values():
                records += map(_record, batch)
            if len(records) >= count and await _at_end(consumer):
                break
    return records


async def _at_end(consumer: Any) -> bool:
    ends = await consumer.end_offsets(consumer.assignment())
    return all([await consumer.position(one) >= end for one, end in ends.items()])


def _record(message: Any) -> Record:
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.timestamp,
        message.timestamp_type,
        message.key,
        message.value,
        tuple(message.headers),
    )
