"""The quick start's one file, taken from the page, run as its reader runs it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/getting-started.md"
_FILE = re.compile(r"^```python\n# file: shop\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
_URL = 'URL = "sqlite:///events.db"\n'
BILLS = ["bill ada 1200", "bill ada 300", "bill grace 800"]


def _write(folder: Path, url: str) -> None:
    """The page's file, with another URL."""
    (code,) = _FILE.findall(PAGE.read_text())
    assert code.count(_URL) == 1
    (folder / "shop.py").write_text(code.replace(_URL, f'URL = "{url}"\n'))


@contextlib.asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Run the file; what it prints. Ctrl-C ends it, in order."""
    with tempfile.TemporaryFile() as errors:
        shop = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-X", "dev", "shop.py",
            cwd=folder, env={**os.environ, "PYTHONWARNINGS": "error"},
            stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert shop.stdout is not None
        try:
            async with asyncio.timeout(60):
                yield shop.stdout
                await _runs(shop.pid)
                shop.send_signal(signal.SIGINT)
                await shop.wait()
        finally:
            if shop.returncode is None:
                shop.kill()
                await shop.wait()
            errors.seek(0)
            told = errors.read().decode()
        assert shop.returncode == 0, told
        assert "Traceback" not in told, told


async def _runs(pid: int) -> None:
    """Wait until it is in `run`, which takes SIGTERM over last: Ctrl-C is its own from there on."""
    while not _caught(pid) >> (signal.SIGTERM - 1) & 1:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


def _caught(pid: int) -> int:
    """The signals that a process handles, one bit each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[0], 16)


async def _bills(printed: asyncio.StreamReader, count: int) -> list[str]:
    """The first so many lines about bills; fewer where it ended."""
    bills: list[str] = []
    while len(bills) < count and (line := (await printed.readline()).decode().rstrip()):
        if line.startswith("bill "):
            bills.append(line)
        else:
            assert line.startswith("stored orders {"), line
    return bills


@pytest.mark.kafka
@pytest.mark.rabbitmq
@pytest.mark.redis
@pytest.mark.parametrize(
    "backend", ["memory", "sqlite", "kafka", "kafka+confluent", "rabbitmq", "redis"]
)
async def test_application_needs_another_url_alone(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One file emits and handles on every backend, a key in order; its URL alone is changed."""
    if backend in {"memory", "sqlite"}:
        url = {"memory": "memory://shop", "sqlite": "sqlite:///events.db"}[backend]
    else:
        broker, _, client = backend.partition("+")
        url = request.getfixturevalue(f"{broker}_broker").url
        url = url.replace("kafka:", "kafka+confluent:") if client else url
    _write(tmp_path, url)
    async with _running(tmp_path) as printed:
        bills = await _bills(printed, len(BILLS))
    assert sorted(bills) == BILLS
    assert bills.index("bill ada 1200") < bills.index("bill ada 300")
    assert (tmp_path / "events.db").exists() == (backend == "sqlite")


async def test_processes_share_the_file(tmp_path: Path) -> None:
    """Started in three terminals, each order is billed once, in one of them."""
    billed: asyncio.Queue[str] = asyncio.Queue()

    async def pass_on(printed: asyncio.StreamReader) -> None:
        while bill := await _bills(printed, 1):
            await billed.put(bill[0])

    _write(tmp_path, "sqlite:///events.db")
    async with asyncio.TaskGroup() as reading, contextlib.AsyncExitStack() as terminals:
        for _ in range(3):
            printed = await terminals.enter_async_context(_running(tmp_path))
            reading.create_task(pass_on(printed))
        bills = [await billed.get() for _ in range(3 * len(BILLS))]
    assert billed.empty()
    assert sorted(bills) == sorted(3 * BILLS)
