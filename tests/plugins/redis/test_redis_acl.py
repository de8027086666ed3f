"""The rights that docs/redis.md gives to emitters and listeners: enough, and all of them used."""

import asyncio
import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers.process import wait_until
from brokers.redis import Redis
from dispytch import (
    EmitRejected,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Retry,
    RetryLater,
)
from dispytch_redis import RedisEventConfig

pytestmark = pytest.mark.redis

PAGE = (Path(__file__).parents[3] / "docs/redis.md").read_text()
_RULE = re.compile(r"^redis-cli (ACL SETUSER (?:.*\\\n)*.*)$", re.MULTILINE)
RULES = [shlex.split(rule.replace("\\\n", "")) for rule in _RULE.findall(PAGE)]
STREAM = "dispytch:stream:orders:8"


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"
    __key__ = "ada"


class ForeignOrder(Order):
    __topic__ = "orders.eu"


class Price(EventBase):
    __topic__ = "prices"
    __event_type__ = "price"


@pytest.fixture(autouse=True)
def _users(own_redis: Redis) -> None:
    own_redis.call("FLUSHALL")
    own_redis.call("SCRIPT", "FLUSH")
    for rule in RULES:
        own_redis.call(*rule)


def _words(user: str, kind: str) -> set[str]:
    """What the page gives a user, of one kind: what follows `+`, `>`, `~` or `&`."""
    words = [word for rule in RULES if rule[2] == user for word in rule]
    return {word.removeprefix(kind) for word in words if word.startswith(kind)}


def _url(redis: Redis, user: str, scheme: str = "redis") -> str:
    (password,) = _words(user, ">")
    return redis.url_for(user=user, password=password, scheme=scheme)


@contextlib.contextmanager
def _all_rights_used(redis: Redis, *users: str) -> Iterator[None]:
    """Meanwhile the users do nothing that they may not, and give each command that they may."""
    redis.call("ACL", "LOG", "RESET")
    redis.call("CONFIG", "RESETSTAT")
    yield
    used = _used(redis)
    assert redis.call("ACL", "LOG") == []
    rights = {right for user in users for right in _words(user, "+")}
    ours = {"auth", "config|resetstat", "info", "acl|log", "xgroup|destroy"}
    assert used - ours == rights


async def _until_used(redis: Redis, command: str) -> None:
    """Wait for what is done beside the work; a read that waits counts when it ends."""
    await asyncio.to_thread(wait_until, lambda: command in _used(redis), 10, command)


def _used(redis: Redis) -> set[str]:
    statistics = redis.call("INFO", "commandstats").decode()
    return set(re.findall(r"^cmdstat_([^:]+):", statistics, re.MULTILINE))


async def test_who_emits_needs_what_the_page_says(own_redis: Redis) -> None:
    """Emitting, one by one and many, and deleting what is old take these rights and no others."""
    own_redis.call("XADD", STREAM, "*", "payload", "{}")  # something that a group has under way
    own_redis.call("XGROUP", "CREATE", STREAM, "billing", "0")
    own_redis.call("XREADGROUP", "GROUP", "billing", "x", "STREAMS", STREAM, ">")
    with _all_rights_used(own_redis, "shop"):
        config = RedisEventConfig(maxlen=16, max_age=3600)
        async with EventEmitter.from_url(_url(own_redis, "shop"), config=config) as emitter:
            await emitter.emit(Order())
            await emitter.emit_many([Order(), Order()])
            await _until_used(own_redis, "xtrim")


async def test_who_listens_needs_what_the_page_says(own_redis: Redis) -> None:
    """Handling, delays, takeover, dead letters and the loss of a group take these and no others."""
    url = _url(own_redis, "billing")
    under_way = asyncio.Event()
    async with EventEmitter.from_url(own_redis.url) as emitter:
        await emitter.emit(Order())
    own_redis.call("HDEL", "dispytch:topics", "orders")  # so that the listener makes it known
    own_redis.call("SCRIPT", "FLUSH")

    def listener(drain_timeout: float) -> EventListener:
        made = EventListener.from_url(
            url, group="billing", retry=Retry(attempts=1), drain_timeout=drain_timeout
        )

        @made.handler(Order)
        async def bill(event: Event[Order]) -> RetryLater | None:
            if event.attempt == 1:
                return RetryLater(0.1)
            if not under_way.is_set():
                under_way.set()
                await asyncio.Event().wait()
            raise ValueError("it can't be billed")

        return made

    with _all_rights_used(own_redis, "billing"):
        async with asyncio.timeout(20), listener(0.1):
            await under_way.wait()
        async with asyncio.timeout(20), listener(10) as second:
            while not second.health().counts.dead_lettered:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            assert await second.consumer.backlog() is not None
            assert second.health().problems == ()
            await _until_used(own_redis, "xread")
            own_redis.call("XGROUP", "DESTROY", STREAM, "billing")
            await _until_used(own_redis, "del")


async def test_who_listens_without_a_group_needs_what_the_page_says(own_redis: Redis) -> None:
    """Topics and patterns take these rights and no others."""
    listener = EventListener.from_url(_url(own_redis, "monitor"))
    seen = asyncio.Event()

    @listener.handler(topic="orders", event="order")
    @listener.handler(topic="orders.{region}", event="order")
    async def show(event: Event[Order]) -> None:
        seen.set()

    body = '{"id": "1", "type": "order", "body": {}, "timestamp": 1}'
    with _all_rights_used(own_redis, "monitor"):
        async with asyncio.timeout(20), listener:
            own_redis.call("XADD", STREAM, "*", "payload", body)
            await seen.wait()
            await _until_used(own_redis, "xread")


async def test_pubsub_needs_what_the_page_says(own_redis: Redis) -> None:
    """Publishing, and listening by topic and by pattern, take these rights and no others."""
    listener = EventListener.from_url(_url(own_redis, "display", "redis+pubsub"))
    seen = asyncio.Event()

    @listener.handler(topic="prices", event="price")
    @listener.handler(topic="user.{user_id}.prices", event="price")
    async def show(event: Event[Price]) -> None:
        seen.set()

    emitter = EventEmitter.from_url(_url(own_redis, "ticker", "redis+pubsub"))
    with _all_rights_used(own_redis, "display", "ticker"):
        async with asyncio.timeout(20), listener, emitter:
            await emitter.emit(Price())
            await seen.wait()


async def test_keys_of_one_topic_let_nobody_emit_to_another(own_redis: Redis) -> None:
    """A user with the streams of one topic is refused on others, certainly."""
    keys = ("~dispytch:topics", "~dispytch:topics:new", "~dispytch:stream:orders:*")
    own_redis.call("ACL", "SETUSER", "shop", "resetkeys", *keys)
    async with EventEmitter.from_url(_url(own_redis, "shop")) as emitter:
        await emitter.emit(Order())
        with pytest.raises(EmitRejected, match="NoPermissionError"):
            await emitter.emit(ForeignOrder())


async def test_more_rights_are_needed_for_a_database_and_a_name(own_redis: Redis) -> None:
    """With `select` and `client|setname` the URL may name them."""
    own_redis.call("ACL", "SETUSER", "shop", "+select", "+client|setname")
    url = f"{_url(own_redis, 'shop')}/3?client_name=shop"
    async with EventEmitter.from_url(url) as emitter:
        await emitter.emit(Order())


def test_every_rule_is_tested() -> None:
    """A user that is added to the page needs a test, too."""
    assert {rule[2] for rule in RULES} == {"shop", "billing", "monitor", "ticker", "display"}
