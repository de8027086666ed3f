"""Several consumers of one group: order by a single active one, or all at once."""

import asyncio
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from brokers.rabbitmq import RabbitMQ
from brokers.rabbitmq_access import RabbitMQAccess
from dispytch import Consumer, Delivery, EventEmitter

if TYPE_CHECKING:
    from tests.plugins.rabbitmq.conftest import OpenConsumer

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq

EVENTS, KEYS = 2000, 50


class Reader:
    """Receives and acknowledges, in order, until it is told to die."""

    def __init__(self, consumer: Consumer, seen: list[tuple[int, str, int]], number: int) -> None:
        self._consumer = consumer
        self._seen = seen
        self._number = number
        self.count = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            for delivery in await self._consumer.receive(20):
                if delivery.lost:
                    continue
                self._seen.append((self._number, *_lane_and_number(delivery)))
                self.count += 1
                await delivery.ack()
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))
        await self._consumer.stop()


def _lane_and_number(delivery: Delivery) -> tuple[str, int]:
    body = json.loads(delivery.payload)["body"]
    return body["lane"], body["number"]


async def _all_seen(seen: list[tuple[int, str, int]], count: int) -> None:
    async with asyncio.timeout(30):
        while len({(lane, number) for _, lane, number in seen}) < count:  # noqa: ASYNC110 - a list
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", ["stopped", "cut off"])
async def test_keys_stay_in_order_and_another_takes_over(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any, unique_name: str, end: str
) -> None:
    """One of two is active; when it ends half-way the other goes on, and no key is out of order."""
    url = own_rabbitmq.url
    proxy = own_rabbitmq.proxy()
    seen: list[tuple[int, str, int]] = []
    readers = [
        Reader(await open_consumer(through, unique_name, held=100), seen, number)
        for number, through in ((1, own_rabbitmq.url_for(port=proxy.port)), (2, url))
    ]
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        events = [numbered(to=unique_name, lane=f"k{n % KEYS}", number=n) for n in range(EVENTS)]
        await emitter.emit_many(events[: EVENTS // 2])
        await _all_seen(seen, EVENTS // 4)
        assert {number for number, _, _ in seen} == {1}
        sending = asyncio.create_task(emitter.emit_many(events[EVENTS // 2 :]))
        if end == "stopped":
            await readers[0].stop()
        await asyncio.to_thread(proxy.close)
        await sending
        await _all_seen(seen, EVENTS)
    for reader in readers:
        await reader.stop()
    assert readers[1].count > EVENTS // 4
    first: dict[str, list[int]] = defaultdict(list)
    for _, lane, number in seen:
        if number not in first[lane]:
            first[lane].append(number)
    assert all(numbers == sorted(numbers) for numbers in first.values())
    assert len(seen) - EVENTS <= 100  # redelivered: what the first held


async def test_without_order_all_work(
    rabbitmq_broker: RabbitMQAccess,
    open_consumer: "OpenConsumer",
    numbered: Any,
    unique_name: str,
) -> None:
    """Where order is not asked for, both take their share."""
    url = rabbitmq_broker.url
    seen: list[tuple[int, str, int]] = []
    readers = [
        Reader(await open_consumer(url, unique_name, ordered=False, held=50), seen, number)
        for number in (1, 2)
    ]
    async with EventEmitter.from_url(url, timeout=20) as emitter:
        await emitter.emit_many(
            [numbered(to=unique_name, lane=str(n), number=n) for n in range(EVENTS)]
        )
        await _all_seen(seen, EVENTS)
    for reader in readers:
        assert reader.count > EVENTS // 10
        await reader.stop()
    assert len(seen) == EVENTS
