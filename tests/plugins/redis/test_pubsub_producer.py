"""RedisPubSubProducer: publishes, tells how many got it, and is honest about what it can't know."""

import asyncio
import time
from typing import Any

import pytest

from brokers.redis import LIMITED, Redis

pytest.importorskip("redis")

from dispytch import (
    ConfigError,
    ConnectError,
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    EventEmitter,
    Outgoing,
)
from dispytch.testing.conformance.kit import numbered
from dispytch_redis import RedisPubSubEventConfig, RedisPubSubProducer
from plugins.redis.pubsub import out, producing, subscribed, url_of

pytestmark = pytest.mark.redis


async def test_a_receipt_tells_how_many_got_it(own_redis: Redis, unique_name: str) -> None:
    """Nobody, too: that is what Pub/Sub is."""
    async with producing(own_redis, channel_prefix="p:") as producer:
        told = await producer.send_message(out(unique_name))
        assert told == {"channel": f"p:{unique_name}", "receivers": 0}
        async with subscribed(own_redis, unique_name, channel_prefix="p:"):
            assert (await producer.send_message(out(unique_name)))["receivers"] == 1


async def test_the_configs_key_and_headers_travel(own_redis: Redis, unique_name: str) -> None:
    """Bytes, names that come twice; the config's key wins, and a header of a middleware."""
    config = RedisPubSubEventConfig(
        partition_key=b"\xff", headers=(("twice", "1"), ("twice", b"\x00\xff"), ("of", "config"))
    )
    async with subscribed(own_redis, unique_name) as consumer, producing(own_redis) as producer:
        message = out(unique_name, b"any", "key", config=config, headers={"of": "middleware"})
        await producer.send_message(message)
        (delivery,) = await consumer.receive(1)
    assert (delivery.payload, delivery.key) == (b"any", "\udcff")
    assert delivery.headers == (("twice", b"1"), ("twice", b"\x00\xff"), ("of", b"middleware"))


@pytest.mark.parametrize("state", ["out_of_memory", "read_only", "failing_disk"])
async def test_a_server_that_refuses_writes_still_publishes(
    own_redis: Redis, unique_name: str, state: str
) -> None:
    """It stores nothing of it."""
    async with subscribed(own_redis, unique_name) as consumer, producing(own_redis) as producer:
        with getattr(own_redis, state)():
            assert (await producer.send_message(out(unique_name)))["receivers"] == 1
        assert len(await consumer.receive(10)) == 1


async def test_who_may_not_publish_is_told(own_redis: Redis, unique_name: str) -> None:
    """It is rejected for good, and the connection goes on."""
    async with producing(own_redis, user=LIMITED) as producer:
        for _ in range(2):
            with pytest.raises(EmitRejected, match="permission") as raised:
                await producer.send_message(out(unique_name))
            assert not raised.value.retriable
        await producer.ping()


@pytest.mark.parametrize("bad", [{"topic": "\ud800"}, {"headers": {"\ud800": "x"}}])
async def test_what_can_not_be_written_is_rejected(own_redis: Redis, bad: dict[str, Any]) -> None:
    """Before anything is sent."""
    message = Outgoing("id", "type", **{"topic": "any", "payload": b"", **bad})
    async with producing(own_redis) as producer:
        with pytest.raises(EmitRejected, match="UTF-8"):
            await producer.send_message(message)


async def test_a_frozen_server_leaves_the_outcome_unknown(
    own_redis: Redis, unique_name: str
) -> None:
    """It was sent, and no reply came; what follows waits, and is certainly not sent."""
    async with producing(own_redis, reply_timeout=1, connect_timeout=1) as producer:
        await asyncio.to_thread(own_redis.freeze)
        try:
            with pytest.raises(EmitUnknown, match="no reply"):
                await producer.send_message(out(unique_name))
            soon = asyncio.get_running_loop().time() + 1.0
            with pytest.raises(EmitRejected, match="not sent before its deadline") as raised:
                await producer.send_message(out(unique_name, deadline=soon))
            assert raised.value.retriable
            with pytest.raises(ConnectError):
                await producer.ping()
        finally:
            await asyncio.to_thread(own_redis.thaw)
        assert (await producer.send_message(out(unique_name)))["receivers"] == 0


@pytest.mark.parametrize("turns", range(8))
async def test_a_loop_that_stood_still_loses_no_reply(
    own_redis: Redis, unique_name: str, turns: int
) -> None:
    """However long a handler blocks: what the server answered meanwhile is read first."""
    async with producing(own_redis, reply_timeout=0.3) as producer:
        await producer.send_message(out(unique_name))
        sending = asyncio.create_task(producer.send_message(out(unique_name)))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - that is what is shown
        assert (await sending)["receivers"] == 0


