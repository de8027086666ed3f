"""What `emit` does on Kafka: the client batches what there is room for, and we do the rest."""

import asyncio
from dataclasses import dataclass

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from dispytch import Outgoing
from dispytch.producer import Details, Outcome
from dispytch_kafka.client import check_size
from dispytch_kafka.errors import Fate, fate_of, outcome_of
from dispytch_kafka.lane import Entry, Lane
from dispytch_kafka.link import Link
from dispytch_kafka.partitions import known_partition
from dispytch_kafka.record import details_of, record_of

__all__ = ["Singles"]

_MOMENT = 0.1  # seconds


@dataclass(slots=True, eq=False)
class _Single(Entry):
    """An event whose emit waits for this future."""

    answer: asyncio.Future[Details]

    def is_over(self) -> bool:
        return self.answer.done()

    def settle(self, outcome: Outcome) -> None:
        if self.answer.done():  # cancelled
            return
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Singles:
    """Events that are emitted one by one, or many at once and each for itself.

    The client has room for one open batch per partition. It wakes all who wait for the next one
    when that is sent, again and again. So those whom it has no room for wait here, in a lane for
    their partition, and until that is empty those who come join it: order is kept.

    Args:
        link: the client.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lanes: dict[tuple[str, int], Lane[_Single]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def send(self, out: Outgoing) -> Details:
        """Send one event; see `KafkaProducer.send_message`."""
        link, record = self._link, record_of(out)
        client = link.running()
        partition = known_partition(client, record)
        if partition is None:
            partition = await link.partition_for(record, out.deadline)
            client = link.running()
        check_size(client, record)
        where, alone = (record.topic, partition), False
        if where not in self._lanes:
            queued = link.queue(client, record, partition)
            if queued is not None:
                try:
                    return details_of(await link.answer(client, queued), record)
                except KafkaError as error:
                    fate = fate_of(error)
                    if fate is not Fate.RECORD and not (fate is Fate.SPENT and link.renews):
                        raise outcome_of(error, record.topic) from error
                    alone = fate is Fate.RECORD  # so that it does not answer for others
        entry = _Single(out, record, asyncio.get_running_loop().create_future())
        entry.alone = alone
        self._join(where, entry)
        return await entry.answer

    def _join(self, where: tuple[str, int], entry: _Single) -> None:
        lane = self._lanes.get(where)
        if lane is not None:
            lane.add(entry)
            return
        lane = self._lanes[where] = Lane(self._link, *where, (entry,))
        running = asyncio.get_running_loop().create_task(self._run(where, lane))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, where: tuple[str, int], lane: Lane[_Single]) -> None:
        try:
            await lane.run()
        finally:
            del self._lanes[where]

    async def flush(self) -> None:
        """Wait until all that wait now have their outcome."""
        answers = [entry.answer for lane in self._lanes.values() for entry in lane.entries]
        if answers:
            await asyncio.wait(answers)

    async def stop(self) -> None:
        """End what is left; those whose client was closed come to their end by themselves."""
        running = self._running.copy()
        if running:
            await asyncio.wait(running, timeout=_MOMENT)
            for task in running:
                task.cancel()
            await asyncio.wait(running)
