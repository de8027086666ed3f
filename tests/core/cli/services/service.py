"""A service to run: its handlers do what the message says, and note what they did in files."""

import asyncio
import os
import signal
import time
from pathlib import Path

from spool import SpoolConsumer, SpoolProducer

from dispytch import Event, EventBase, EventListener, Router

ROOT = Path(os.environ["SPOOL"])
NOTES = Path(os.environ["NOTES"])

router = Router()
listener = EventListener(
    SpoolConsumer(ROOT), dead_letter=SpoolProducer(ROOT), group="service", drain_timeout=20
)


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"

    do: str
    name: str


def note(what: str) -> None:
    (NOTES / what).write_text(str(os.getpid()))


@listener.handler(Order)
async def work(event: Event[Order]) -> None:
    name = event.body.name
    note(f"{name}.began")
    match event.body.do:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            while not (NOTES / f"{name}.go").exists():  # noqa: ASYNC110 - a file tells
                await asyncio.sleep(0.02)
        case "block":  # a loop that does not come back
            while not (NOTES / f"{name}.go").exists():
                time.sleep(0.02)  # noqa: ASYNC251 - on purpose
        case "break":
            listener.consumer.root = None
        case "end":
            await listener.stop()
    note(f"{name}.done")


def make() -> EventListener:
    return listener


def make_nothing() -> None:
    return None


async def make_later() -> EventListener:
    return listener