async def test_emits_wait_while_there_is_no_connection(own_redis: Redis, unique_name: str) -> None:
    """What waits is sent when there is one again, in time for its deadline."""
    with own_redis.proxy() as proxy:
        async with (
            subscribed(own_redis, unique_name) as consumer,
            producing(own_redis, port=proxy.port, reconnect_interval=0.05) as producer,
        ):
            await asyncio.to_thread(proxy.refuse)
            with pytest.raises(ConnectError):
                await producer.ping()
            waiting = asyncio.create_task(producer.send_message(out(unique_name)))
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
            await asyncio.to_thread(proxy.restore)
            assert (await waiting)["receivers"] == 1
            assert len(await consumer.receive(10)) == 1


async def test_what_had_no_connection_until_its_deadline_was_not_sent(
    own_redis: Redis, unique_name: str
) -> None:
    """An emit, and a batch, say so: they may be emitted again."""
    kind = numbered(unique_name)
    with own_redis.proxy() as proxy:
        url = url_of(own_redis, port=proxy.port)
        async with EventEmitter.from_url(url, timeout=0.5) as emitter:
            await asyncio.to_thread(proxy.refuse)
            with pytest.raises(ConnectError):  # it is known by now
                await emitter.producer.ping()
            with pytest.raises(EmitRejected) as raised:
                await emitter.emit(kind())
            assert raised.value.retriable
            with pytest.raises(EmitManyError) as all_failed:
                await emitter.emit_many([kind(lane=1), kind(lane=1), kind(lane=2)])
            assert all(isinstance(each, EmitRejected) for each in all_failed.value.results)


async def test_a_cut_connection_leaves_the_outcome_unknown(
    own_redis: Redis, unique_name: str
) -> None:
    """It is not sent a second time."""
    with own_redis.proxy() as proxy:
        async with (
            subscribed(own_redis, unique_name) as consumer,
            producing(own_redis, port=proxy.port) as producer,
        ):
            proxy.delay(0.5)
            sending = asyncio.create_task(producer.send_message(out(unique_name, b"once")))
            assert (await consumer.receive(10))[0].payload == b"once"
            await asyncio.to_thread(proxy.reset)
            with pytest.raises(EmitUnknown):
                await sending
            proxy.delay(0)
            await producer.send_message(out(unique_name, b"after"))
            assert [each.payload for each in await consumer.receive(10)] == [b"after"]


async def test_after_a_failure_later_events_of_the_key_are_not_sent(
    own_redis: Redis, unique_name: str
) -> None:
    """Those of other keys, and those without one, are; all outcomes stand in their places."""
    async with subscribed(own_redis, unique_name) as consumer, producing(own_redis) as producer:
        batch = [
            out(unique_name, b"0", "a"),
            out("\ud800", b"1", "a"),
            out(unique_name, b"2", "a"),
            out(unique_name, b"3", "b"),
            out("\ud800", b"4"),
            out(unique_name, b"5"),
        ]
        outcomes = await producer.send_messages(batch)
        came = [each.payload for each in await consumer.receive(10)]
    failed = [isinstance(outcome, EmitRejected) for outcome in outcomes]
    assert failed == [False, True, True, False, True, False]
    assert sorted(came) == [b"0", b"3", b"5"]


async def test_a_batch_is_sent_in_few_steps(own_redis: Redis, unique_name: str) -> None:
    """Different keys side by side: through a slow network it takes no longer than one event."""
    kind = numbered(unique_name)
    with own_redis.proxy() as proxy:
        proxy.delay(0.2)
        async with EventEmitter.from_url(url_of(own_redis, port=proxy.port)) as emitter:
            began = time.monotonic()
            await emitter.emit_many(kind(lane=number) for number in range(200))
            assert time.monotonic() - began < 5


async def test_a_dead_letter_that_nobody_gets_is_an_error(
    own_redis: Redis, unique_name: str
) -> None:
    """A listener that is given this producer keeps the event, and does not lose it."""
    async with producing(own_redis) as producer:
        with pytest.raises(EmitRejected, match="nobody is subscribed"):
            await producer.send_dead_letter(out(unique_name))
        async with subscribed(own_redis, unique_name):
            await producer.send_dead_letter(out(unique_name))


async def test_an_emit_before_start_and_after_stop_is_rejected(own_redis: Redis) -> None:
    """At once, and with nothing sent."""
    async with producing(own_redis) as producer:
        pass
    with pytest.raises(EmitRejected, match="not started"):
        await producer.send_message(out("any"))
    with pytest.raises(ConnectError):
        await producer.ping()


def test_something_else_than_a_connection_is_refused() -> None:
    """Such as a URL: the message says how to begin."""
    url: Any = "redis+pubsub://localhost"
    with pytest.raises(ConfigError, match="from_url"):
        RedisPubSubProducer(url)
