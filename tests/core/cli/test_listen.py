import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dispytch import EventBase, EventEmitter
from dispytch.cli.receiving import facts, instant, printable
from dispytch.consumer import Delivery
from dispytch.memory import MemoryConsumer, MemoryMessage


class Order(EventBase):
    __topic__ = "orders.{region}"
    __event_type__ = "order"
    __key__ = "{name}"

    region: str
    name: str


def emit(url: str, *events: EventBase) -> None:
    async def run() -> None:
        async with EventEmitter.from_url(url) as emitter:
            await emitter.emit_many(events)

    asyncio.run(run())


def test_listen_shows_events_readably(run, broker):
    """An event is shown with time, topic, type, key, id and body; what is none, with its bytes."""
    url, kept = broker
    emit(url, Order(id="o-1", region="eu", name="ada"))
    kept.append(MemoryMessage("orders.us", b"nonsense \xff\x1b[2J", "k", {}, None, "", ""))
    result = run("listen", url, "orders.*", "--group", "g", "--limit", "2")
    assert result.exit_code == 0
    first, body, second, payload = result.stdout.splitlines()
    assert first.endswith("  orders.eu  order  key ada  id o-1")
    assert instant(json.loads(kept.messages[0].payload)["timestamp"]) in first
    assert json.loads(body) == {"region": "eu", "name": "ada"}
    assert second.startswith("orders.us  key k  not an event envelope")
    assert payload == r"  nonsense \xff\x1b[2J"  # nothing that a terminal would obey
    assert "listening to orders.* on memory" in result.stderr


