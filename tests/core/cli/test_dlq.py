import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dispytch import Event, EventBase, EventListener, Retry
from dispytch.cli import dlq
from dispytch.cli.dlq import outgoing
from dispytch.consumer import Delivery
from dispytch.errors import EmitRejected
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage, MemoryProducer

FOR = ("x-dispytch-for-group", "x-dispytch-for-handlers")


@pytest.fixture(autouse=True)
def short_quiet(monkeypatch):
    monkeypatch.setattr(dlq, "QUIET", 0.2)


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"
    __key__ = "{customer}"

    customer: str


def put(kept: MemoryBroker, payload: bytes, key: str | None = None, **headers: str) -> None:
    kept.append(MemoryMessage("orders", payload, key, headers, None, "", ""))


def order(number: int, customer: str = "ada") -> bytes:
    body = {"customer": customer}
    return json.dumps({"id": f"o-{number}", "type": "order", "body": body, "timestamp": 1}).encode()


class Shop:
    """A group whose handlers fail as long as they shall, beside another handler that does not."""

    def __init__(self, kept: MemoryBroker, group: str = "shop") -> None:
        self.kept, self.group = kept, group
        self.broken = True
        self.ran: list[tuple[str, str]] = []

    def listener(self) -> EventListener:
        listener = EventListener(
            MemoryConsumer(self.kept), group=self.group, retry=Retry(attempts=2, base=0)
        )

        @listener.handler(Order)
        async def bill(event: Event[Order]) -> None:
            if self.broken:
                raise ValueError("no\nmoney")
            self.ran.append(("bill", event.id))

        @listener.handler(Order)
        async def ship(event: Event[Order]) -> None:
            self.ran.append(("ship", event.id))

        return listener

    def handle(self) -> None:
        """Handle all there is."""

        async def run() -> None:
            async with asyncio.timeout(20), self.listener():
                while True:
                    await asyncio.sleep(0.01)
                    waiting = self.kept._groups[self.group].unsettled
                    if not waiting:
                        return

        asyncio.run(run())


@pytest.fixture
def letters(broker):
    """Three dead letters: two of a failed handler, and one that no handler could read."""
    url, kept = broker
    shop = Shop(kept)
    put(kept, order(1), "ada", source="test")
    put(kept, b"nonsense")
    put(kept, order(2), "grace")
    shop.handle()
    assert sorted(shop.ran) == [("ship", "o-1"), ("ship", "o-2")]
    return url, kept, shop


@pytest.mark.parametrize("topic", ["orders", "orders.dlq"])
def test_dlq_list_shows_why_and_leaves_them_there(run, letters, topic):
    """The list has time, id, type, handler, reason and attempts; listing again shows the same."""
    url, kept, _ = letters
    first, second = run("dlq", "list", url, topic), run("dlq", "list", url, topic)
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    header, *rows = first.stdout.splitlines()
    assert header.split() == ["time", "id", "type", "handler", "reason", "attempts"]
    assert len(rows) == 3
    one = next(row for row in rows if "  o-1  " in row)
    assert "bill" in one
    assert "failed 2 times: ValueError: no money" in one
    assert one.endswith("  2")
    assert any("not an event envelope" in row for row in rows)
    assert len(kept.on("orders.dlq")) == 3


