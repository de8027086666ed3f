"""A broker that several processes share: a directory, with a file per message."""

import asyncio
import base64
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from dispytch import (
    Backend,
    Capabilities,
    Connection,
    Consumer,
    Delivery,
    Outgoing,
    Producer,
    Subscription,
    hookimpl,
)


def put(root: Path, topic: str, payload: bytes, key: str | None = None, **headers: str) -> None:
    """Put a message there, whole at once."""
    data = {"topic": topic, "payload": base64.b64encode(payload).decode(), "key": key}
    draft = root / f"{time.monotonic_ns():020}"
    draft.write_text(json.dumps(data | {"headers": headers}))
    draft.rename(draft.with_suffix(".new"))


class SpoolProducer(Producer):
    backend = "spool"
    carries_headers = True

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        return cls(Path(os.environ["SPOOL"]))

    async def send_message(self, out: Outgoing, /) -> None:
        headers = {k: v.decode() if isinstance(v, bytes) else v for k, v in out.headers.items()}
        put(self.root, out.topic, out.payload, out.key, **headers)


class SpoolDelivery(Delivery):
    __slots__ = ("path",)

    async def ack(self) -> None:
        self.path.unlink()

    async def nack(self, delay: float | None = None) -> None:
        self.path.rename(self.path.with_suffix(".new"))


class SpoolConsumer(Consumer):
    """Takes a message by renaming its file; knows no backlog."""

    backend = "spool"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held: list[SpoolDelivery] = []

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        return cls(Path(os.environ["SPOOL"]))

    async def subscribe(self, subscriptions: Sequence[Subscription], /) -> None:
        self.patterns = [each.pattern for each in subscriptions]

    async def receive(self, limit: int, /) -> Sequence[Delivery]:
        while True:
            for path in sorted(self.root.glob("*.new")):
                try:
                    data = json.loads(path.read_text())
                    if not any(each.match(data["topic"]) is not None for each in self.patterns):
                        continue
                    taken = path.rename(path.with_suffix(f".{os.getpid()}"))
                except FileNotFoundError:  # another process was first
                    continue
                headers = tuple((k, v.encode()) for k, v in data["headers"].items())
                payload = base64.b64decode(data["payload"])
                delivery = SpoolDelivery(data["topic"], payload, data["key"], headers)
                delivery.path = taken
                self.held.append(delivery)
                return [delivery]
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for delivery in self.held:
            if delivery.path.exists():
                await delivery.nack()


@hookimpl
def dispytch_backend() -> Backend:
    return Backend(
        name="spool",
        event_config=None,
        producer=SpoolProducer,
        consumer=SpoolConsumer,
        connection=Connection,
        capabilities=Capabilities(headers=True, manual_ack=True, groups=True),
    )
