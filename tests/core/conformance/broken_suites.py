"""The kit on the twin, and on each broken backend. Collected only when named: most of it fails."""

import asyncio
import uuid
from typing import Any

import pytest

from core.conformance.broken import FAULTS, HEALTHY, Fault, register
from core.conformance.timed import TIMED, TimedConfig
from core.conformance.twin import OVERSIZE
from dispytch.testing.conformance import BackendConformance

register()


def _skip_waits(loop: Any) -> None:
    """Let the loop's clock jump to the next timer when nothing else is to be done.

    All that happens in these tests happens in their own loop, so that waiting for it is in vain.
    """
    real_time, real_select, skipped = loop.time, loop._selector.select, 0.0

    def select(timeout: float | None) -> Any:
        nonlocal skipped
        if timeout is None or loop._default_executor is not None:  # somebody else may do something
            return real_select(timeout)
        events = real_select(0)
        if not events:
            skipped += timeout
        return events

    loop._selector.select = select
    loop.time = lambda: real_time() + skipped


def _suite(fault: Fault) -> type[BackendConformance]:
    class Suite(BackendConformance):
        backend = fault.name
        lives_in = "process"
        oversize = OVERSIZE

        @pytest.fixture
        async def url(self) -> str:
            _skip_waits(asyncio.get_running_loop())
            return f"{fault.name}://{uuid.uuid4().hex}"

    class Timed(Suite):
        def ttl(self, seconds: float) -> TimedConfig:
            return TimedConfig(ttl=seconds)

        def delay(self, seconds: float) -> TimedConfig:
            return TimedConfig(delay=seconds)

        def priority(self, level: int) -> TimedConfig:
            return TimedConfig(priority=level)

    suite = Timed if fault.twin is TIMED else Suite
    suite.__name__ = suite.__qualname__ = fault.suite
    return suite


globals().update({each.suite: _suite(each) for each in (*HEALTHY, *FAULTS)})
