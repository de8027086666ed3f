"""FastStream beside us: the same bytes, the same validation, the same dependency.

Without a network its own client's place is taken by one that only keeps what it gets; it says
nothing into a log in either case.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from aiokafka.structs import ConsumerRecord  # type: ignore[import-untyped]
from faststream import AckPolicy, Depends
from faststream._internal.endpoint.subscriber.usecase import SubscriberUsecase
from faststream.kafka import KafkaBroker
from faststream.rabbit import RabbitBroker

from bench.events import Message
from bench.measuring import Handled

SILENT: Any = None
"""No logger."""


class _Kept:
    """Takes the place of aiokafka's producer, and of an exchange of aio-pika."""

    _closed = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.set_result(None)

    async def start(self) -> None:
        pass

    async def send(self, *, value: bytes, **_: Any) -> "asyncio.Future[None]":
        self.sent.append(value)
        return self._done

    async def declare_exchange(self, **_: Any) -> "_Kept":
        return self

    async def publish(self, *, message: Any, **_: Any) -> None:
        self.sent.append(message.body)


async def kafka_without_network() -> tuple[KafkaBroker, list[bytes]]:
    """A broker that keeps what is published, and where."""
    broker, kept = KafkaBroker(logger=SILENT), _Kept()
    producer: Any = broker.config.producer
    await producer.connect(kept, serializer=broker.config.fd_config._serializer)
    return broker, kept.sent


def rabbitmq_without_network() -> tuple[RabbitBroker, list[bytes]]:
    """The same."""
    broker, kept = RabbitBroker(logger=SILENT), _Kept()
    producer: Any = broker.config.producer
    producer.declarer = kept
    producer.connect(serializer=broker.config.fd_config._serializer)
    return broker, kept.sent


def handler(handled: Handled, dependency: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that notes what it gets."""

    async def handle(event: Message, db: Annotated[str, Depends(dependency)]) -> None:
        handled.note(event.body.timestamp)

    return handle


async def dispatching(handled: Handled, dependency: Callable[..., Any]) -> Callable[[bytes], Any]:
    """What a subscriber of Kafka does with a record that it got; it commits nothing."""
    broker = KafkaBroker(logger=SILENT)
    subscriber: Any = broker.subscriber("user_events", ack_policy=AckPolicy.ACK_FIRST)
    subscriber(handler(handled, dependency))
    broker.config.logger._setup(broker.context)
    await SubscriberUsecase.start(subscriber)
    subscriber._post_start()

    def consume(payload: bytes) -> Any:
        record = ConsumerRecord("user_events", 0, 0, 1, 0, b"42", payload, 0, 0, 0, ())
        return subscriber.consume(record)

    return consume
