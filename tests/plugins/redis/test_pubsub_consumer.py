"""RedisPubSubConsumer: gets what it subscribed to, once for each way, and refuses groups."""

import asyncio
from typing import Any
from unittest import mock

import pytest

from brokers.process import free_port
from brokers.redis import LIMITED, PASSWORD, USER, Redis

pytest.importorskip("redis")

from dispytch import (
    ConfigError,
    ConnectError,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Retry,
    SettleError,
    Subscription,
)
from dispytch_redis import RedisConnection, RedisPubSubConsumer
from dispytch_redis.producer import RedisProducer
from plugins.redis.pubsub import (
    connection_of,
    nothing_more,
    out,
    producing,
    received,
    subscribed,
    true_soon,
    url_of,
)

pytestmark = pytest.mark.redis


async def test_whatever_is_published_comes(own_redis: Redis, unique_name: str) -> None:
    """From anybody, byte for byte, in order."""
    payloads = [b"", bytes(range(256)), b"{}", b"\0dispytch ", b"x" * 1_000_000]
    async with subscribed(own_redis, unique_name) as consumer:
        for payload in payloads:
            await asyncio.to_thread(own_redis.call, "PUBLISH", unique_name, payload)
        came = await received(consumer, len(payloads))
    assert [each.payload for each in came] == payloads
    assert {(each.topic, each.key, each.headers, each.via) for each in came} == {
        (unique_name, None, (), None)
    }


@pytest.mark.parametrize("special", ["?", "[ab]", "^", "\\", "[^a]", "]", "[", "{"])
async def test_what_is_special_to_redis_is_literal(
    own_redis: Redis, unique_name: str, special: str
) -> None:
    """In a pattern and in a topic it stands for itself alone."""
    name, other = f"{unique_name}{special}", f"{unique_name}a"
    written = name.replace("{", "{{")
    async with subscribed(own_redis, f"{written}.{{x}}", written) as consumer:
        for channel in (f"{other}.b", other, f"{name}.b", name):
            await asyncio.to_thread(own_redis.call, "PUBLISH", channel, "any")
        assert [each.topic for each in await received(consumer, 2)] == [f"{name}.b", name]
        await nothing_more(consumer, own_redis, name)


async def test_a_prefix_with_a_star_keeps_others_out(own_redis: Redis, unique_name: str) -> None:
    """A prefix is a name, never a pattern."""
    async with subscribed(own_redis, "{x}", channel_prefix=f"{unique_name}*:") as consumer:
        await asyncio.to_thread(own_redis.call, "PUBLISH", f"{unique_name}-other:a", "no")
        await asyncio.to_thread(own_redis.call, "PUBLISH", f"{unique_name}*:a", "yes")
        (delivery,) = await consumer.receive(10)
        assert (delivery.topic, delivery.payload) == ("a", b"yes")


async def test_each_handler_runs_once(own_redis: Redis, unique_name: str) -> None:
    """However many of a listener's topics and patterns match an event."""

    class There(EventBase):
        __topic__ = f"{unique_name}.a"
        __event_type__ = "there"

    listener = EventListener.from_url(url_of(own_redis))
    ran: list[str] = []

    @listener.handler(There)
    async def by_topic(event: Event[There]) -> None:
        ran.append("topic")

    @listener.handler(topic=f"{unique_name}.{{x}}", event="there")
    async def by_segment(event: Event[There]) -> None:
        ran.append("segment")

    @listener.handler(topic=f"{unique_name}.*", event="there")
    async def by_rest(event: Event[There]) -> None:
        ran.append("rest")

    async with listener, EventEmitter.from_url(url_of(own_redis)) as emitter:
        receipt = await emitter.emit(There())
        assert receipt.details["receivers"] == 2  # two of the three are one pattern to Redis
        await true_soon(lambda: listener.counts.handled == 3)
        await emitter.emit(There())
        await true_soon(lambda: listener.counts.handled == 6)
    assert sorted(ran) == ["rest"] * 2 + ["segment"] * 2 + ["topic"] * 2


async def test_nack_brings_it_again_in_its_place(own_redis: Redis, unique_name: str) -> None:
    """From memory, as the next attempt and before what was published later."""
    async with subscribed(own_redis, unique_name) as consumer, producing(own_redis) as producer:
        for number in range(5):
            await producer.send_message(out(unique_name, b"%d" % number, "k"))
        first, second, third = await received(consumer, 3)
        for delivery in (second, first):
            await delivery.nack()
        await third.ack()
        again = await received(consumer, 4)
        assert [each.payload for each in again] == [b"0", b"1", b"3", b"4"]
        assert [each.attempt for each in again] == [2, 2, 1, 1]
        await nothing_more(consumer, own_redis, unique_name)
    await first.ack()
    with pytest.raises(SettleError, match="lost"):
        await first.nack()


def test_a_delay_is_the_listeners_to_wait() -> None:
    """Redis would keep nothing meanwhile."""
    assert RedisPubSubConsumer.delays is False


async def test_a_group_is_refused(own_redis: Redis, unique_name: str) -> None:
    """Before anything is sent, with what to do instead: events would be lost, and come to each."""
    consumer = RedisPubSubConsumer(connection_of(own_redis, port=free_port()))
    await consumer.start()
    with pytest.raises(ConfigError, match=r"redis://.*leave `group` out"):
        await consumer.subscribe([Subscription(unique_name, "billing")])

    class There(EventBase):
        __topic__ = unique_name
        __event_type__ = "there"

    listener = EventListener.from_url(url_of(own_redis), group="billing")

    @listener.handler(There)
    async def handle(event: Event[There]) -> None: ...

    with pytest.raises(ConfigError, match="'billing'"):
        await listener.start()


