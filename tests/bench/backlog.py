"""Memory: what a listener takes when events wait for it, over what it takes idle."""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.broker import running
from bench.events import UserCreated, on_topic, user
from bench.measuring import OURS, Samples, Work, scaled, show
from brokers.kafka import Kafka
from brokers.process import BrokerProcess
from brokers.rabbitmq import RabbitMQ
from brokers.redis import Redis
from dispytch import Event, EventEmitter, EventListener

WAITING, AT_ONCE = (scaled(10_000), scaled(100_000)), 5_000
SETTLE = 2.0  # seconds, after which a listener has read ahead what it will
PAGE = os.sysconf("SC_PAGE_SIZE")

BROKERS: dict[str, type[BrokerProcess]] = {
    "Kafka": Kafka,
    "RabbitMQ": RabbitMQ,
    "Redis": Redis,
}


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE / 2**20


async def hold(url: str, topic: str) -> None:
    """In a process of its own: a listener whose handlers never return, and what it takes."""
    listener = EventListener.from_url(url, group=topic)  # the last one's group misses it for long
    begun = asyncio.Event()

    @listener.handler(on_topic(topic))
    async def handle(event: Event[UserCreated]) -> None:
        begun.set()
        await asyncio.Event().wait()

    await listener.start()
    await asyncio.sleep(SETTLE)
    idle = resident()
    print("idle", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await begun.wait()
    await asyncio.sleep(SETTLE)
    print(resident() - idle, flush=True)
    os._exit(0)  # its handlers would be waited for


async def held(url: str, topic: str, events: int) -> float:
    """MiB that it takes more when so many events wait."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.backlog", url, topic,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    await child.stdout.readline()
    event = on_topic(topic)
    async with EventEmitter.from_url(url) as emitter:
        for first in range(0, events, AT_ONCE):
            some = range(first, min(first + AT_ONCE, events))
            await emitter.emit_many([event(user=user(n), timestamp=n) for n in some])
    child.stdin.write(b"\n")
    more = float(await child.stdout.readline())
    await child.wait()
    return more


async def on(name: str, broker: Any, url: str) -> list[Samples]:
    """Fewer and more events waiting, each time on a topic of their own."""
    samples = []
    for events in WAITING:
        topic = f"waiting_{events}"
        if isinstance(broker, Kafka):
            await asyncio.to_thread(broker.create_topic, topic, 4)
        found = [await held(url, topic, events)]
        samples.append(Samples(f"{name}, {events:,} waiting", OURS, "", found))
    return samples


async def measure() -> list[Work]:
    """On each broker there is."""
    work = Work("memory with events waiting, over idle", [], "MiB")
    with tempfile.TemporaryDirectory() as directory:
        work.contenders.extend(await on("SQLite", None, f"sqlite:///{directory}/waiting.db"))
    for name, make in BROKERS.items():
        async with running(make) as broker:
            if broker is not None:
                work.contenders.extend(await on(name, broker, broker.url))
    show(work)
    return [work]


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
