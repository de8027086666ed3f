"""A real broker while it is measured, if this machine has its software."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from brokers.process import BrokerMissing, BrokerProcess

B = TypeVar("B", bound=BrokerProcess)


@asynccontextmanager
async def running(make: Callable[[], B]) -> AsyncIterator[B | None]:
    """One of its own, ended afterwards; None, and a word of it, where it can't be had."""
    try:
        broker = await asyncio.to_thread(make)
        await asyncio.to_thread(broker.start)
    except BrokerMissing as error:
        print(f"not measured: {error}")
        yield None
        return
    try:
        yield broker
    finally:
        await asyncio.to_thread(broker.close)
