"""Without a network: imports, emitting and handling beside pydantic alone."""

import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any
from uuid import uuid4

from bench import peers
from bench.events import (
    ADA,
    READ,
    Body,
    UserCreated,
    created,
    database,
    message,
    pack,
    plain,
    settings,
)
from bench.measuring import (
    BARE,
    OURS,
    PEER,
    Contender,
    Cost,
    Handled,
    Watch,
    Work,
    check,
    compare,
    scaled,
)
from dispytch import Depends, Event, EventEmitter, EventListener
from dispytch.event import new_id
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryMessage, MemoryProducer

EVENTS = scaled(5_000)

# Imports

_PLAIN = "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int\n"
_OURS = _PLAIN.replace("pydantic", "dispytch").replace("BaseModel", "EventBase")
_EMITTER = _OURS.replace("EventBase\n", "EventBase, EventEmitter\n", 1)
_LISTENER = _EMITTER.replace("EventEmitter\n", "EventEmitter, EventListener\n", 1)
_PEER = f"{_PLAIN}from faststream.kafka import KafkaBroker\n"
_CLIENT = f"{_PLAIN}import aiokafka\n"
_KAFKA = f"{_LISTENER}from dispytch_kafka import KafkaProducer\n"
# Installers compile what they install; without bytecode this would measure the compiler.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def run(code: str) -> None:
    """In a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True, env=_ENVIRONMENT)


async def start(code: str) -> Cost:
    """Milliseconds of processor time until a fresh interpreter has run this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(spent * 1e3, 0.0)


async def starting() -> Work:
    """What importing and defining a class costs."""
    cases = {
        "pydantic, a first model": (BARE, _PLAIN),
        "... and aiokafka": (BARE, _CLIENT),
        "KafkaBroker": (PEER, _PEER),
        "an event": (OURS, _OURS),
        "... and an emitter": (OURS, _EMITTER),
        "... and a listener": (OURS, _LISTENER),
        "... and Kafka's producer": (OURS, _KAFKA),
    }
    return await compare(
        "import, and define a first model",
        [Contender(name, side, partial(start, code)) for name, (side, code) in cases.items()],
        unit="ms",
    )


# Emitting


def kept(emit: Callable[[int], Any], sent: list[Any]) -> Callable[[], Awaitable[Cost]]:
    """Emit, one after the other; all of it is in `sent` then."""

    async def run() -> Cost:
        with Watch(EVENTS) as watch:
            for number in range(EVENTS):
                result = emit(number)
                if result is not None:
                    await result
        check("sent", len(sent), EVENTS)
        sent.clear()
        return watch.cost

    return run


async def emitting() -> list[Work]:
    """A ready event, and one that is built for it."""
    broker, bare = MemoryBroker(), list[bytes]()
    kafka, in_kafka = await peers.kafka_without_network()
    rabbitmq, in_rabbitmq = peers.rabbitmq_without_network()
    ours = [created(number) for number in range(EVENTS)]
    theirs = [plain(number) for number in range(EVENTS)]

    def put(event_id: str, body: Body) -> None:
        bare.append(pack(event_id, body))

    def publish(event_id: str, body: Body) -> Any:
        key = body.user.id.encode()
        return kafka.publish(message(event_id, body), topic="user_events", key=key)

    def queue(event_id: str, body: Body) -> Any:
        return rabbitmq.publish(message(event_id, body), queue="user_events", persist=True)

    def built(
        emit: Callable[[str, Body], Any], new: Callable[[], Any] = uuid4
    ) -> Callable[[int], Any]:
        return lambda n: emit(str(new()), Body(user=ADA, timestamp=n))

    def ready(emit: Callable[[str, Body], Any]) -> Callable[[int], Any]:
        return lambda n: emit(theirs[n].id, theirs[n].body)

    async with EventEmitter(MemoryProducer(broker)) as emitter:

        def ours_built(n: int) -> Any:
            return emitter.emit(UserCreated(user=ADA, timestamp=n))

        def ours_ready(n: int) -> Any:
            return emitter.emit(ours[n])

        return [
            await compare(
                "build an event and emit it, no network",
                [
                    Contender("a model, uuid4, to_json", BARE, kept(built(put), bare)),
                    Contender("... a time-ordered id", BARE, kept(built(put, new_id), bare)),
                    Contender("Kafka", PEER, kept(built(publish), in_kafka)),
                    Contender("RabbitMQ", PEER, kept(built(queue), in_rabbitmq)),
                    Contender("emit", OURS, kept(ours_built, broker.messages)),
                ],
            ),
            await compare(
                "emit a ready event, no network",
                [
                    Contender("to_json", BARE, kept(ready(put), bare)),
                    Contender("Kafka", PEER, kept(ready(publish), in_kafka)),
                    Contender("RabbitMQ", PEER, kept(ready(queue), in_rabbitmq)),
                    Contender("emit", OURS, kept(ours_ready, broker.messages)),
                ],
            ),
        ]


