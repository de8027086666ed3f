"""Topology: the exchange, and the queues of groups, dead letters and delays."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiormq import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import AbstractChannel

from dispytch import ConfigError, ConnectError, Subscription
from dispytch.topics import DEAD_LETTER, TopicPattern, dead_letter_topic
from dispytch_rabbitmq.config import RabbitMQConnection, too_long
from dispytch_rabbitmq.connection import CHANNEL_TIMEOUT, open_channel
from dispytch_rabbitmq.errors import CLIENT_ERRORS, Meaning, describe, meaning
from dispytch_rabbitmq.queuing import bind_queue, declare_queue

__all__ = [
    "Queue",
    "dead_letter_arguments",
    "declare",
    "declare_missing",
    "delay_queue",
    "exchange_problem",
    "group_of",
    "plan",
    "tier",
]

_TIERS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_HOUR, _DAY = 3600, 86_400
_LONGEST = 49 * _DAY
_ROOM = len(f".retry.{_LONGEST}s")

# At least once: the broker keeps its copy until the target queue has confirmed the message. It
# wants this overflow behaviour with it, which without a maximal length changes nothing.
_SAFELY = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to consume from.

    Attributes:
        name: its name; empty for one that the broker names, which lives as long as its consumer.
        binding: what it is bound to the exchange by; empty for a dead-letter queue.
        topic: the one topic whose events it has; None where a pattern tells no single one.
        patterns: the topics and patterns that it serves.
        ordered: whether one consumer at a time is active.
        dead_letters: the queue for what the broker gives up; empty: none.
    """

    name: str
    binding: str
    topic: str | None
    patterns: tuple[TopicPattern, ...]
    ordered: bool
    dead_letters: str = ""

    @property
    def is_ours_alone(self) -> bool:
        """Whether it goes when its consumer goes."""
        return not self.name

    def via(self, topic: str) -> tuple[str, ...]:
        """Whom an event of this topic is for; nobody where only the broker's wildcards match it."""
        if self.topic is not None:
            return tuple(pattern.text for pattern in self.patterns)
        return tuple(pattern.text for pattern in self.patterns if pattern.match(topic) is not None)


def plan(subscriptions: Sequence[Subscription]) -> list[Queue]:
    """The queues for these subscriptions, one for each group and topic.

    Raises:
        ConfigError: a subscription that RabbitMQ can't serve, naming it.
    """
    queues: dict[tuple[str, str], Queue] = {}
    for subscription in subscriptions:
        queue = _queue_for(subscription)
        same = queues.get((queue.name, queue.binding))
        if same is not None:
            queue = replace(
                queue,
                topic=queue.topic if queue.topic == same.topic else None,
                patterns=(*same.patterns, *queue.patterns),
                ordered=queue.ordered or same.ordered,
            )
        queues[queue.name, queue.binding] = queue
    return list(queues.values())


def _queue_for(subscription: Subscription) -> Queue:
    pattern, topic = subscription.pattern, subscription.topic
    if pattern.is_literal and topic.endswith(f".{DEAD_LETTER}"):
        _check_name(topic, topic)
        return Queue(topic, "", topic, (pattern,), ordered=False)
    if "#" in topic.split("."):
        raise ConfigError(f"topic {topic!r}: '#' is a wildcard of RabbitMQ and can't be a segment")
    binding = pattern.wildcards("*", "#")
    literal = topic if pattern.is_literal else None
    if problem := too_long(binding):
        raise ConfigError(f"topic {topic!r} {problem}")
    if subscription.group is None:
        return Queue("", binding, literal, (pattern,), ordered=False)
    name = f"{_escaped(subscription.group)}.{binding}"
    # Named so that it can be subscribed to: a wildcard inside a topic is none of ours.
    dead_letters = dead_letter_topic(pattern.wildcards("_", "__"))
    _check_name(name, topic)
    _check_name(dead_letters, topic)
    return Queue(name, binding, literal, (pattern,), subscription.ordered, dead_letters)


def _escaped(group: str) -> str:
    """A group's name without dots: else group a.b with topic c had the queue of a with b.c."""
    return group.replace("%", "%25").replace(".", "%2E")


def group_of(queue: str) -> str:
    """The group whose queue this is, by its name."""
    return queue.partition(".")[0].replace("%2E", ".").replace("%25", "%")


def _check_name(name: str, topic: str) -> None:
    if problem := too_long(name + "-" * _ROOM):
        raise ConfigError(
            f"topic {topic!r}: the queue {name[:60]!r}..., with what is appended for delays, "
            f"{problem}; shorten the topic or the group"
        )


def tier(delay: float) -> int:
    """The delay that is really waited, in whole seconds: the next tier, hour or day.

    At most 49 days, which is what the broker can wait.
    """
    for seconds in _TIERS:
        if delay <= seconds:
            return seconds
    unit = _HOUR if delay <= _DAY else _DAY
    return min(math.ceil(min(delay, _LONGEST) / unit) * unit, _LONGEST)


