"""Consuming from Redis while processes or the server die or stand still, or the network fails."""

import asyncio
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest

from brokers.redis import Redis
from dispytch import EmitError, Event, EventBase, EventEmitter, EventListener, RetryLater
from dispytch.listener import session
from dispytch.testing.conformance.report import Handled, check_order, duplicates
from dispytch.testing.conformance.workers import Workers

pytest.importorskip("redis")

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

LANES = 40
DEAD = "taken for dead"


def url_of(redis: Redis, name: str, port: int | None = None, **options: Any) -> str:
    given = {"prefix": name, "reconnect_interval": 0.1, **options}
    return f"{redis.url_for(port=port)}?{urlencode(given)}"


class Load:
    """Events of many keys, emitted without a pause, and what becomes of them.

    Attributes:
        confirmed: how many events.
        done: what was handled.
        attempts: as which attempt.
    """

    def __init__(self, url: str, topic: str) -> None:
        self._emitter = EventEmitter.from_url(url, timeout=30)
        self.confirmed: set[str] = set()
        self.done: list[Handled] = []
        self.attempts: list[int] = []

        class Numbered(EventBase):
            __topic__ = topic
            __event_type__ = "numbered"
            __key__ = "{lane}"

            lane: int
            number: int

        self.kind = Numbered

    def listener(self, url: str, who: int = 0) -> EventListener:
        listener = EventListener.from_url(url, group="g", max_in_flight=50)
        kind = self.kind

        @listener.handler(kind)
        async def handle(event: Event[kind]) -> None:  # type: ignore[valid-type]
            await asyncio.sleep(0.002)
            body: Any = event.body
            self.attempts.append(event.attempt)
            self.done.append(Handled(time.monotonic(), who, body.lane, body.number, event.id))

        return listener

    async def __aenter__(self) -> Self:
        await self._emitter.start()
        self._emitting = asyncio.create_task(self._emit())
        return self

    async def _emit(self) -> None:
        for number in itertools.count():
            events = [self.kind(lane=lane, number=number) for lane in range(LANES)]
            for one in events:
                try:
                    await self._emitter.emit(one)
                except EmitError:
                    continue
                self.confirmed.add(one.id)
            await asyncio.sleep(0.01)

    async def more(self, count: int = 200, within: float = 20.0) -> None:
        """Wait until so many events were handled from now on."""
        before = len(self.done)
        await until(lambda: len(self.done) >= before + count, within)

    async def finish(self, within: float = 20.0) -> None:
        """Emit no more; wait until all is handled, and check the order."""
        self._emitting.cancel()
        await asyncio.wait({self._emitting})
        handled: set[str] = set()

        def all_handled() -> bool:
            handled.update(each.event_id for each in self.done)
            return self.confirmed <= handled

        await until(all_handled, within)
        check_order([each for each in self.done if each.event_id in self.confirmed])

    async def __aexit__(self, *_: object) -> None:
        self._emitting.cancel()
        await asyncio.wait({self._emitting})
        await self._emitter.stop()


async def until(true: Callable[[], object], within: float = 20.0) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


