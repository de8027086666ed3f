"""Handling that goes on or ends in order while something is out of reach.

What holds when consumers, brokers and networks break is in `dispytch.testing.conformance.failing`.
Nothing here knows a broker.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from dispytch import Event, EventBase, EventEmitter, EventListener, Retry, Subscription, plugins
from dispytch.testing.conformance import Proxy
from dispytch.testing.conformance.kit import numbered
from dispytch.testing.conformance.report import check_order, duplicates
from dispytch.testing.conformance.workers import Workers
from dispytch.url import connect


async def emit_all(emitter: EventEmitter, topic: str, count: int, lanes: int) -> None:
    """Emit so many events, in order per key, and see each confirmed."""
    kind = numbered(topic)
    for start in range(0, count, 500):
        end = min(start + 500, count)
        await emitter.emit_many(kind(lane=n % lanes, number=n) for n in range(start, end))


async def terminate_workers(url: str, topic: str, folder: Path, *, count: int) -> None:
    """Stop a worker during load: what it finished never comes again, and nothing is lost."""
    with Workers(url, topic, folder, max_in_flight=20, work=0.02) as workers:
        first = workers.start()
        async with EventEmitter.from_url(url) as emitter:
            await emit_all(emitter, topic, count, 50)
        await workers.reach(count // 4, within=60)
        assert await asyncio.to_thread(workers.terminate, first) == 0, workers.told()
        left = len(workers.handled())
        assert left < count, "it was stopped too late to show anything"
        second = await asyncio.to_thread(workers.start)
        done = await workers.reach(count, within=120)
        assert await asyncio.to_thread(workers.terminate, second) == 0, workers.told()
    done = workers.handled()
    check_order(done)
    assert duplicates(done) == 0, f"{duplicates(done)} finished events came again"


async def outlive_the_drain(url: str, topic: str, folder: Path) -> None:
    """A handler that outlives `drain_timeout`: its event alone comes again."""
    with Workers(url, topic, folder, work=0.01, drain_timeout=1) as workers:
        first = workers.start(stuck=7)
        async with EventEmitter.from_url(url) as emitter:
            await emit_all(emitter, topic, 50, 50)
        await workers.reach(49, within=60)
        assert await asyncio.to_thread(workers.terminate, first) == 0, workers.told()
        assert 7 not in {each.number for each in workers.handled()}
        second = await asyncio.to_thread(workers.start)
        await workers.reach(50, within=60)
        assert await asyncio.to_thread(workers.terminate, second) == 0, workers.told()
    done = workers.handled()
    assert [each.number for each in done if each.pid == second.pid] == [7]
    assert duplicates(done) == 0


async def keep_what_cannot_be_buried(url: str, proxied_url: str, topic: str, proxy: Proxy) -> None:
    """The dead-letter topic out of reach: the event is kept, and buried when it is there again.

    Args:
        url: the broker.
        proxied_url: the same, through the proxy: the way of the dead letters.
        topic: exists where the backend needs that.
        proxy: cuts that way.
    """

    class Poison(EventBase):
        __topic__ = topic
        __event_type__ = "poison"

    def listener() -> EventListener:
        producer = EventEmitter.from_url(proxied_url).producer
        made = EventListener.from_url(url, group=f"{topic}-group", dead_letter=producer)

        @made.handler(Poison, retry=Retry(attempts=1))
        async def fail(event: Event[Poison]) -> None:
            raise ValueError("never")

        return made

    first = listener()
    async with first, EventEmitter.from_url(url) as emitter:
        proxy.refuse()
        await emitter.emit(Poison())
        await true_soon(lambda: any("dead letters" in told for told in first.health().problems))
        assert first.counts.dead_lettered == 0
        assert await first.consumer.backlog() == 1
        await asyncio.to_thread(proxy.restore)
        await true_soon(lambda: first.counts.dead_lettered == 1)
        await true_soon(lambda: not first.health().problems)
    second = listener()
    async with second:
        assert await second.consumer.backlog() == 0
    backend = plugins.backend_for_url(url)
    assert backend.connection is not None
    letters = backend.make_consumer(connect(url, backend.connection))
    await letters.start()
    await letters.subscribe([Subscription(f"{topic}.dlq", f"{topic}-readers")])
    async with asyncio.timeout(30):
        (letter,) = await letters.receive(10)
    assert dict(letter.headers)["x-dispytch-dlq-message"] == b"never"
    await letter.ack()
    await letters.stop()


async def true_soon(true: Callable[[], bool], within: float = 60.0) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
