"""Calls to a producer that must come back: `start`, `flush`, `ping` and `stop`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

__all__ = ["attempt", "within"]

logger = logging.getLogger("dispytch")


async def within(seconds: float, call: Callable[[], Awaitable[None]], late: Exception) -> None:
    """Run `call`; raise `late` when it has not returned after `seconds`, else what it raises."""
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            await call()
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise late from error


async def attempt(what: str, call: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Run `call` as far as it goes: it may hang, fail, or be cancelled from within."""

    async def run() -> None:
        await call()

    task = asyncio.ensure_future(run())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        logger.warning("%s gave up after %.1f s", what, seconds)
    elif task.cancelled():
        logger.warning("%s was cancelled from within", what)
    elif (failure := task.exception()) is not None:
        logger.warning("%s failed: %r", what, failure)