async def _fill(url: str, topic: str, count: int) -> None:
    load = Load(url, topic)
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit_many(load.kind(lane=n % LANES, number=n // LANES) for n in range(count))


async def test_a_killed_process_is_replaced_in_order(
    own_redis: Redis, unique_name: str, tmp_path: Path
) -> None:
    """What it had is handled by others before later events of the key, little of it twice."""
    url, count = url_of(own_redis, unique_name, lease=1), 3000
    with Workers(url, unique_name, tmp_path, work=0.005, max_in_flight=20) as workers:
        first = await asyncio.to_thread(workers.start)
        await asyncio.to_thread(workers.start)
        await _fill(url, unique_name, count)
        await workers.until(lambda: len(workers.handled()) > count // 4, 60, "a part")
        workers.kill(first)
        interrupted = workers.interrupted(first)
        assert interrupted
        done = await workers.reach(count, within=60)
    check_order(done)
    assert duplicates(done) <= 20  # handled, and not acknowledged yet


async def test_a_process_that_stood_still_is_fenced(
    own_redis: Redis, unique_name: str, tmp_path: Path
) -> None:
    """Others go on with what it had; thawed it begins nothing that it had, and comes back."""
    url, count = url_of(own_redis, unique_name, lease=1), 4000
    with Workers(url, unique_name, tmp_path, work=0.01, max_in_flight=10) as workers:
        still = await asyncio.to_thread(workers.start)
        other = await asyncio.to_thread(workers.start)
        await _fill(url, unique_name, count)
        await workers.until(lambda: len(workers.handled()) > count // 4, 60, "a part")
        os.kill(still.pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)  # what it wrote before is there
        begun = workers.interrupted(still)
        try:
            await workers.until(
                lambda: begun <= {e.event_id for e in workers.handled() if e.pid == other.pid},
                20,
                "others handle what it had begun",
            )
        finally:
            os.kill(still.pid, signal.SIGCONT)
        thawed = time.monotonic()
        await workers.reach(count, within=60)
        done = workers.handled()
        late = [each for each in done if each.pid == still.pid and each.at > thawed]
        assert late  # it came back
        assert DEAD in workers.told()
    check_order(done)
    assert duplicates(done) <= len(begun) + 20


@pytest.mark.parametrize("how", ["frozen", "down"])
async def test_a_server_out_of_reach_beyond_the_lease_expels_nobody(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Nothing comes twice but what was under way, and nobody has to come back."""
    url = url_of(own_redis, unique_name, lease=1, reply_timeout=1)
    load = Load(url, unique_name)

    def fault() -> None:
        if how == "frozen":
            own_redis.freeze()
            time.sleep(2.5)
            own_redis.thaw()
        else:
            own_redis.kill()
            time.sleep(2)
            own_redis.start()

    async with load, load.listener(url, 0), load.listener(url, 1):
        await until(lambda: {each.pid for each in load.done} == {0, 1})
        await load.more()
        await asyncio.to_thread(fault)
        await load.more(500)
        await load.finish()
    assert DEAD not in caplog.text
    assert duplicates(load.done) == 0
    assert set(load.attempts) == {1}


async def test_connections_reset_again_and_again_cost_nothing(
    own_redis: Redis, unique_name: str
) -> None:
    """Replies are lost all the time: nothing is lost, handled twice or counted."""
    with own_redis.proxy() as proxy:
        url = url_of(own_redis, unique_name)
        through = url_of(own_redis, unique_name, proxy.port, reconnect_interval=0.01)
        load = Load(url, unique_name)
        async with load, load.listener(through, 0), load.listener(through, 1):
            await load.more()
            for _ in range(30):
                await asyncio.sleep(0.05)
                await asyncio.to_thread(proxy.reset)
            await load.more()
            await load.finish()
    assert proxy.connections > 60
    assert duplicates(load.done) == 0
    assert set(load.attempts) == {1}


async def test_a_black_hole_costs_nothing(own_redis: Redis, unique_name: str) -> None:
    """What the server executed and nobody heard of comes as if for the first time."""
    with own_redis.proxy() as proxy:
        url = url_of(own_redis, unique_name)
        through = url_of(own_redis, unique_name, proxy.port, reply_timeout=0.5, lease=20)
        load = Load(url, unique_name)
        async with load, load.listener(through):
            await load.more()
            for _ in range(2):
                proxy.black_hole()
                await asyncio.sleep(1.5)
                await asyncio.to_thread(proxy.restore)
                await load.more()
            await load.finish()
    assert duplicates(load.done) == 0
    assert set(load.attempts) == {1}


async def test_no_memory_beyond_the_lease_costs_nothing(
    own_redis: Redis,
    unique_name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No lease can be renewed, and nobody can take over: what waits is handled, once, in order."""
    monkeypatch.setattr(session, "_PING_EVERY", 0.5)
    url = url_of(own_redis, unique_name, lease=0.5)
    load = Load(url, unique_name)
    async with load.listener(url, 0) as one, load.listener(url, 1):
        async with load:
            await until(lambda: {each.pid for each in load.done} == {0, 1})
            await load.finish()
        before = len(load.done)
        await _fill(url, unique_name, 5000)
        with own_redis.out_of_memory():
            await until(lambda: any("OutOfMemory" in told for told in one.health().problems))
            await until(lambda: len(load.done) >= before + 3000)
        await until(lambda: len(load.done) >= before + 5000)
        await until(lambda: not one.health().problems)
    check_order(load.done[before:])
    assert DEAD not in caplog.text
    assert duplicates(load.done) == 0
    assert set(load.attempts) == {1}


async def test_a_lost_database_is_gone_on_from(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FLUSHALL under load: two members share again, and handle all that is emitted after it."""
    caplog.set_level(logging.WARNING)
    url = url_of(own_redis, unique_name)
    load = Load(url, unique_name)
    async with load, load.listener(url, 0), load.listener(url, 1):
        await load.more()
        for _ in range(3):
            own_redis.call("FLUSHALL")
            await load.more(300)
        load.confirmed.clear()
        since = time.monotonic()
        await until(lambda: {each.pid for each in load.done if each.at > since} == {0, 1})
        await load.finish()
    assert DEAD in caplog.text


async def test_what_is_put_off_survives_the_server(own_redis: Redis, unique_name: str) -> None:
    """Killed and started again while events wait for their next attempt: each comes once more."""
    url = url_of(own_redis, unique_name)

    class Paid(EventBase):
        __topic__ = unique_name
        __event_type__ = "paid"

        number: int

    came: list[tuple[int, int]] = []

    async with AsyncExitStack() as stack:
        listener = EventListener.from_url(url, group="g")

        @listener.handler(Paid)
        async def handle(event: Event[Paid]) -> RetryLater | None:
            came.append((event.body.number, event.attempt))
            return RetryLater(2) if event.attempt == 1 else None

        await stack.enter_async_context(listener)
        emitter = await stack.enter_async_context(EventEmitter.from_url(url))
        await emitter.emit_many(Paid(number=number) for number in range(100))
        await until(lambda: len(came) == 100)
        await until(lambda: own_redis.call("KEYS", f"{unique_name}:group:g:later:*"))
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: len(came) == 200)
    assert sorted(came) == [(number, attempt) for number in range(100) for attempt in (1, 2)]