def test_dlq_list_limit_tells_how_many_there_are(run, letters):
    """--limit shows the first, and says how many there are."""
    result = run("dlq", "list", letters[0], "orders", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert "2 of 3 shown" in result.stderr


def test_dlq_list_json_is_one_object_per_line(run, letters):
    """--json: the message as it was, and under dead_letter all that is known of its failure."""
    result = run("dlq", "list", letters[0], "orders", "--json")
    found = {each.get("id"): each for each in map(json.loads, result.stdout.splitlines())}
    one = found["o-1"]
    assert (one["key"], one["body"]) == ("ada", {"customer": "ada"})
    assert one["headers"] == [["source", "test"]]
    told = one["dead_letter"]
    assert told["error"] == "builtins.ValueError"
    assert (told["topic"], told["group"], told["attempts"]) == ("orders", "shop", "2")
    assert found[None]["payload"] == "nonsense"


def test_dlq_of_nothing_says_so(run, broker):
    """Nothing there is no failure; of memory:// it is said that it lives in one process."""
    listed, replayed = (
        run("dlq", "list", broker[0], "orders"),
        run("dlq", "replay", broker[0], "orders"),
    )
    assert (listed.exit_code, replayed.exit_code) == (0, 0)
    assert "no dead letters in orders.dlq" in listed.stderr
    assert "0 dead letter(s) of orders replayed, 0 remain" in replayed.stdout
    for result in (listed, replayed):
        assert "inside this one process" in result.stderr


def test_dlq_replay_reaches_the_handler_that_failed_alone(run, letters):
    """A replayed event runs only the handler and the group that failed; others pass it by."""
    url, kept, shop = letters
    other = Shop(kept, "other")
    other.broken = False
    other.handle()
    other.ran.clear()
    shop.broken = False
    shop.ran.clear()
    result = run("dlq", "replay", url, "orders")
    assert result.exit_code == 0
    assert "4 dead letter(s) of orders replayed, 0 remain" in result.stdout  # one of the other's
    again = kept.on("orders")[3:]
    by_id = {message.event_id: message for message in again}
    one = by_id["o-1"]
    assert (one.payload, one.key, one.type) == (order(1), "ada", "order")
    assert one.headers["source"] == b"test"
    assert not any(name.startswith("x-dispytch-dlq-") for name in one.headers)
    assert one.headers[FOR[0]] == b"shop"
    assert one.headers[FOR[1]].endswith(b".bill")
    assert FOR[1] not in by_id[""].headers  # it had reached none
    shop.handle()
    other.handle()
    assert sorted(shop.ran) == [("bill", "o-1"), ("bill", "o-2")]
    assert other.ran == []


def test_dlq_replay_limit_says_how_many_remain(run, letters):
    """--limit replays the first, and says how many remain; they are there for the next replay."""
    url, kept, _ = letters
    result = run("dlq", "replay", url, "orders", "--limit", "1")
    assert "1 dead letter(s) of orders replayed, 2 remain" in result.stdout
    result = run("dlq", "replay", url, "orders.dlq")
    assert "2 dead letter(s) of orders replayed, 0 remain" in result.stdout
    assert len(kept.on("orders")) == 6


def test_dlq_replay_to_another_topic_is_for_everyone_there(run, letters):
    """--to: handlers there have other names, so the event is addressed to none of them."""
    url, kept, _ = letters
    result = run("dlq", "replay", url, "orders", "--to", "repair")
    assert result.exit_code == 0
    assert len(kept.on("repair")) == 3
    assert not any(name in message.headers for message in kept.on("repair") for name in FOR)


@pytest.mark.parametrize("known", [True, False])
def test_dlq_replay_does_not_loop_on_new_ones(run, letters, monkeypatch, known):
    """What is dead-lettered again because of the replay waits for the next one."""
    url, kept, _ = letters
    send = MemoryProducer.send_message

    async def fails_again(self: Any, out: Any) -> Any:
        details = await send(self, out)
        letter = kept.on("orders.dlq")[-1]
        headers = dict(letter.headers) | {"x-dispytch-dlq-time": "2999-01-01T00:00:00+00:00"}
        kept.append(
            MemoryMessage("orders.dlq", letter.payload, None, headers, None, out.event_id, "")
        )
        return details

    async def unknown(self: Any) -> None:
        return None

    monkeypatch.setattr(MemoryProducer, "send_message", fails_again)
    if not known:
        monkeypatch.setattr(MemoryConsumer, "backlog", unknown)
    result = run("dlq", "replay", url, "orders")
    assert result.exit_code == 0
    left = "3 remain" if known else "how many remain is not known"
    assert f"3 dead letter(s) of orders replayed, {left}" in result.stdout
    assert len(kept.on("orders")) == 6


def test_dlq_replay_stops_at_an_error(run, letters, monkeypatch):
    """An event that can't be emitted stays a dead letter; the figures and status 1 tell."""
    url, _, _ = letters
    send = MemoryProducer.send_message

    async def picky(self: Any, out: Any) -> Any:
        if out.payload == b"nonsense":
            raise EmitRejected("not that one")
        return await send(self, out)

    monkeypatch.setattr(MemoryProducer, "send_message", picky)
    result = run("dlq", "replay", url, "orders")
    assert result.exit_code == 1
    assert "2 dead letter(s) of orders replayed, 1 remain" in result.stdout
    assert "not that one" in result.stderr
    (left,) = run("dlq", "list", url, "orders", "--json").stdout.splitlines()
    assert json.loads(left)["payload"] == "nonsense"


def test_dlq_replay_broker_out_of_reach_is_told(run, letters, monkeypatch):
    """No connection: nothing was replayed, status 1, no traceback."""
    from dispytch import ConnectError

    async def unreachable(self: Any) -> None:
        raise ConnectError("memory: can't be reached")

    monkeypatch.setattr(MemoryProducer, "start", unreachable)
    result = run("dlq", "replay", letters[0], "orders")
    assert result.exit_code == 1
    assert "0 dead letter(s) of orders replayed, how many remain is not known" in result.stdout
    assert result.stderr == "Error: memory: can't be reached\n"


def test_dlq_replay_called_wrongly_has_status_2(run):
    """A topic that is none, or a backend that is not there, is told with status 2."""
    for args in (["memory://", "orders.{"], ["nosuch://u:s3cret@h", "orders"]):
        result = run("dlq", "replay", *args)
        assert result.exit_code == 2
        assert "s3cret" not in result.stderr


def test_outgoing_of_a_message_nobody_dead_lettered_goes_to_the_source():
    """A message that tells nothing of itself is emitted to the source topic, unaddressed."""
    out = outgoing(Delivery("t.dlq", b"x", "k", (("a", b"1"),)), "t", None, MemoryProducer())
    assert (out.topic, out.payload, out.key, dict(out.headers)) == ("t", b"x", "k", {"a": b"1"})


def test_dlq_across_processes(service):
    """Dead letters of one process are listed and replayed by others, and handled again."""
    process = service.start("run", "service:listener")
    service.put("orders", b"nonsense")
    service.until(lambda: service.topics == ["orders.dlq"])
    assert service.end(process) == 0
    listed = service.start("dlq", "list", "spool://", "orders")
    assert "not an event envelope" in listed.communicate(timeout=30)[0]
    replayed = service.start("dlq", "replay", "spool://", "orders")
    told = replayed.communicate(timeout=30)[0]
    assert (replayed.returncode, told) == (
        0,
        "1 dead letter(s) of orders replayed, how many remain is not known\n",
    )
    assert service.topics == ["orders"]


def test_dlq_replay_on_a_terminal_shows_progress():
    """On a terminal a bar on standard error tells how far it is; stdout has the figures."""
    code = (
        "from dispytch.cli.app import app\n"
        "from dispytch.memory import MemoryBroker, MemoryMessage\n"
        "for n in range(250):\n"
        "    message = MemoryMessage('t.dlq', b'{}', None, {}, None, '', '')\n"
        "    MemoryBroker.named('it').append(message)\n"
        "app(['dlq', 'replay', 'memory://it', 't'])\n"
    )
    ours, theirs = os.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:  # fmt: skip
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                shown += part
        assert process.stdout is not None
        told = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert told == b"250 dead letter(s) of t replayed, 0 remain\n"
    assert b"250/250" in shown


def test_dlq_replay_ctrl_c_tells_what_was_done(run, letters, monkeypatch):
    """Ctrl-C ends it with the figures and status 130; what was not confirmed stays there."""
    send = MemoryProducer.send_message

    async def interrupted(self: Any, out: Any) -> Any:
        if out.payload == b"nonsense":
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return await send(self, out)

    monkeypatch.setattr(MemoryProducer, "send_message", interrupted)
    result = run("dlq", "replay", letters[0], "orders")
    assert result.exit_code == 130
    assert result.stdout == "interrupted: 0 dead letter(s) of orders replayed, 3 remain\n"
    assert len(run("dlq", "list", letters[0], "orders", "--json").stdout.splitlines()) == 3


def test_dlq_replay_of_an_earlier_replay_is_addressed_anew():
    """An event that failed, was replayed and failed again carries one address, of the last time."""
    told = {"group": b"shop", "handler": b"m.bill", "topic": b"t"}
    headers = (
        (FOR[0], b"old"),
        (FOR[1], b"old"),
        *((f"x-dispytch-dlq-{name}", value) for name, value in told.items()),
    )
    again = outgoing(Delivery("t.dlq", b"x", None, headers), "t", None, MemoryProducer())
    assert dict(again.headers) == {FOR[0]: b"shop", FOR[1]: b"m.bill"}
    elsewhere = outgoing(Delivery("t.dlq", b"x", None, headers), "t", "u", MemoryProducer())
    assert (elsewhere.topic, dict(elsewhere.headers)) == ("u", {})
