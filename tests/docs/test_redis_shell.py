"""What docs/redis.md tells to do with redis-cli, done to a server of ours."""

import asyncio
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers.redis import Redis
from dispytch import Event, EventBase, EventEmitter, EventListener, RetryLater

pytestmark = pytest.mark.redis

PAGE = (Path(__file__).parents[2] / "docs/redis.md").read_text()
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"^\$ (redis-cli .*)\n((?:(?!\$|```).*\n)*)", re.MULTILINE)

COMMANDS = [block for block in _SHELL.findall(PAGE) if "ACL SETUSER" not in block]
SHOWN = dict(_CONSOLE.findall(PAGE))


class OrderPaid(EventBase):
    __topic__ = "orders"
    __event_type__ = "order_paid"
    __key__ = "{customer}"

    customer: str


class Shell:
    """Runs what the page says, where `redis-cli` is one that connects to this server."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        cli = folder / "redis-cli"
        cli.write_text(
            f'#!/bin/sh\nexec "$(PATH=${{PATH#*:}} command -v redis-cli)" -p {redis.port} "$@"\n'
        )
        cli.chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    async def run(self, command: str, *, terminal: bool = False) -> str:
        """What it prints, if wanted as on a terminal."""
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-ec", command],
            env=self._environment | ({"FAKETTY": "1"} if terminal else {}),
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "ERR" not in done.stdout, done.stdout
        return done.stdout


@pytest.fixture
def shell(own_redis: Redis, tmp_path: Path) -> Shell:
    own_redis.call("FLUSHALL")
    return Shell(own_redis, tmp_path)


def _shape(shown: str) -> str:
    """A regular expression for what the page shows: numbers and names of members may be others."""
    shape = re.escape(shown).replace(re.escape("...\n"), "(?:.*\n)*").replace(r"\.\.\.", ".*")
    return re.sub(r"[0-9a-f]{32}|\d+", lambda it: r"\w{32}" if len(it[0]) == 32 else r"\d+", shape)


def _command(part: str) -> str:
    (found,) = [command for command in COMMANDS if part in command]
    return found


async def _emit(url: str, *customers: str) -> list[str]:
    """The ids of their entries."""
    async with EventEmitter.from_url(url) as emitter:
        receipts = [await emitter.emit(OrderPaid(customer=each)) for each in customers]
    return [receipt.details["id"] for receipt in receipts]


def _listener(url: str, handle: Callable[[Event[OrderPaid]], RetryLater | None]) -> EventListener:
    listener = EventListener.from_url(url, group="billing")

    @listener.handler(OrderPaid)
    async def bill(event: Event[OrderPaid]) -> RetryLater | None:
        return handle(event)

    return listener


async def _handled(url: str, count: int) -> list[tuple[str, int]]:
    """What the group `billing` gets: customers and attempts."""
    got: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    listener = _listener(url, lambda event: got.put_nowait((event.body.customer, event.attempt)))
    async with asyncio.timeout(20), listener:
        return [await got.get() for _ in range(count)]


async def _put_off(url: str) -> None:
    """One event is to come again in an hour."""
    seen = asyncio.Event()

    def later(_: Event[OrderPaid]) -> RetryLater:
        seen.set()
        return RetryLater(3600)

    async with asyncio.timeout(20), _listener(url, later):
        await _emit(url, "ada")
        await seen.wait()


async def test_shown_output_is_what_the_server_says(own_redis: Redis, shell: Shell) -> None:
    """Each command with its output on the page prints just that, but for ids and times."""
    await _put_off(own_redis.url)
    await _emit(own_redis.url, "ada", "ada")
    after = [command for command in SHOWN if ":members" not in command and ":owners" not in command]
    for command in after:
        told = await shell.run(command, terminal=True)
        assert re.fullmatch(_shape(SHOWN[command]), told), f"{command}\n{told}"
    async with _listener(own_redis.url, lambda _: None):
        for command in SHOWN.keys() - set(after):
            told = await shell.run(command, terminal=True)
            assert re.fullmatch(_shape(SHOWN[command]), told), f"{command}\n{told}"
    assert len(SHOWN) == 8


async def test_events_are_passed_over_and_deleted(own_redis: Redis, shell: Shell) -> None:
    """What is acknowledged or deleted by hand does not come again."""
    await _put_off(own_redis.url)
    (first,) = [entry.id for entry in own_redis.entries("dispytch:stream:orders:8")]
    await shell.run(_command("XACK").replace("1783000000000-0", first))
    assert own_redis.call("XPENDING", "dispytch:stream:orders:8", "billing")[0] == 0
    gone, _ = await _emit(own_redis.url, "ada", "grace")
    await shell.run(_command("XDEL").replace("1783000000000-0", gone))
    assert await _handled(own_redis.url, 1) == [("grace", 1)]


async def test_a_group_is_removed(own_redis: Redis, shell: Shell) -> None:
    """Nothing is left of it; when it comes back it begins with the first event, at attempt 1."""
    await _put_off(own_redis.url)
    await shell.run(_command("XGROUP DESTROY"))
    assert own_redis.call("KEYS", "dispytch:group:*") == []
    assert own_redis.call("XINFO", "GROUPS", "dispytch:stream:orders:8") == []
    assert await _handled(own_redis.url, 1) == [("ada", 1)]


async def test_dead_letters_are_trimmed(own_redis: Redis, shell: Shell) -> None:
    """Those from before the moment are gone, the others are there."""
    stream = "dispytch:stream:orders.dlq:3"
    for at in (1782999999999, 1783000000000):
        own_redis.call("XADD", stream, f"{at}-0", "payload", "x")
    await shell.run(_command("XTRIM"))
    assert [entry.id for entry in own_redis.entries(stream)] == ["1783000000000-0"]


async def test_a_topic_is_removed(own_redis: Redis, shell: Shell) -> None:
    """The next who uses it decides how many shards it has."""
    await _emit(own_redis.url, "ada", "grace")
    await shell.run(_command("HDEL"))
    assert own_redis.call("KEYS", "dispytch:stream:*") == []
    await _emit(f"{own_redis.url}?shards=3", "ada")
    assert own_redis.call("HGET", "dispytch:topics", "orders") == b"3"


async def test_events_of_other_programs_are_handled(own_redis: Redis, shell: Shell) -> None:
    """An entry with a payload is an event."""
    await shell.run(_command("XADD"))
    assert await _handled(own_redis.url, 1) == [("ada", 1)]


def test_all_commands_are_tested() -> None:
    """A command that is added to the page needs a test, too."""
    assert len(COMMANDS) == 7