def delay_queue(queue: str, seconds: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the queue whose messages go to `queue` after so many seconds."""
    arguments = {
        "x-queue-type": "quorum",
        "x-message-ttl": seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        **_SAFELY,
    }
    return f"{queue}.retry.{seconds}s", arguments


def dead_letter_arguments(connection: Any) -> dict[str, Any]:
    """Arguments of a dead-letter queue: what it holds stays, however often it is looked at."""
    version = str(connection.server_properties.get("version", "0"))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) >= 4:  # which limits to 20 unless told; before, -1 is refused
        return {"x-queue-type": "quorum", "x-delivery-limit": -1}
    return {"x-queue-type": "quorum"}


def _arguments(queue: Queue, settings: RabbitMQConnection) -> dict[str, Any]:
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": settings.delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue.dead_letters,
        **_SAFELY,
    }
    return arguments | ({"x-single-active-consumer": True} if queue.ordered else {})


async def declare(connection: Any, queues: Sequence[Queue], settings: RabbitMQConnection) -> None:
    """Declare all that lives longer than its consumer, and bind it.

    Raises:
        ConnectError: it is missing and can't be declared.
        ConfigError: it exists with other arguments.
    """
    if any(queue.binding for queue in queues):
        if not settings.exchange:
            raise ConfigError(
                "rabbitmq: listening needs an exchange: AMQP's default one takes no bindings; "
                "leave `exchange` out of the URL, or name one"
            )
        if problem := await exchange_problem(connection, settings):
            raise _refused(problem)
    for queue in queues:
        if queue.is_ours_alone:
            continue
        if not queue.binding or queue.dead_letters:
            name = queue.dead_letters or queue.name
            arguments = dead_letter_arguments(connection)
            await declare_missing(connection, name, arguments, settings)
        if queue.binding:
            await _declare_bound(connection, queue, settings)


async def _declare_bound(connection: Any, queue: Queue, settings: RabbitMQConnection) -> None:
    async def work(channel: AbstractChannel) -> None:
        arguments = _arguments(queue, settings)
        await declare_queue(channel, queue.name, passive=not settings.declare, arguments=arguments)
        if settings.declare:
            await bind_queue(channel, queue.name, settings.exchange, queue.binding)

    error = await _try(connection, work)
    if error is None:
        return
    told = describe(error, settings.login)
    if isinstance(error, ChannelPreconditionFailed):
        raise ConfigError(
            f"rabbitmq: queue {queue.name!r} exists with other arguments: {told}. Choose what it "
            "has (`ordered`, `delivery_limit`), or delete it once it is empty; it is then "
            "declared anew"
        )
    raise _refused(f"queue {queue.name!r}: {told}", error)


async def declare_missing(
    connection: Any,
    name: str,
    arguments: Mapping[str, Any],
    settings: RabbitMQConnection | None = None,
) -> None:
    """Declare a durable queue unless there is one of that name, whatever its arguments.

    Raises:
        ConnectError: it is missing and can't be declared.
    """
    error = await _try(connection, lambda channel: declare_queue(channel, name, passive=True))
    if isinstance(error, ChannelNotFoundEntity) and (settings is None or settings.declare):
        error = await _try(
            connection,
            lambda channel: declare_queue(channel, name, arguments=arguments),
        )
    if error is not None:
        login = "" if settings is None else settings.login
        raise _refused(f"queue {name!r}: {describe(error, login)}", error)


async def exchange_problem(connection: Any, settings: RabbitMQConnection) -> str | None:
    """Make sure that the connection's exchange exists; None, or why it does not."""
    name, kind = settings.exchange, settings.exchange_type
    error = await _try(connection, lambda channel: channel.exchange_declare(name, passive=True))
    if error is not None and settings.declare:
        error = await _try(
            connection,
            lambda channel: channel.exchange_declare(name, exchange_type=kind, durable=True),
        )
    return None if error is None else f"exchange {name!r}: {describe(error, settings.login)}"


async def _try(
    connection: Any, work: Callable[[AbstractChannel], Awaitable[Any]]
) -> BaseException | None:
    """Do it on a channel of its own, which a refusal closes; None, or what the client raised."""
    try:
        channel = await open_channel(connection)
        async with asyncio.timeout(CHANNEL_TIMEOUT):
            await work(channel)
            await channel.close()
    except CLIENT_ERRORS as error:
        return error
    return None


def _refused(problem: str, error: BaseException | None = None) -> ConnectError:
    lost = error is not None and meaning(error) is Meaning.LOST
    return ConnectError(f"rabbitmq: {problem}", backend="rabbitmq", retriable=lost)
