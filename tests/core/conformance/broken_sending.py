"""Producers, connections and configs with one fault each."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict

from core.conformance.timed import TimedConfig, TimedProducer
from core.conformance.twin import TwinConnection, TwinProducer
from dispytch.errors import ConnectError, EmitRejected
from dispytch.memory import MemoryBroker, MemoryMessage
from dispytch.producer import Details, Outcome, Outgoing

logger = logging.getLogger("twin")


class LosesEvery100th(TwinProducer):
    """Every hundredth event is confirmed and not kept."""

    _sent = 0

    async def send_message(self, out: Outgoing, /) -> Details:
        self._sent += 1
        if self._sent % 100 == 0:
            return {"position": -1}
        return await super().send_message(out)


class DuplicatesEvery100th(TwinProducer):
    """Every hundredth event is kept twice: a retry after a lost answer."""

    _sent = 0

    async def send_message(self, out: Outgoing, /) -> Details:
        self._sent += 1
        if self._sent % 100 == 0:
            await super().send_message(out)
        return await super().send_message(out)


class ConfirmsBeforeStoring(TwinProducer):
    """An event is confirmed, and kept a moment later; `stop` does not wait for that moment."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        super().__init__(broker)
        self._written: list[MemoryMessage] = []
        self._timer: asyncio.TimerHandle | None = None

    async def send_message(self, out: Outgoing, /) -> Details:
        broker, self.broker = self.broker, MemoryBroker()
        try:
            details = await super().send_message(out)
            self._written += self.broker.messages
        finally:
            self.broker = broker
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0.005, self._keep)
        return details

    def _keep(self) -> None:
        self._timer = None
        for message in self._written:
            self.broker.append(message)
        self._written.clear()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._written.clear()


class StopLosesPending(TwinProducer):
    """Ten are sent at once, others wait; those that wait when `stop` is called are dropped."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        super().__init__(broker)
        self._window = asyncio.Semaphore(10)
        self._stopped = False

    async def start(self) -> None:
        self._stopped = False

    async def send_message(self, out: Outgoing, /) -> Details:
        async with self._window:
            await asyncio.sleep(0)
            return None if self._stopped else await super().send_message(out)

    async def stop(self) -> None:
        self._stopped = True


class DropsHeaders(TwinProducer):
    """Headers are not sent."""

    async def send_message(self, out: Outgoing, /) -> Details:
        return await super().send_message(replace(out, headers={}))


class ChangesHeaders(TwinProducer):
    """Names of headers become lower case, as a library for HTTP would have it."""

    async def send_message(self, out: Outgoing, /) -> Details:
        headers = {name.lower(): value for name, value in out.headers.items()}
        return await super().send_message(replace(out, headers=headers))


class PayloadAsText(TwinProducer):
    """A payload is text on its way."""

    async def send_message(self, out: Outgoing, /) -> Details:
        payload = out.payload.decode(errors="replace").encode()
        return await super().send_message(replace(out, payload=payload))


class PayloadAsJson(TwinProducer):
    """A payload is parsed and written anew, where it can be."""

    async def send_message(self, out: Outgoing, /) -> Details:
        try:
            payload = json.dumps(json.loads(out.payload)).encode()
        except ValueError:
            payload = out.payload
        return await super().send_message(replace(out, payload=payload))


class TakesOversize(TwinProducer):
    """What is too large is confirmed, and not kept."""

    async def send_message(self, out: Outgoing, /) -> Details:
        try:
            return await super().send_message(out)
        except EmitRejected:
            return {"position": -1}


class BatchesBackwards(TwinProducer):
    """The events of a batch are sent from the last to the first."""

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        outcomes = await super().send_messages(batch[::-1])
        return outcomes[::-1]


class BatchesShuffleOutcomes(TwinProducer):
    """The outcomes of a batch come in another order than its events: refusals last."""

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        outcomes = await super().send_messages(batch)
        return sorted(outcomes, key=lambda outcome: isinstance(outcome, BaseException))


class BatchesGoOn(TwinProducer):
    """After a failure the later events of the same key are sent all the same."""

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        return [await self._outcome_of(out) for out in batch]


class BatchesRaise(TwinProducer):
    """The first failure of a batch is raised, and the outcomes of the others are not known."""

    async def send_messages(self, batch: Sequence[Outgoing], /) -> Sequence[Outcome]:
        outcomes = await super().send_messages(batch)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes


class SecondStopHangs(TwinProducer):
    """`stop` tells a worker to end, and waits for it: the second time there is none."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        super().__init__(broker)
        self._ended = asyncio.Event()

    async def start(self) -> None:
        self._ended.set()

    async def stop(self) -> None:
        await self._ended.wait()
        self._ended.clear()


class StartsOnce(TwinProducer):
    """Once stopped it is of no use any more, `start` or not."""

    _stopped = False

    async def send_message(self, out: Outgoing, /) -> Details:
        if self._stopped:
            raise RuntimeError("the client was closed")
        return await super().send_message(out)

    async def stop(self) -> None:
        self._stopped = True


class Confiding(TwinProducer):
    """It keeps its connection, and can say the URL it was made from."""

    connection: Any = None

    @classmethod
    def from_connection(cls, connection: Any, /) -> Self:
        producer = super().from_connection(connection)
        producer.connection = connection
        return producer

    @property
    def login(self) -> str | None:
        """User and password, in clear."""
        user, password = self.connection.user, self.connection.password
        return user and f"{user.get_secret_value()}:{password.get_secret_value()}"


class ShowsPassword(Confiding):
    """Its repr tells the URL it was made from."""

    def __repr__(self) -> str:
        return f"ShowsPassword('{self.connection.scheme}://{self.login}@...')"


class LogsPassword(Confiding):
    """It logs where it connects to."""

    async def start(self) -> None:
        logger.debug("connecting as %s", self.login)


class CauseTellsPassword(Confiding):
    """Nobody can log in; the error says so without the password, its cause with it."""

    async def start(self) -> None:
        if self.login:
            refused = OSError(f"{self.login} was refused")
            raise ConnectError("the login was refused", retriable=False) from refused


_Plain = Annotated[
    str | None, BeforeValidator(lambda password: password and password.get_secret_value())
]


class PlainPassword(TwinConnection):
    """The password is text like any other."""

    password: _Plain = None  # type: ignore[assignment]  # that is the fault


class TakesAnyConfig(TwinProducer):
    """Configs of other backends are taken, and what they say is ignored."""

    event_config = BaseModel


class LooseConfig(BaseModel):
    """A field that it does not know is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    label: str = ""


class HoldsNothingBack(TimedProducer):
    """What is to wait is there at once."""

    def delay_of(self, config: TimedConfig) -> float:
        return 0.0