async def test_who_may_not_subscribe_is_told(own_redis: Redis, unique_name: str) -> None:
    """For good: trying again does not help; and that holds for patterns."""
    for topic in (unique_name, f"{unique_name}.*"):
        with pytest.raises(ConnectError, match="permission") as raised:
            async with subscribed(own_redis, topic, user=LIMITED):
                pass
        assert not raised.value.retriable


async def test_a_server_that_is_not_there_is_an_error(own_redis: Redis, unique_name: str) -> None:
    """`subscribe` says so, and works when called again."""
    consumer = RedisPubSubConsumer(connection_of(own_redis))
    await asyncio.to_thread(own_redis.kill)
    with pytest.raises(ConnectError) as raised:
        await consumer.subscribe([Subscription(unique_name)])
    assert raised.value.retriable
    await asyncio.to_thread(own_redis.start)
    await consumer.subscribe([Subscription(unique_name)])
    await nothing_more(consumer, own_redis, unique_name)
    await consumer.stop()


async def test_a_user_who_may_not_ping_is_served(own_redis: Redis, unique_name: str) -> None:
    """A refused PING is an answer, too."""
    rights = ("on", f">{PASSWORD}", "resetchannels", "allchannels", "-@all", "+subscribe")
    await asyncio.to_thread(own_redis.call, "ACL", "SETUSER", "mute", *rights)
    async with subscribed(own_redis, unique_name, user="mute", reply_timeout=0.2) as consumer:
        for _ in range(3):
            await consumer.ping()
        waiting = asyncio.create_task(consumer.receive(1))
        done, _ = await asyncio.wait({waiting}, timeout=1.0)
        assert not done
        await asyncio.to_thread(own_redis.call, "PUBLISH", unique_name, "any")
        assert [each.payload for each in await waiting] == [b"any"]
        assert consumer.gaps == 0


async def test_cancelling_a_subscribe_leaves_no_connection(
    own_redis: Redis, unique_name: str
) -> None:
    """A listener whose time is up has nothing open."""
    with own_redis.proxy() as proxy:
        proxy.delay(0.3)
        consumer = RedisPubSubConsumer(connection_of(own_redis, port=proxy.port))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await consumer.subscribe([Subscription(unique_name)])
        await consumer.stop()
        with pytest.raises(ConnectError):
            await consumer.receive(1)


async def test_receiving_ends_with_stop(own_redis: Redis, unique_name: str) -> None:
    """Who waits in `receive` is told, for good."""
    async with subscribed(own_redis, unique_name) as consumer:
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0)
    with pytest.raises(ConnectError) as raised:
        await waiting
    assert not raised.value.retriable
    with pytest.raises(ConnectError):
        await consumer.ping()


async def test_dead_letters_are_kept_in_a_stream(own_redis: Redis, unique_name: str) -> None:
    """Published, a dead letter would be lost; in `<topic>.dlq` a listener of Streams finds it."""

    class Poison(EventBase):
        __topic__ = unique_name
        __event_type__ = "poison"
        __key__ = "k"

    listener = EventListener.from_url(url_of(own_redis, user=USER))

    @listener.handler(Poison, retry=Retry(attempts=1))
    async def fail(event: Event[Poison]) -> None:
        raise ValueError("never")

    poison = Poison()
    async with listener, EventEmitter.from_url(url_of(own_redis)) as emitter:
        await emitter.emit(poison)
        await true_soon(lambda: listener.counts.dead_lettered == 1)
    streams = own_redis.call("KEYS", f"dispytch:stream:{unique_name}.dlq:*")
    (letter,) = [entry for name in streams for entry in own_redis.entries(name.decode())]
    assert poison.id.encode() in letter.fields[b"payload"]
    assert letter.fields[b"key"] == b"k"
    assert letter.fields[b"header:x-dispytch-dlq-message"] == b"never"


def test_the_producer_of_dead_letters_is_on_the_same_server(own_redis: Redis) -> None:
    """With the same login, database, time-outs and TLS files."""
    files = {"cafile": own_redis.certificates.ca}
    given = {"connect_timeout": 1, "client_name": "c", "port": own_redis.tls_port, **files}
    consumer = RedisPubSubConsumer(
        connection_of(own_redis, user=USER).model_copy(update={"scheme": "rediss+pubsub", **given})
    )
    with mock.patch.object(RedisProducer, "__init__", return_value=None) as made:
        consumer.dead_letter_producer()
    settings = made.call_args.args[0]
    assert isinstance(settings, RedisConnection)
    assert (settings.scheme, settings.is_tls) == ("rediss", True)
    assert (settings.login, settings.login_password) == (USER, PASSWORD)
    assert (settings.connect_timeout, settings.client_name) == (1, "c")
    assert settings.cafile == own_redis.certificates.ca


def test_something_else_than_a_connection_is_refused() -> None:
    """Such as a URL: the message says how to begin."""
    url: Any = "redis+pubsub://localhost"
    with pytest.raises(ConfigError, match="from_url"):
        RedisPubSubConsumer(url)
