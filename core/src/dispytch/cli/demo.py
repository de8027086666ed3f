"""`dispytch demo`: a shop on SQLite, in several processes, one of which is killed at work.

The shop is `orders.py`, run by `dispytch run`. What it logs becomes facts in `worklog.py`; whether
they are as promised is judged in `verdict.py`, and all is shown by `screen.py`.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import click
from rich.console import Console

from dispytch import plugins
from dispytch.cli.dlq import dead_letter_facts
from dispytch.cli.orders import OldOrderPlaced, OrderPlaced
from dispytch.cli.receiving import connection_for, until_signal
from dispytch.cli.screen import Screen
from dispytch.cli.verdict import STEPS, Facts, Letter, verdict
from dispytch.cli.worklog import Note, Said
from dispytch.consumer import Consumer, Subscription
from dispytch.emitter import EventEmitter
from dispytch.errors import BackendNotFoundError

__all__ = ["demo"]

ORDERS, EVERY = 60, 0.1  # how many, and seconds between two
CUSTOMERS = (
    "ada", "alan", "barbara", "donald", "edsger", "frances", "grace", "hedy", "katherine", "radia",
)  # fmt: skip
WORKERS = 3
COMMAND = ("dispytch", "run", "dispytch.cli.orders:listener", "--workers", str(WORKERS))

_ORDERS, _DEAD = "orders", "orders.dlq"
_KILL_AFTER = ORDERS // 4  # orders that are paid for; then the next worker with enough in hand dies
_IN_HAND = 3  # what is enough: events begun and not finished
_TIMEOUT = 40.0  # seconds until it must be over, which takes less than half of that
_DRAIN = 5.0  # seconds the service gets to end, before it is ended
_LOOK_EVERY = 0.05  # seconds between two looks at how far it is


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Run a shop on SQLite in several processes, kill one at work, and show that nothing is lost.

    Needs no server, takes about 15 seconds, and leaves nothing behind.

    Exit status: 0 all happened as it should, 1 not, 2 the SQLite backend is not installed, 130
    Ctrl-C.
    """
    try:
        plugins.get_backend("sqlite")
    except BackendNotFoundError as error:
        raise BackendNotFoundError(f"the demo runs on SQLite: {error}") from error
    facts = Facts()
    screen = Screen(Console(highlight=False), facts, ORDERS)
    with TemporaryDirectory(prefix="dispytch-demo-") as directory:
        shop = Shop(Path(directory).resolve(), facts, screen)
        if not until_signal(shop.run()):
            raise click.Abort
    context.exit(0 if screen.outcome(verdict(facts)) else 1)


class Shop:
    """The shop at work, and what is done to it.

    Args:
        directory: where it keeps its events.
        facts: what is found out.
        screen: shows it.
    """

    def __init__(self, directory: Path, facts: Facts, screen: Screen) -> None:
        self._directory, self.facts, self._screen = directory, facts, screen
        self._url = f"sqlite:///{quote(str(directory / 'shop.db'))}"
        self._beside: list[asyncio.Task[None]] = []  # they end only when something went wrong

    async def run(self) -> None:
        """Place the orders, and wait until all is done, something went wrong, or time is over."""
        facts, screen = self.facts, self._screen
        screen.say(f"A shop on {self._url}, as a service of {WORKERS} processes:", "bold")
        screen.say(f"$ {' '.join(COMMAND)}")
        emitter = EventEmitter.from_url(self._url, timeout=10)
        with screen.alive():
            async with self._watched(), self._served(), emitter:
                await self._until(lambda: facts.work.listening == WORKERS)
                for order in range(1, ORDERS + 1):
                    if not self._goes_on():
                        break
                    await self._place(emitter, order)
                    screen.refresh()
                    await asyncio.sleep(EVERY)
                await self._until(lambda: facts.settled)

    async def _place(self, emitter: EventEmitter, order: int) -> None:
        """Place an order; after the first half also one that nobody can read."""
        customer = CUSTOMERS[order % len(CUSTOMERS)]
        await emitter.emit(OrderPlaced(order=order, customer=customer, cents=100 * order))
        self.facts.placed[order] = customer  # confirmed: from now on it must not get lost
        if order == ORDERS // 2:
            receipt = await emitter.emit(OldOrderPlaced(order=order))
            self.facts.poison = receipt.event_id

    async def _until(self, happened: Callable[[], bool]) -> None:
        """Show the counters until it has happened, or never will."""
        while self._goes_on() and not happened():
            self._screen.refresh()
            await asyncio.sleep(_LOOK_EVERY)
        self._screen.refresh()

    def _goes_on(self) -> bool:
        """Whether there is a reason to wait; raises what ended one of the tasks beside."""
        for task in self._beside:
            if task.done():
                task.result()
                return False
        return self._screen.clock < _TIMEOUT

    # What travels

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Look on, without a group, as `dispytch listen` does."""
        backend, connection = connection_for(self._url)
        consumer = backend.make_consumer(connection)
        try:
            await consumer.start()
            await consumer.subscribe([Subscription(topic, None) for topic in (_ORDERS, _DEAD)])
            self._beside.append(asyncio.create_task(self._watch(consumer)))
            yield
        finally:
            for task in self._beside:
                task.cancel()
            await consumer.stop()

    async def _watch(self, consumer: Consumer) -> None:
        while True:
            for delivery in await consumer.receive(100):
                if delivery.topic == _DEAD:
                    told = dead_letter_facts(delivery)["dead_letter"]
                    self.facts.letters.append(Letter(delivery.topic, told))
                elif self.facts.first is None:
                    self.facts.first = delivery
                await delivery.ack()

    # The service

    @asynccontextmanager
    async def _served(self) -> AsyncIterator[None]:
        """Run the service; at the end no process of it is left."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *COMMAND, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
            cwd=self._directory, env={**os.environ, "SHOP_URL": self._url},
        )  # fmt: skip
        assert process.stderr is not None  # noqa: S101 - for type checkers
        reading = asyncio.create_task(self._read(process.stderr))
        self._beside.append(reading)
        try:
            yield
        finally:
            self.facts.status = await _ended(process)
            await reading  # all have closed the pipe: they are gone

    async def _read(self, log: asyncio.StreamReader) -> None:
        facts, screen = self.facts, self._screen
        async for line in log:
            said = facts.work.read(line.decode(errors="replace").rstrip(), screen.clock)
            if isinstance(said, Said):
                screen.logged(said)
            elif said is not None and facts.killed is None:
                self._kill_at_work(said)

    def _kill_at_work(self, note: Note) -> None:
        """Kill the worker that has just begun something, if the time has come."""
        in_hand = self.facts.work.in_hand(note.pid)
        paid = self.facts.done[STEPS[0]]
        if note.what == "begins" and paid >= _KILL_AFTER and len(in_hand) >= _IN_HAND:
            os.kill(note.pid, signal.SIGKILL)
            self.facts.killed = note.pid
            self._screen.killed(note.pid, in_hand)


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Ask it to finish what it has begun; a second time it kills its workers."""
    for _ in range(2):
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                return await process.wait()
    process.kill()  # its workers notice, and end
    return await process.wait()