def test_listen_on_a_terminal_is_coloured(run, broker, monkeypatch):
    """On a terminal it is in colour."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    url, _ = broker
    emit(url, Order(region="eu", name="ada"))
    result = run("listen", url, "orders.eu", "--group", "g", "--limit", "1")
    assert "\x1b[" in result.stdout


def test_listen_json_is_one_object_per_line(run, broker):
    """--json: one object per line with all there is; a payload that is no text comes as base64."""
    url, kept = broker
    emit(url, Order(id="o-1", region="eu", name="ä"))
    kept.append(MemoryMessage("orders.us", b"\xff", None, {"a": "1", "b": b"\xff"}, None, "", ""))
    kept.append(MemoryMessage("orders.us", b'{"x": 1}', None, {}, None, "", ""))
    result = run("listen", url, "orders.{region}", "--group", "g", "--json", "--limit", "3")
    event, noise, other = map(json.loads, result.stdout.splitlines())
    timestamp = json.loads(kept.messages[0].payload)["timestamp"]
    assert event == {
        "topic": "orders.eu", "key": "ä", "headers": [], "id": "o-1", "type": "order",
        "timestamp": timestamp, "body": {"region": "eu", "name": "ä"},
    }  # fmt: skip
    assert noise["payload_base64"] == "/w=="
    assert noise["headers"] == [["a", "1"], ["b", "\\xff"]]
    assert other["payload"] == '{"x": 1}'
    assert "not an event envelope" in other["error"]


def test_listen_with_a_group_acknowledges_what_was_printed(run, broker):
    """With a group, what was printed does not come again, and what was not printed does."""
    url, _ = broker
    emit(url, *(Order(region="eu", name=str(n)) for n in range(5)))
    shown = [
        json.loads(line)["key"]
        for limit in ("2", "3")
        for line in run(
            "listen", url, "orders.eu", "--group", "g", "--json", "--limit", limit
        ).stdout.splitlines()
    ]
    assert shown == ["0", "1", "2", "3", "4"]


def listening(*args: str) -> "subprocess.Popen[str]":
    """A process that emits three orders each time a line comes in, and listens to them."""
    code = (
        "import asyncio, sys, threading\n"
        "from dispytch.cli import listen\n"
        "from dispytch.cli.app import app\n"
        "from dispytch.memory import MemoryBroker, MemoryMessage\n"
        "def emit(loop):\n"
        "    for line in sys.stdin:\n"
        "        message = MemoryMessage('orders', line.encode(), None, {}, None, '', '')\n"
        "        loop.call_soon_threadsafe(MemoryBroker.named('it').append, message)\n"
        "MemoryBroker.named('it').append(MemoryMessage('orders', b'old', None, {}, None, '', ''))\n"
        "real = listen._listen\n"
        "async def told(*args):\n"
        "    loop = asyncio.get_running_loop()\n"
        "    threading.Thread(target=emit, args=[loop], daemon=True).start()\n"
        "    await real(*args)\n"
        "listen._listen = told\n"
        "app(['listen', 'memory://it', 'orders', *sys.argv[1:]])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert any("listening to orders" in line for line in iter(process.stderr.readline, ""))
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listen_ends_cleanly_by_a_signal(number):
    """Without a group only what is new is shown; Ctrl-C is how it ends: status 0, no traceback."""
    with listening("--json") as process:
        try:
            process.stdin.write("new\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["payload"] == "new\n"
            process.send_signal(number)
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_listen_ends_cleanly_when_its_reader_does():
    """A closed pipe is how its reader ends it: status 0, no traceback."""
    with listening() as process:
        try:
            process.stdout.close()
            process.stdin.write("new\n")
            process.stdin.flush()
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_listen_without_a_group_leaves_nothing_behind(run, broker, monkeypatch):
    """Without a group nothing stays on the broker, and all that came is settled."""
    url, kept = broker
    receive = MemoryConsumer.receive
    name = Order(region="eu", name="new")

    async def emitting(self: Any, limit: int) -> Any:
        async with EventEmitter.from_url(url) as emitter:
            await emitter.emit(name)
        return await receive(self, limit)

    monkeypatch.setattr(MemoryConsumer, "receive", emitting)
    emit(url, Order(region="eu", name="old"))
    result = run("listen", url, "orders.eu", "--json", "--limit", "1")
    assert json.loads(result.stdout)["key"] == "new"
    assert kept.unsettled == 0


def test_listen_goes_on_after_a_lost_connection(run, broker, monkeypatch):
    """A connection that is lost is told, and receiving goes on."""
    from dispytch import ConnectError
    from dispytch.cli import listen

    url, _ = broker
    emit(url, Order(region="eu", name="ada"))
    receive, calls = MemoryConsumer.receive, []

    async def failing(self: Any, limit: int) -> Any:
        calls.append(limit)
        if len(calls) == 1:
            raise ConnectError("memory: gone for a moment")
        return await receive(self, limit)

    monkeypatch.setattr(MemoryConsumer, "receive", failing)
    monkeypatch.setattr(listen, "_PAUSE", 0.01)
    result = run("listen", url, "orders.eu", "--group", "g", "--limit", "1")
    assert result.exit_code == 0
    assert "gone for a moment; trying again" in result.stderr
    assert "key ada" in result.stdout


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["memory://", "orders.{"], "TOPIC: "),
        (["memory://", "orders.*.x"], "TOPIC: "),
        (["memory://?x=s3cret", "orders"], "unknown option"),
        (["nosuch://u:s3cret@host", "orders"], "nosuch"),
        (["memory://", "orders", "--limit", "0"], "--limit"),
    ],
)
def test_listen_called_wrongly_says_so(run, args, reason):
    """What can't work is told in a line, with status 2; values of the URL are not repeated."""
    result = run("listen", *args)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert "s3cret" not in result.stderr


def test_listen_across_processes(service):
    """What another process emits is printed as it comes."""
    process = service.start("listen", "spool://", "orders", "--json", "--limit", "2")
    service.told("listening to orders on spool")
    service.order("one")
    assert json.loads(process.stdout.readline())["id"] == "one"
    service.order("two")
    assert json.loads(process.stdout.readline())["id"] == "two"
    assert process.wait(timeout=30) == 0


def test_facts_of_a_key_that_is_no_text_can_be_written():
    """A key of bytes that are no UTF-8 does not end the listening."""
    delivery = Delivery("t", b"{}", b"\xff".decode(errors="surrogateescape"))
    assert json.dumps(facts(delivery)).isascii()


@pytest.mark.parametrize("timestamp", [0, 1_700_000_000_123, 10**30, -(10**30)])
def test_instant_takes_any_number(timestamp):
    """A time that is none is shown as the number it is."""
    assert instant(timestamp)


def test_printable_shows_what_a_terminal_would_obey():
    """Control characters are shown, not obeyed."""
    assert printable("a\x1b]0;b\x07\nc\x9bé") == "a\\x1b]0;b\\x07\\nc\\x9bé"
