"""What the tests of consuming share."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest

from dispytch import Consumer, EventBase, Subscription
from dispytch.plugins import backend_for_url
from dispytch.url import connect

OpenConsumer: TypeAlias = Callable[..., Awaitable[Consumer]]


class Numbered(EventBase):
    """An event whose topic and key the test chooses."""

    __topic__ = "{to}"
    __event_type__ = "numbered"
    __key__ = "{lane}"

    to: str
    lane: str = "a"
    number: int = 0


@pytest.fixture
def numbered() -> type[Numbered]:
    return Numbered


@pytest.fixture
async def open_consumer() -> AsyncIterator[OpenConsumer]:
    """Start a consumer of a URL, subscribe it, and stop it after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(
            url: str, *topics: str, group: str | None = "g", ordered: bool = True, held: int = 1000
        ) -> Consumer:
            backend = backend_for_url(url)
            assert backend.connection is not None
            consumer = backend.make_consumer(connect(url, backend.connection))
            consumer.max_held = held
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            await consumer.subscribe([Subscription(topic, group, ordered) for topic in topics])
            return consumer

        yield open_one
