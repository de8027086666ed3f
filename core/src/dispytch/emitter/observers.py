"""Observers: the hooks of an emitter, and what they are told."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from dispytch.errors import ProducerTimeout
from dispytch.event import EventBase

__all__ = ["GRACE", "Observers"]

logger = logging.getLogger("dispytch")

GRACE = 1.0
"""Seconds that an observer, or a producer's bookkeeping, may run beyond the deadline of an emit."""


class Observers:
    """The hooks of one emitter, each sync or async, called in the order they were added."""

    def __init__(self) -> None:
        self.before: list[Callable[..., Any]] = []
        self.after: list[Callable[..., Any]] = []
        self.error: list[Callable[..., Any]] = []
        self.timeout: list[Callable[..., Any]] = []

    def remove(self, hook: Callable[..., Any]) -> None:
        """Take a hook back, once from each kind it was added to."""
        for hooks in (self.before, self.after, self.error, self.timeout):
            if hook in hooks:
                hooks.remove(hook)

    async def ask(self, event: EventBase) -> None:
        """Call the `before_emit` hooks; what one raises is a veto, and raised."""
        for hook in self.before:
            answer = hook(event)
            if inspect.isawaitable(answer):
                await answer

    async def tell(self, hooks: list[Callable[..., Any]], deadline: float, *facts: Any) -> None:
        """Tell observers; what one raises, or not returning in time, is only logged."""
        for hook in hooks:
            try:
                answer = hook(*facts)
                if inspect.isawaitable(answer):
                    async with asyncio.timeout_at(deadline + GRACE):
                        await answer
            except Exception:
                logger.exception("the hook %r failed; the emit is not affected", hook)

    async def tell_failure(self, event: EventBase, error: BaseException, deadline: float) -> None:
        """Tell `on_timeout` of a passed deadline, `on_error` of anything else."""
        if isinstance(error, ProducerTimeout):
            await self.tell(self.timeout, deadline, event)
        else:
            await self.tell(self.error, deadline, event, error)
