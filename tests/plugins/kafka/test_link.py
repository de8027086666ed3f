"""The client in use, where no broker is needed to see what becomes of it."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka.errors import ProducerClosed  # type: ignore[import-untyped]

from dispytch_kafka import KafkaConnection, link


class Client:
    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def stop(self) -> None:
        self.stopped.set()


async def test_a_replaced_client_whose_users_have_gone_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who found that it can't go on left before there was another: it does not stay open."""
    opening, may_open = asyncio.Event(), asyncio.Event()
    first, second = Client(), Client()
    clients = iter((first, second))

    async def open_client(_: KafkaConnection) -> Any:
        client = next(clients)
        if client is second:
            opening.set()
            await may_open.wait()
        return client

    async def refused(_: Any) -> asyncio.Future[Any]:
        raise ProducerClosed

    monkeypatch.setattr(link, "open_client", open_client)
    tested = link.Link(KafkaConnection(hosts=("localhost:9092",)), None, owned=True)
    await tested.start()
    deadline = asyncio.get_running_loop().time() + 60
    delivering = asyncio.create_task(tested.deliver(refused, "topic", deadline))
    await opening.wait()
    delivering.cancel()
    await asyncio.wait({delivering})
    may_open.set()
    async with asyncio.timeout(5):
        await first.stopped.wait()
    assert not second.stopped.is_set()
    await tested.stop()
