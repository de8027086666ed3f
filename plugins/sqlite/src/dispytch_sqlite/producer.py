"""SQLiteProducer: appends events to the log of a file."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from typing import Any, Self

from dispytch import ConfigError, ConnectError, EmitRejected, Outgoing, Producer
from dispytch.fields import effective_key, header_pairs, moment_of
from dispytch.producer import Details, Outcome, held_back, too_late
from dispytch_sqlite.batches import Batches
from dispytch_sqlite.config import SQLiteEventConfig
from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.errors import BACKEND, WriteError, as_emit_error
from dispytch_sqlite.log import Entry, written_headers
from dispytch_sqlite.sharing import open_writer, release
from dispytch_sqlite.writer import Writer

__all__ = ["SQLiteProducer"]

_AT_ONCE = 1000  # events of a batch in one transaction
_FLUSH = 5.0  # seconds that stopping waits for what is being written


class SQLiteProducer(Producer):
    """Appends events to a file; concurrent ones share a commit.

    Args:
        connection: the file, and how it is used.

    Raises:
        ConfigError: `connection` is none.
    """

    backend = BACKEND
    event_config = SQLiteEventConfig
    carries_headers = True

    def __init__(self, connection: SQLiteConnection) -> None:
        if not isinstance(connection, SQLiteConnection):
            raise ConfigError(
                f"SQLiteProducer takes a SQLiteConnection, not a {type(connection).__name__}; "
                "or use EventEmitter.from_url('sqlite:///events.db')"
            )
        self._connection = connection
        self._largest = connection.max_event_bytes
        self._writer: Writer | None = None
        self._batches: Batches[Entry, dict[str, int]] | None = None

    @classmethod
    def from_connection(cls, connection: SQLiteConnection, /) -> Self:
        """The producer of the file a URL names."""
        return cls(connection)

    async def start(self) -> None:
        """Open the file, or make it.

        Raises:
            ConnectError: it can't be opened or made, or can't work; the message says why.
        """
        if self._batches is not None and not self._batches.is_here:
            await self._close()  # its loop has died, or it is the one of a process that was forked
        if self._writer is None:
            writer = await open_writer(self._connection)
            self._writer, self._batches = writer, Batches(writer, writer.log.append)

    async def stop(self) -> None:
        """Wait for what is being written, and close the file; does nothing when it is not open."""
        batches, self._batches = self._batches, None
        try:
            if batches is not None and batches.is_here:
                async with asyncio.timeout(_FLUSH):
                    await batches.idle()
        except TimeoutError:  # another process has the lock; closing gives up
            pass
        finally:
            if batches is not None and batches.is_here:
                batches.end()
            await self._close()

    async def _close(self) -> None:
        writer, self._writer, self._batches = self._writer, None, None
        if writer is not None:
            await asyncio.to_thread(release, writer)

    async def flush(self) -> None:
        """Wait until everything that was given has an outcome."""
        if self._batches is not None:
            await self._batches.idle()

    async def ping(self) -> None:
        """Ask whether the file can be written.

        Raises:
            ConnectError: it can't, or the producer is not started.
        """
        if self._writer is None:
            raise ConnectError("the producer is not started", backend=BACKEND)
        await self._writer.ping()

    def ordering_key(self, out: Outgoing, /) -> Hashable | None:
        """The config's `partition_key`, else the event's `__key__`."""
        return effective_key(out)

    async def send_message(self, out: Outgoing, /) -> Details:
        """Append one event; returns when it is committed.

        Returns:
            seq and partition, its place in the log; or due_ms, until when it is held back.

        Raises:
            EmitRejected: certainly not stored: it is too large or expires before it is due, the
                disk is full, the file can't be written or is locked for too long.
            EmitUnknown: the disk failed while it was to confirm.
        """
        self._check_size(out)
        return await self._append_one(out)

    async def send_dead_letter(self, out: Outgoing, /) -> Details:
        """Append to a dead-letter topic, however large: who emitted it may have another limit.

        Raises:
            EmitRejected, EmitUnknown: as for `send_message`.
        """
        return await self._append_one(out)

    async def _append_one(self, out: Outgoing) -> Details:
        try:
            (details,) = await self._running().put([_entry(out)])
        except WriteError as error:
            raise as_emit_error(error) from error.cause
        return details

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        """Append a batch in order, up to 1,000 events in one transaction.

        Returns:
            For each event its details, as from `send_message`, or its error. After a failure, later
            events of the same key are not sent.
        """
        batches = self._running()
        outcomes: list[Outcome] = []
        failed: set[Hashable] = set()
        for start in range(0, len(batch), _AT_ONCE):
            outcomes += await self._append(batches, batch[start : start + _AT_ONCE], failed)
        return outcomes

    async def _append(
        self,
        batches: Batches[Entry, dict[str, int]],
        part: Sequence[Outgoing],
        failed: set[Hashable],
    ) -> list[Outcome]:
        """Append a part of a batch; `failed` are the keys of which nothing more may be sent."""
        outcomes: list[Outcome] = [None] * len(part)
        entries: dict[int, Entry] = {}
        now = asyncio.get_running_loop().time()
        for index, out in enumerate(part):
            key: Hashable | None = out.key
            try:
                entry = _entry(out)
                key = entry.key
                if key is not None and key in failed:
                    outcomes[index] = held_back(key)
                    continue
                self._check_size(out)
                if now >= out.deadline:
                    raise too_late()
                entries[index] = entry
            except EmitRejected as error:
                outcomes[index] = error
                failed.add(key)
        written: Sequence[Outcome]
        try:
            written = await batches.put(list(entries.values())) if entries else ()
        except WriteError as error:
            written = [as_emit_error(error) for _ in entries]
            failed.update(entry.key for entry in entries.values())
        for index, outcome in zip(entries, written, strict=True):
            outcomes[index] = outcome
        return outcomes

    def _running(self) -> Batches[Entry, dict[str, int]]:
        if self._batches is None:
            raise EmitRejected("the producer is not started", retriable=True)
        return self._batches

    def _check_size(self, out: Outgoing) -> None:
        if len(out.payload) > self._largest:
            raise EmitRejected(
                f"the event has {len(out.payload):,} bytes, the limit is {self._largest:,} "
                "(max_event_bytes)"
            )


def _entry(out: Outgoing) -> Entry:
    """What is stored of an event.

    Raises:
        EmitRejected: it can't be stored.
    """
    expires_ms, due_ms = _times(out.config)
    try:
        out.topic.encode()
        key, headers = effective_key(out), written_headers(header_pairs(out))
    except UnicodeEncodeError as error:
        raise EmitRejected(
            "the topic, the key or a header holds characters that UTF-8 can't encode"
        ) from error
    return Entry(out.topic, key, headers, out.payload, expires_ms, due_ms)


def _times(config: Any) -> tuple[int | None, int | None]:
    """When an event expires and when it is due, in milliseconds since 1970 UTC."""
    if config is None or (config.ttl is None and config.delay is None):
        return None, None
    now = time.time()
    expires, due = (
        None if each is None else int(moment_of(each, now) * 1000)
        for each in (config.ttl, config.delay)
    )
    if expires is not None and due is not None and due >= expires:
        raise EmitRejected("the event would expire (ttl) before it is due (delay)")
    return expires, due
