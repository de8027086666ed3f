"""Topics on the brokers: whether they are there, and creating those that are missing."""

import asyncio
import logging
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from dispytch import EmitRejected
from dispytch.topics import DEAD_LETTER
from dispytch_confluent.client import Client
from dispytch_confluent.connection import ConfluentConnection
from dispytch_confluent.errors import as_rejected, told
from dispytch_kafka.record import check_topic

__all__ = ["Topics"]

logger = logging.getLogger("dispytch")

_ANSWER = 5.0
"""Seconds that brokers get to say whether a topic is there."""

_CREATION = 1.2
"""Seconds that brokers get to create a topic on demand: asking for it starts that, and until it
is done the answer is the same as where nothing creates it."""

_PAUSE = 0.1
"""Seconds between two questions for a topic that may be on its way."""

_NOT_YET = frozenset({"UNKNOWN_TOPIC_OR_PART", "LEADER_NOT_AVAILABLE", "_UNKNOWN_TOPIC"})


class Topics:
    """Finds out what topics there are; many may wait for one answer.

    Args:
        connection: how to reach the brokers.
    """

    def __init__(self, connection: ConfluentConnection) -> None:
        self._connection = connection
        self._asking: dict[tuple[Client, str], asyncio.Task[None]] = {}

    async def learn(self, client: Client, topic: str) -> None:
        """Have a topic among those the client knows.

        Raises:
            EmitRejected: the name is not legal, there is no such topic, or we may not know of it.
            KafkaException: there was no answer.
        """
        asking = self._asking.get((client, topic))
        if asking is None:
            asking = asyncio.get_running_loop().create_task(_learn(client, topic))
            self._asking[client, topic] = asking
            asking.add_done_callback(lambda done: self._told(client, topic, done))
        try:
            await asyncio.shield(asking)
        except EmitRejected as error:  # an error of its own for each of those who wait
            raise EmitRejected(str(error), retriable=error.retriable) from error

    async def ensure(self, client: Client, topic: str) -> None:
        """See that a dead-letter topic is there, with as many partitions as its origin.

        Raises:
            EmitRejected: it is not, and can't be created.
            KafkaException: there was no answer.
        """
        check_topic(topic)
        if await self._is_there(client, topic):
            return
        origin = topic.removesuffix(f".{DEAD_LETTER}")
        like = client.topics[origin] if await self._is_there(client, origin) else -1
        try:
            await asyncio.to_thread(self._create, topic, like)
        except KafkaException as error:
            problem = error.args[0]
            if problem.name() != "TOPIC_ALREADY_EXISTS":
                raise EmitRejected(
                    f"not sent: the topic {topic!r} does not exist and can't be created: "
                    f"{told(problem)}",
                    retriable=as_rejected(problem, topic).retriable,
                ) from error
        else:
            logger.warning("kafka: the topic %r did not exist and was created", topic)
        await self.learn(client, topic)

    async def _is_there(self, client: Client, topic: str) -> bool:
        """Whether it is; asking creates it where brokers create topics on demand."""
        if topic not in client.topics:
            found = await client.partitions_of(topic, _ANSWER)
            if found[topic].error is None:
                client.topics[topic] = len(found[topic].partitions)
        return topic in client.topics

    def _create(self, topic: str, partitions: int) -> None:
        """In a thread: this blocks. Replicas are as many as the brokers say."""
        admin: Any = AdminClient(self._connection.librdkafka_client(), logger=logger)
        new = NewTopic(topic, num_partitions=partitions, replication_factor=-1)
        for created in admin.create_topics([new], request_timeout=_ANSWER).values():
            created.result(2 * _ANSWER)

    def _told(self, client: Client, topic: str, asking: asyncio.Task[None]) -> None:
        del self._asking[client, topic]
        if not asking.cancelled():
            asking.exception()  # seen: nobody may be waiting any more


async def _learn(client: Client, topic: str) -> None:
    """Ask for a topic until it is there or certainly is not."""
    check_topic(topic)
    clock = asyncio.get_running_loop().time
    first_answer = None
    while True:
        found = (await client.partitions_of(topic, _ANSWER))[topic]
        if found.error is None:
            client.topics[topic] = len(found.partitions)
            return
        if found.error.name() == "TOPIC_AUTHORIZATION_FAILED":
            raise EmitRejected(f"not authorised for topic {topic!r}")
        if found.error.name() not in _NOT_YET:
            raise as_rejected(found.error, topic)
        first_answer = first_answer or clock()
        if clock() - first_answer > _CREATION:
            raise EmitRejected(
                f"no topic {topic!r}: create it, or let the brokers do so "
                "(auto.create.topics.enable)",
                retriable=True,
            )
        await asyncio.sleep(_PAUSE)
