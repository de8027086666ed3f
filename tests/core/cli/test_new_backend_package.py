"""What `new-backend` writes keeps what its page says; the conformance kit does the rest."""

import errno
import os
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dispytch import EmitRejected, EmitUnknown, Outgoing, SettleError, Subscription
from dispytch.cli.new_backend import package_files


@pytest.fixture
async def written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The package's modules, and what opens producers and consumers on a directory of the test."""
    for name, text in package_files("written"):
        target = tmp_path / "package" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "package/src"))
    modules: dict[str, ModuleType] = {
        name: import_module(f"dispytch_written.{name}") for name in ("log", "producer", "consumer")
    }
    directory, opened = tmp_path / "events", []

    async def producer() -> Any:
        opened.append(modules["producer"].WrittenProducer(str(directory)))
        await opened[-1].start()
        return opened[-1]

    async def consumer(*topics: str, group: str | None = "g") -> Any:
        opened.append(modules["consumer"].WrittenConsumer(str(directory)))
        await opened[-1].start()
        await opened[-1].subscribe([Subscription(topic, group) for topic in topics])
        return opened[-1]

    yield SimpleNamespace(**modules, open_producer=producer, open_consumer=consumer, at=directory)
    for each in opened:
        await each.stop()
    for name in [each for each in sys.modules if each.partition(".")[0] == "dispytch_written"]:
        del sys.modules[name]


def _out(payload: bytes, topic: str = "t") -> Outgoing:
    return Outgoing("id", "type", topic, payload)


async def _payloads(consumer: Any, count: int) -> list[bytes]:
    """What comes first, not settled."""
    came: list[bytes] = []
    while len(came) < count:
        came += [delivery.payload for delivery in await consumer.receive(count - len(came))]
    return came


async def test_watermark_stops_at_the_first_open_event(written):
    """Settled out of order, what is open comes again to the next member, and nothing before it."""
    producer, first = await written.open_producer(), await written.open_consumer("t")
    await producer.send_messages([_out(b"%d" % number) for number in range(5)])
    deliveries = await first.receive(5)
    for number in (0, 4, 2):
        await deliveries[number].ack()
    await first.stop()
    with pytest.raises(SettleError):
        await deliveries[1].ack()
    assert await _payloads(await written.open_consumer("t"), 4) == [b"1", b"2", b"3", b"4"]


async def test_new_topic_of_a_group_begins_with_its_first_event(written):
    """What a group did for one topic says nothing of another that it subscribes to later."""
    producer, first = await written.open_producer(), await written.open_consumer("a")
    await producer.send_messages([_out(b"1", "b"), _out(b"2", "a"), _out(b"3", "b")])
    (delivery,) = await first.receive(9)
    await delivery.ack()
    await first.stop()
    second = await written.open_consumer("a", "b")
    assert await second.backlog() == 2
    assert await _payloads(second, 2) == [b"1", b"3"]


async def test_line_that_was_cut_off_is_no_event(written):
    """What a killed writer left, even all but the end of its line, never becomes an event."""
    producer = await written.open_producer()
    await producer.send_message(_out(b"1"))
    whole = (written.at / "events.jsonl").read_bytes().splitlines()[-1]
    for part in (whole[:20], whole):
        with (written.at / "events.jsonl").open("ab") as file:
            file.write(part)
        await producer.send_message(_out(b"next"))
    assert await _payloads(await written.open_consumer("t"), 3) == [b"1", b"next", b"next"]


async def test_write_cut_short_rejects_exactly_what_is_not_there(written, monkeypatch):
    """With a disk that fills up in a batch, the events before are stored, the others rejected."""
    producer = await written.open_producer()
    file = producer._writer._file
    short = SimpleNamespace(
        write=lambda data: file.write(data[:-1]),
        tell=file.tell,
        fileno=file.fileno,
        close=file.close,
    )
    monkeypatch.setattr(producer._writer, "_file", short)
    outcomes = await producer.send_messages([_out(b"%d" % number) for number in range(3)])
    assert [isinstance(outcome, EmitRejected) for outcome in outcomes] == [False, False, True]
    monkeypatch.setattr(producer._writer, "_file", file)
    await producer.send_message(_out(b"next"))
    assert await _payloads(await written.open_consumer("t"), 3) == [b"0", b"1", b"next"]


@pytest.mark.parametrize(("method", "expected"), [("append", EmitRejected), ("sync", EmitUnknown)])
async def test_outcome_says_what_is_certain(written, monkeypatch, method, expected):
    """Nothing written is rejected; written, and the disk may not have it, is unknown."""

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    producer = await written.open_producer()
    monkeypatch.setattr(producer._writer, method, fail)
    outcomes = await producer.send_messages([_out(b"1"), _out(b"2")])
    assert [type(outcome) for outcome in outcomes] == [expected, expected]
    assert outcomes[0] is not outcomes[1]
    with pytest.raises(expected, match="Input/output error"):
        await producer.send_message(_out(b"3"))
