"""Topics on the brokers: which of them are meant, and creating those that are missing."""

import asyncio
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    NoError,
    NotControllerError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest  # type: ignore[import-untyped]

from dispytch import ConfigError, EmitRejected, Outgoing, Subscription
from dispytch.topics import DEAD_LETTER
from dispytch_kafka.client import HANDOVER_MARGIN, connections_of
from dispytch_kafka.errors import Reading, reading_of, told
from dispytch_kafka.record import check_topic, is_topic

__all__ = ["Wanted", "create_topic", "ensure_topic", "missing"]

logger = logging.getLogger("dispytch")

_BY_BROKER = -1
"""The number of partitions or replicas: what the broker's configuration says."""

_SETTLE = 0.05
"""Seconds between two questions whether a new topic is known."""


class Wanted:
    """The topics that subscriptions mean.

    Attributes:
        literals: topics by name.
        pattern: a regular expression that topics match from their start to their end, those of
            `literals` included; None: only those.

    Raises:
        ConfigError: a subscription can't work on Kafka.
    """

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        patterns = [subscription.pattern for subscription in subscriptions]
        self.literals = {pattern.text for pattern in patterns if pattern.is_literal}
        for topic in self.literals:
            if not is_topic(topic):
                raise ConfigError(
                    f"can't subscribe to {topic[:260]!r}: it is no legal Kafka topic: 1 to 249 "
                    "characters of a-z, A-Z, 0-9, '.', '_' and '-'"
                )
        self.pattern: re.Pattern[str] | None = None
        if not all(pattern.is_literal for pattern in patterns):
            # aiokafka takes names or one pattern, and matches only its start.
            alternatives = "|".join(f"(?:{pattern.regex})" for pattern in patterns)
            self.pattern = re.compile(rf"(?:{alternatives})\Z", re.DOTALL)

    def among(self, topics: Iterable[str]) -> set[str]:
        """Those of the topics that are meant."""
        if self.pattern is None:
            return self.literals.intersection(topics)
        return {topic for topic in topics if self.pattern.match(topic)}


async def missing(connections: Any, topics: Collection[str]) -> set[str]:
    """Those of the topics that don't exist. Where brokers create topics on demand, asking does.

    Args:
        connections: an `AIOKafkaClient`.
        topics: their names.

    Raises:
        TopicAuthorizationFailedError: we may not know of one.
    """
    for topic in topics:
        connections.add_topic(topic)
    await connections.force_metadata_update()
    unauthorized = connections.cluster.unauthorized_topics.intersection(topics)
    if unauthorized:
        raise for_code(29)(sorted(unauthorized))
    return {topic for topic in topics if not connections.cluster.partitions_for_topic(topic)}


async def create_topic(
    connections: Any, topic: str, *, like: str | None = None, timeout: float = 10.0
) -> None:
    """Create a topic and return when its partitions are known; one that exists is left as it is.

    Args:
        connections: an `AIOKafkaClient`.
        topic: its name.
        like: a topic to take the number of partitions from, where it is known; else, and for the
            replicas, the broker's defaults.
        timeout: seconds the brokers get to create it.

    Raises:
        KafkaError: they did not.
        TimeoutError: they have not said that they did.
    """
    partitions = len(connections.cluster.partitions_for_topic(like) or ()) if like else 0
    new: Any = (topic, partitions or _BY_BROKER, _BY_BROKER, [], [])
    request = CreateTopicsRequest(
        create_topic_requests=[new],
        timeout=int(timeout * 1000),
        validate_only=False,
    )
    async with asyncio.timeout(timeout):
        error = await _ask(connections, request)
        if error is NotControllerError:
            await connections.force_metadata_update()
            error = await _ask(connections, request)
        if error not in {NoError, TopicAlreadyExistsError}:
            raise error(topic)
        if error is NoError:
            logger.warning("kafka: the topic %r did not exist and was created", topic)
        while await missing(connections, [topic]):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(_SETTLE)


async def ensure_topic(client: Any, out: Outgoing) -> None:
    """See that the dead-letter topic of an event exists.

    Args:
        client: an `AIOKafkaProducer`.
        out: the event.

    Raises:
        EmitRejected: it does not and can't be created before the event's deadline.
    """
    connections = connections_of(client)
    if connections.cluster.partitions_for_topic(out.topic):
        return
    check_topic(out.topic)
    source = out.topic.removesuffix(f".{DEAD_LETTER}")
    try:
        async with asyncio.timeout_at(out.deadline - HANDOVER_MARGIN):
            if out.topic in await missing(connections, [out.topic, source]):
                await create_topic(connections, out.topic, like=source)
    except (KafkaError, TimeoutError) as error:
        raise EmitRejected(
            f"not sent: the topic {out.topic!r} does not exist and can't be created: {told(error)}",
            retriable=reading_of(error) is not Reading.REFUSED,
        ) from error


async def _ask(connections: Any, request: Any) -> Any:
    """Send to the controller; the class of the answer."""
    controller = connections.cluster.controller
    node = connections.get_random_node() if controller is None else controller.nodeId
    answer = await connections.send(node, request)
    ((_topic, code, *_message),) = answer.topic_errors
    return for_code(code)
