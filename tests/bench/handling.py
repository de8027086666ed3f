"""What handling costs: processor time per event through the memory consumer.

Beside it, interleaved in one process, pydantic's bare `validate_json` of the same envelopes, typed
alike: the ratio is what routing, order, the handler's task and settling add. Asserts nothing.

Run: python -m nox -s bench
"""

import asyncio
import gc
import statistics
import sys
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from dispytch import Depends, Event, EventBase, EventEmitter, EventListener
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer

ROUNDS, EVENTS, KEYS = 15, 2_000, 50


class User(BaseModel):
    """The nested part of the event."""

    id: str
    email: str
    name: str


class UserCreated(EventBase):
    """About 200 bytes on the wire, one of many keys."""

    __topic__ = "user_events"
    __event_type__ = "user_created"
    __key__ = "{user.id}"

    user: User
    timestamp: int


class Envelope(TypedDict):
    """The same envelope for pydantic alone."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["user_created"]
    body: UserCreated
    timestamp: int


def database() -> str:
    """A dependency."""
    return "db"


class Handling:
    """One listener that handles the events of a broker.

    Args:
        broker: filled for each round.
        with_dependency: whether the handler has one.
    """

    def __init__(self, broker: MemoryBroker, *, with_dependency: bool) -> None:
        self.broker = broker
        self.left = 0
        self.done = asyncio.Event()
        self.listener = EventListener(MemoryConsumer(broker))
        handler = self.with_database if with_dependency else self.alone
        self.listener.handler(UserCreated)(handler)

    async def alone(self, event: Event[UserCreated]) -> None:
        """Does nothing but count."""
        self.left -= 1
        if not self.left:
            self.done.set()

    async def with_database(
        self, event: Event[UserCreated], db: Annotated[str, Depends(database)]
    ) -> None:
        """The same with a dependency."""
        self.left -= 1
        if not self.left:
            self.done.set()

    async def round(self, messages: list[Any]) -> float:
        """Microseconds of processor time per event."""
        self.left = len(messages)
        self.done.clear()
        async with self.listener:
            for message in messages:
                self.broker.append(message)
            started = time.process_time()  # the consumer has had no turn yet
            await self.done.wait()
            ended = time.process_time()
        self.broker.clear()
        return (ended - started) / len(messages) * 1e6


def validating(payloads: list[bytes]) -> float:
    """Microseconds of processor time per event for pydantic alone."""
    validate = VALIDATE
    started = time.process_time()
    for payload in payloads:
        validate(payload)
    return (time.process_time() - started) / len(payloads) * 1e6


VALIDATE = TypeAdapter(Envelope).validator.validate_json


def show(name: str, ours: list[float], base: list[float]) -> None:
    """One line: both medians with the middle half's width, and their ratio."""

    def text(values: list[float]) -> str:
        low, middle, high = statistics.quantiles(values, n=4)
        return f"{middle:8.2f} ±{(high - low) / 2:6.2f} µs"

    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    print(f"{name:<42} {text(ours)} | {text(base)} | {statistics.median(ratios):6.2f}")


async def messages_of(events: int) -> list[Any]:
    """What an emitter makes of so many events."""
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        for number in range(events):
            user = User(id=str(number % KEYS), email="ada@example.com", name="Ada Lovelace")
            await emitter.emit(UserCreated(user=user, timestamp=number))
    return list(producer.messages)


async def main() -> None:
    """Both kinds of handler, round by round beside pydantic."""
    messages = await messages_of(EVENTS)
    payloads = [message.payload for message in messages]
    for name, with_dependency in {"handle an event": False, "... with a dependency": True}.items():
        handling = Handling(MemoryBroker(), with_dependency=with_dependency)
        samples: list[tuple[float, float]] = []
        for _ in range(ROUNDS + 1):  # the first warms up
            gc.collect()
            samples.append((await handling.round(messages), validating(payloads)))
        show(name, *map(list, zip(*samples[1:], strict=True)))


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}\n{'':<42} {'Dispytch':^19} | {'pydantic':^19} |  ratio")
    asyncio.run(main())
