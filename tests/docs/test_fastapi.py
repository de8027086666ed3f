"""The FastAPI application of docs/production.md, run as the page has it."""

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(# shop\.py\n.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, unique_name: str) -> Any:
    """The page's module, imported on the memory backend, with a broker no other test has."""
    (code,) = _BLOCK.findall((ROOT / "docs/production.md").read_text())
    monkeypatch.setenv("EVENTS_URL", f"memory://{unique_name}")
    module = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    exec(compile(code, "shop.py", "exec"), module.__dict__)
    return module


async def _handled(client: httpx.AsyncClient, count: int) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/health")).json()["handled"] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_application_emits_handles_and_shuts_down(shop: Any) -> None:
    """An order placed by a request is billed; leaving the lifespan leaves nothing running."""
    before = asyncio.all_tasks()
    async with (
        shop.app.router.lifespan_context(shop.app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=shop.app), base_url="http://shop"
        ) as client,
    ):
        assert (await client.get("/health")).status_code == 200
        answer = await client.post("/orders", json={"customer": "ada", "total_cents": 1200})
        assert answer.status_code == 202
        assert answer.json()["event"]
        await _handled(client, 1)
        for _ in range(20):  # some of them under way when it ends
            await client.post("/orders", json={"customer": "bob", "total_cents": 1})
    assert shop.billed["ada"] == 1200
    assert asyncio.all_tasks() == before
    assert shop.listener.health().problems == ("not started",)


async def test_application_starts_again(shop: Any) -> None:
    """What was left unhandled by the first run is handled by the second; nothing twice."""
    transport = httpx.ASGITransport(app=shop.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for handled in (1, 2):
            async with shop.app.router.lifespan_context(shop.app):
                await client.post("/orders", json={"customer": "eve", "total_cents": 5})
                await _handled(client, handled)
            assert (await client.get("/health")).status_code == 503
    assert shop.billed["eve"] == 10
