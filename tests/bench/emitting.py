"""What Dispytch costs: imports, and emitting without a network, beside pydantic alone.

Prints medians with their spread and ratios; contenders run interleaved in one process, because
this is about ratios on the same machine at the same time. Asserts nothing.

Run: python -m nox -s bench
"""

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from dispytch import EventBase, EventEmitter
from dispytch.memory import MemoryProducer

ROUNDS, EVENTS, STARTS = 15, 2_000, 15


class User(BaseModel):
    """The nested part of the event."""

    id: str
    email: str
    name: str


class UserCreated(EventBase):
    """About 200 bytes on the wire."""

    __topic__ = "user_events"
    __event_type__ = "user_created"
    __key__ = "{user.id}"

    user: User
    timestamp: int


USER = User(id="42", email="ada@example.com", name="Ada Lovelace")
PLAIN = "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int\n"
OURS = PLAIN.replace("pydantic", "dispytch").replace("BaseModel", "EventBase")
EMITTER = OURS.replace("EventBase\n", "EventBase, EventEmitter\n", 1)
# Installers compile what they install; without bytecode this would measure the compiler.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def envelope(event: UserCreated) -> bytes:
    """What pydantic alone does for the same bytes."""
    return to_json(
        {
            "id": event.id,
            "type": "user_created",
            "body": event,
            "timestamp": time.time_ns() // 10**6,
        }
    )


async def per_event(emit: Callable[[], Any]) -> float:
    """Microseconds of one event."""
    started = time.perf_counter()
    for _ in range(EVENTS):
        result = emit()
        if result is not None and not isinstance(result, bytes):
            await result
    return (time.perf_counter() - started) / EVENTS * 1e6


def show(name: str, ours: list[float], base: list[float], unit: str) -> None:
    """One line: both medians with the middle half's width, and their ratio."""

    def text(values: list[float]) -> str:
        low, middle, high = statistics.quantiles(values, n=4)
        return f"{middle:8.2f} ±{(high - low) / 2:6.2f} {unit}"

    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    print(f"{name:<42} {text(ours)} | {text(base)} | {statistics.median(ratios):6.2f}")


async def emitting() -> None:
    """Emitting through the memory backend beside `to_json` of the same envelope."""
    producer = MemoryProducer()
    ready = UserCreated(user=USER, timestamp=1)
    async with EventEmitter(producer) as emitter:
        cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "emit a ready event": (lambda: emitter.emit(ready), lambda: envelope(ready)),
            "build and emit": (
                lambda: emitter.emit(UserCreated(user=USER, timestamp=1)),
                lambda: envelope(UserCreated(user=USER, timestamp=1)),
            ),
        }
        for name, (ours, base) in cases.items():
            samples: list[tuple[float, float]] = []
            for _ in range(ROUNDS + 1):  # the first warms up
                samples.append((await per_event(ours), await per_event(base)))
                producer.broker.clear()
            show(name, *map(list, zip(*samples[1:], strict=True)), "µs")


def start(code: str) -> float:
    """Milliseconds of processor time until a fresh interpreter has run this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def starting() -> None:
    """What importing Dispytch and defining a class costs beside pydantic alone."""
    for name, code in {"import, define an event": OURS, "... and an emitter": EMITTER}.items():
        samples = [(start(code), start(PLAIN)) for _ in range(STARTS + 1)][1:]  # the first compiles
        show(name, *map(list, zip(*samples, strict=True)), "ms")
        difference = statistics.median(ours - plain for ours, plain in samples)
        print(f"{'':<42} {difference:+.0f} ms")


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}\n{'':<42} {'Dispytch':^19} | {'pydantic':^19} |  ratio")
    starting()
    asyncio.run(emitting())
