"""Gaps of Pub/Sub: what is lost is told, and what is slow is not taken for lost."""

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.redis import Redis
from brokers.redis_access import connected

pytest.importorskip("redis")

from dispytch import ConnectError, Delivery, Event, EventBase, EventListener
from dispytch_redis import RedisPubSubConsumer
from plugins.redis.pubsub import (
    nothing_more,
    out,
    producing,
    received,
    subscribed,
    subscribed_again,
    true_soon,
    url_of,
)

pytestmark = [pytest.mark.redis, pytest.mark.chaos]

LAG = 0.3
"""Seconds that this machine may be late."""


@pytest.fixture(scope="module")
def strict_redis() -> Iterator[Redis]:
    """One that lets no more than 1 MB wait for a subscriber."""
    limits = {"client-output-buffer-limit": "pubsub 1mb 512kb 60"}
    with started(lambda: Redis(config=limits)) as broker:
        yield broker


async def told(consumer: RedisPubSubConsumer) -> str:
    """What `receive` says of a gap; nothing else may come before."""
    async with asyncio.timeout(20):
        with pytest.raises(ConnectError) as raised:
            await consumer.receive(1)
    assert raised.value.retriable
    return str(raised.value)


async def take_all(consumer: RedisPubSubConsumer, came: list[Delivery]) -> None:
    """Receive until a gap."""
    async with asyncio.timeout(20):
        while True:
            came += await consumer.receive(1)


def lasted(caplog: pytest.LogCaptureFixture) -> list[float]:
    """How long each gap was, as the log says."""
    found = [re.search(r"in the last ([\d.]+) s may be lost", text) for text in caplog.messages]
    return [float(each.group(1)) for each in found if each is not None]


