"""`dispytch dlq` on brokers and files: what one process could not handle, another replays."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from brokers.kafka_access import KafkaAccess
from brokers.rabbitmq_access import RabbitMQAccess
from brokers.redis_access import RedisAccess
from dispytch import Event, EventBase, EventEmitter, EventListener, Retry

COUNT = 30


async def _dispytch(*args: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "dispytch", *args],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def _shop(url: str, topic: str) -> tuple[type[Any], Callable[..., EventListener]]:
    class Order(EventBase):
        __topic__ = topic
        __event_type__ = "order"
        __key__ = "{customer}"

        customer: str

    def listener(work: Callable[[str, str], None]) -> EventListener:
        made = EventListener.from_url(url, group=f"{topic}-shop", retry=Retry(attempts=1))

        @made.handler(Order)
        async def bill(event: Event[Order]) -> None:
            work("bill", event.id)

        @made.handler(Order)
        async def ship(event: Event[Order]) -> None:
            work("ship", event.id)

        return made

    return Order, listener


async def _replayed_to_the_failed_handler_alone(url: str, topic: str) -> None:
    order, listener = _shop(url, topic)
    ran: list[tuple[str, str]] = []
    enough = asyncio.Event()
    broken = True

    def work(handler: str, event_id: str) -> None:
        ran.append((handler, event_id))
        if len(ran) == (2 * COUNT if broken else COUNT):
            enough.set()
        if broken and handler == "bill":
            raise ValueError("no money")

    events = [order(customer=str(n % 3)) for n in range(COUNT)]
    async with asyncio.timeout(150), EventEmitter.from_url(url) as emitter:
        async with listener(work):
            await emitter.emit_many(events)
            await enough.wait()
        for _ in range(2):  # listing leaves them there
            listed = await _dispytch("dlq", "list", url, topic, "--json")
            assert listed.returncode == 0, listed.stderr
            letters = [json.loads(line) for line in listed.stdout.splitlines()]
            assert sorted(each["id"] for each in letters) == sorted(each.id for each in events)
            assert all(each["dead_letter"]["handler"].endswith("bill") for each in letters)
        first = await _dispytch("dlq", "replay", url, topic, "--limit", "10")
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith(f"10 dead letter(s) of {topic} replayed"), first
        rest = await _dispytch("dlq", "replay", url, topic)
        assert rest.stdout.startswith(f"{COUNT - 10} dead letter(s) of {topic} replayed"), rest
        none = await _dispytch("dlq", "list", url, topic)
        assert (none.returncode, none.stdout) == (0, ""), none
        broken = False
        ran.clear()
        enough.clear()
        async with listener(work):
            await enough.wait()
    assert sorted(ran) == sorted(("bill", each.id) for each in events)


@pytest.mark.kafka
async def test_dead_letters_on_kafka_are_replayed_to_the_failed_handler_alone(
    kafka_broker: KafkaAccess,
) -> None:
    """Listing leaves dead letters there; each is replayed once, for the handler that failed."""
    topic = f"orders-{uuid4().hex[:8]}"
    kafka_broker.create_topic(topic, 3)
    await _replayed_to_the_failed_handler_alone(kafka_broker.url, topic)


@pytest.mark.rabbitmq
async def test_dead_letters_on_rabbitmq_are_replayed_to_the_failed_handler_alone(
    rabbitmq_broker: RabbitMQAccess,
) -> None:
    """The same on RabbitMQ, where the dead letters are a queue."""
    topic = f"orders-{uuid4().hex[:8]}"
    await _replayed_to_the_failed_handler_alone(rabbitmq_broker.url, topic)


@pytest.mark.redis
async def test_dead_letters_on_redis_are_replayed_to_the_failed_handler_alone(
    redis_broker: RedisAccess,
) -> None:
    """The same on Redis, where the dead letters are streams."""
    topic = f"orders-{uuid4().hex[:8]}"
    await _replayed_to_the_failed_handler_alone(redis_broker.url, topic)


async def test_dead_letters_in_a_file_are_replayed_to_the_failed_handler_alone(
    tmp_path: Path,
) -> None:
    """The same on SQLite, where other processes open the file that the listener uses."""
    await _replayed_to_the_failed_handler_alone(f"sqlite:///{tmp_path}/events.db", "orders")