# Handling


class Handling:
    """One listener that handles the events of a broker.

    Args:
        messages: the events.
        dependency: of its handler; None: it has none.
    """

    def __init__(
        self, messages: list[MemoryMessage], dependency: Callable[..., Any] | None
    ) -> None:
        self.broker = MemoryBroker()
        self.listener = EventListener(MemoryConsumer(self.broker))
        self._messages = messages
        self._handled = Handled(len(messages))

        async def alone(event: Event[UserCreated]) -> None:
            self._handled.note(event.body.timestamp)

        if dependency is None:
            self.listener.handler(UserCreated)(alone)
            return

        async def with_one(
            event: Event[UserCreated], db: Annotated[str, Depends(dependency)]
        ) -> None:
            self._handled.note(event.body.timestamp)

        self.listener.handler(UserCreated)(with_one)

    async def run(self) -> Cost:
        """From before the consumer's first turn to the last event."""
        handled = self._handled = Handled(len(self._messages))
        watch = Watch(len(self._messages))
        async with self.listener:
            for each in self._messages:
                self.broker.append(each)
            with watch:  # the consumer has had no turn yet
                await handled.done.wait()
        self.broker.clear()
        check("handled", len(set(handled.numbers)), len(self._messages))
        return watch.cost


async def emitted() -> list[MemoryMessage]:
    """The events as they travel."""
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        for number in range(EVENTS):
            await emitter.emit(created(number))
    return list(producer.messages)


async def dispatching() -> list[Work]:
    """A handler without a dependency, with an async and with a sync one."""
    messages = await emitted()
    payloads = [each.payload for each in messages]
    cases: dict[str, Callable[..., Any] | None] = {
        "no dependency": None,
        "one async dependency": database,
        "one sync dependency": settings,
    }
    works = []
    for name, dependency in cases.items():
        contenders = [
            Contender("validate_json", BARE, partial(validating, payloads)),
            Contender("EventListener", OURS, Handling(messages, dependency).run),
        ]
        if dependency is not None:
            run = partial(peer_dispatching, payloads[: EVENTS // 5], dependency)
            contenders.insert(1, Contender("Kafka's subscriber", PEER, run))
        works.append(await compare(f"dispatch, no network, {name}", contenders))
    return works


async def validating(payloads: list[bytes]) -> Cost:
    """Pydantic alone."""
    numbers: set[int] = set()
    with Watch(len(payloads)) as watch:
        for payload in payloads:
            numbers.add(READ(payload)["body"].timestamp)
    check("read", len(numbers), len(payloads))
    return watch.cost


async def peer_dispatching(payloads: list[bytes], dependency: Callable[..., Any]) -> Cost:
    """FastStream, one after the other."""
    handled = Handled(len(payloads))
    consume = await peers.dispatching(handled, dependency)
    with Watch(len(payloads)) as watch:
        for payload in payloads:
            await consume(payload)
    check("handled", len(set(handled.numbers)), len(payloads))
    return watch.cost


async def measure() -> list[Work]:
    """Everything."""
    return [await starting(), *await emitting(), *await dispatching()]