async def test_a_server_that_is_killed_is_a_gap(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`receive` raises until it is there again, then goes on; the log says how long it was."""
    async with subscribed(own_redis, unique_name, reconnect_interval=0.05) as consumer:
        await nothing_more(consumer, own_redis, unique_name)
        began = time.monotonic()
        await asyncio.to_thread(own_redis.kill)
        assert "the connection was lost" in await told(consumer)
        for _ in range(2):
            assert "meanwhile is lost" in await told(consumer)
            with pytest.raises(ConnectError):
                await consumer.ping()
        await asyncio.to_thread(own_redis.start)
        await true_soon(lambda: lasted(caplog))
        assert lasted(caplog)[0] >= time.monotonic() - began - LAG
        await consumer.ping()
        await nothing_more(consumer, own_redis, unique_name)
        assert consumer.gaps == 1


async def test_a_short_gap_is_told_once(own_redis: Redis, unique_name: str) -> None:
    """Also to who asks when it is over; what came before it is not lost."""
    with own_redis.proxy() as proxy:
        async with subscribed(own_redis, unique_name, port=proxy.port) as consumer:
            await asyncio.to_thread(own_redis.call, "PUBLISH", unique_name, "before")
            await consumer.ping()  # it has been read
            await asyncio.to_thread(proxy.reset)
            await true_soon(lambda: consumer.gaps == 1)
            await subscribed_again(consumer)
            assert own_redis.call("PUBLISH", unique_name, "after") == 1
            assert "lost" in await told(consumer)
            assert [each.payload for each in await received(consumer, 2)] == [b"before", b"after"]
            await nothing_more(consumer, own_redis, unique_name)
            assert consumer.gaps == 1


async def test_who_waits_is_told_at_once(own_redis: Redis, unique_name: str) -> None:
    """A `receive` that waits when the connection ends raises."""
    with own_redis.proxy() as proxy:
        async with subscribed(own_redis, unique_name, port=proxy.port) as consumer:
            waiting = asyncio.create_task(told(consumer))
            await asyncio.sleep(0)
            await asyncio.to_thread(proxy.reset)
            await waiting


async def test_all_topics_are_subscribed_to_again(own_redis: Redis, unique_name: str) -> None:
    """After the connection ended, by name and by pattern."""
    topics = [f"{unique_name}.a", f"{unique_name}.b", f"{unique_name}-{{x}}.c"]
    with own_redis.proxy() as proxy:
        async with subscribed(own_redis, *topics, port=proxy.port) as consumer:
            await asyncio.to_thread(proxy.reset)
            await told(consumer)
            await subscribed_again(consumer)
            for topic in (*topics[:2], f"{unique_name}-any.c"):
                assert own_redis.call("PUBLISH", topic, "more") == 1
            assert len(await received(consumer, 3)) == 3


@pytest.mark.parametrize("fault", ["frozen", "swallowed"])
async def test_a_connection_on_which_nothing_comes_is_a_gap(
    own_redis: Redis, unique_name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that stands still, and a network that swallows all, are noticed by their silence."""
    given: dict[str, Any] = {
        "reply_timeout": 0.5,
        "connect_timeout": 0.5,
        "reconnect_interval": 0.05,
    }
    with own_redis.proxy() as proxy:
        async with subscribed(own_redis, unique_name, port=proxy.port, **given) as consumer:
            await nothing_more(consumer, own_redis, unique_name)
            began = time.monotonic()
            await asyncio.to_thread(own_redis.freeze if fault == "frozen" else proxy.black_hole)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await consumer.ping()
            assert "no sign of life" in await told(consumer)
            assert 0.4 < time.monotonic() - began < 0.5 * 1.5 + 3 * LAG
            await asyncio.to_thread(own_redis.thaw if fault == "frozen" else proxy.restore)
            await true_soon(lambda: lasted(caplog))
            assert lasted(caplog)[0] >= time.monotonic() - began - LAG
            await subscribed_again(consumer)
            await nothing_more(consumer, own_redis, unique_name)
            assert consumer.gaps == 1


async def test_an_idle_connection_stays(own_redis: Redis, unique_name: str) -> None:
    """Where nothing is published for long there is no gap."""
    async with subscribed(own_redis, unique_name, reply_timeout=0.3) as consumer:
        waiting = asyncio.create_task(consumer.receive(1))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        await asyncio.to_thread(own_redis.call, "PUBLISH", unique_name, "any")
        assert len(await waiting) == 1
        assert consumer.gaps == 0


async def test_a_loop_that_stood_still_is_no_gap(own_redis: Redis, unique_name: str) -> None:
    """A handler that blocks says nothing of the server."""
    async with subscribed(own_redis, unique_name, reply_timeout=0.3) as consumer:
        for _ in range(5):
            time.sleep(0.5)  # noqa: ASYNC251 - that is what is shown
            await asyncio.sleep(0.05)
        await nothing_more(consumer, own_redis, unique_name)
        assert consumer.gaps == 0


async def test_no_more_than_max_held_is_read(own_redis: Redis, unique_name: str) -> None:
    """The rest waits at the server, is not lost, and the connection is not taken for dead."""
    given: dict[str, Any] = {"reply_timeout": 0.3, "held": 10}
    async with (
        subscribed(own_redis, unique_name, **given) as consumer,
        producing(own_redis) as producer,
    ):
        payload = b"x" * 100_000
        for _ in range(100):  # more than the buffers on the way hold
            await producer.send_message(out(unique_name, payload))
        waited = asyncio.create_task(asyncio.sleep(1.5))
        while not waited.done():
            await consumer.ping()
            assert len(consumer._inbox._waiting) <= 10
            await asyncio.sleep(0.01)
        assert len(consumer._inbox._waiting) == 10
        came = await received(consumer, 100, limit=7)
        assert {each.payload for each in came} == {payload}
        await nothing_more(consumer, own_redis, unique_name)
        assert consumer.gaps == 0


async def test_a_slow_subscriber_learns_why_it_was_cut(
    strict_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server hung up as too much waited: the gap's cause is named, and what came is handled."""
    async with (
        subscribed(strict_redis, unique_name, held=5) as consumer,
        producing(strict_redis) as producer,
    ):
        began = time.monotonic()
        receivers, sent = 1, 0
        while receivers:
            sent += 1
            told_of = await producer.send_message(out(unique_name, b"x" * 100_000))
            receivers = told_of["receivers"]
        came: list[Delivery] = []
        with pytest.raises(ConnectError, match="client-output-buffer-limit"):
            await take_all(consumer, came)
        assert 0 < len(came) < sent
        await true_soon(lambda: lasted(caplog))
        assert lasted(caplog)[0] >= time.monotonic() - began - LAG
        await subscribed_again(consumer)
        await nothing_more(consumer, strict_redis, unique_name)


async def test_a_gap_begins_before_what_was_lost(
    strict_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the loop stood still so long that the server hung up meanwhile."""
    published: dict[bytes, float] = {}
    async with subscribed(strict_redis, unique_name, reply_timeout=0.4) as consumer:
        subscriber = consumer._subscriber
        assert subscriber is not None
        began = subscriber.read_to
        await true_soon(lambda: subscriber.read_to > began)
        receivers = 1
        with connected(strict_redis.url) as publisher:  # it holds up the loop
            while receivers:
                payload = b"%d " % len(published) + b"x" * 50_000
                published[payload] = time.time()
                receivers = publisher.call("PUBLISH", unique_name, payload)
        came: list[Delivery] = []
        with pytest.raises(ConnectError):
            await take_all(consumer, came)
        await true_soon(lambda: lasted(caplog))
    lost = published.keys() - {each.payload for each in came}
    (told,) = [record for record in caplog.records if "may be lost" in record.getMessage()]
    assert came
    assert min(published[payload] for payload in lost) >= told.created - lasted(caplog)[0]


async def test_an_answer_tells_of_what_was_before_the_question(
    own_redis: Redis, unique_name: str
) -> None:
    """What was published while the answer was on its way may not have been read."""
    with own_redis.proxy() as proxy:
        async with subscribed(own_redis, unique_name, port=proxy.port) as consumer:
            subscriber = consumer._subscriber
            assert subscriber is not None
            proxy.delay(0.5)
            asked = time.monotonic()
            await consumer.ping()
            assert abs(subscriber.read_to - asked) < LAG
            assert time.monotonic() - asked > 0.9


async def test_a_server_that_is_stopped_is_not_blamed_on_handlers(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing waited unread, no such cause is named."""
    async with subscribed(own_redis, unique_name) as consumer:
        await consumer.ping()
        await asyncio.to_thread(own_redis.stop)
        assert "output-buffer" not in await told(consumer)
    assert "output-buffer" not in caplog.text


async def test_health_tells_of_a_gap(
    own_redis: Redis, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a short one for a moment, and in the log; then all is well again."""

    class There(EventBase):
        __topic__ = unique_name
        __event_type__ = "there"

    caplog.set_level(logging.WARNING)
    with own_redis.proxy() as proxy:
        listener = EventListener.from_url(url_of(own_redis, port=proxy.port))

        @listener.handler(There)
        async def handle(event: Event[There]) -> None: ...

        async with listener:
            assert listener.health()
            await asyncio.to_thread(proxy.reset)
            await true_soon(lambda: not listener.health())
            (problem,) = listener.health().problems
            assert "lost" in problem
            await true_soon(
                lambda: own_redis.call("PUBLISH", unique_name, There().model_dump_json())
            )
            await true_soon(lambda: bool(listener.health()))
    assert lasted(caplog)


async def test_a_refusal_while_connecting_again_is_told_and_tried_again(
    own_redis: Redis, unique_name: str
) -> None:
    """Rights that were taken away may be given back: the consumer goes on then."""
    rights = ("on", "nopass", "resetchannels", "+@all")
    own_redis.call("ACL", "SETUSER", "changing", *rights, "allchannels")
    given: dict[str, Any] = {"user": "changing", "reconnect_interval": 0.05}
    async with subscribed(own_redis, unique_name, **given) as consumer:
        own_redis.call("ACL", "SETUSER", "changing", "resetchannels")  # it ends the connection
        await true_soon(lambda: consumer._problem and "permission" in str(consumer._problem))
        assert "the connection was lost" in await told(consumer)
        assert "permission" in await told(consumer)
        own_redis.call("ACL", "SETUSER", "changing", "allchannels")
        await subscribed_again(consumer)
        await nothing_more(consumer, own_redis, unique_name)
