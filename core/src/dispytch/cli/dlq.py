"""`dispytch dlq`: what could not be handled, shown and emitted again."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dispytch.cli.output import print_table
from dispytch.cli.receiving import (
    OWN_PROCESS,
    connection_for,
    decoded,
    facts,
    print_json_line,
    printable,
    receiving,
    until_signal,
)
from dispytch.consumer import Consumer, Delivery
from dispytch.errors import ConfigError, DispytchError
from dispytch.listener.failure import DEAD_LETTER_HEADERS, FOR_GROUP, FOR_HANDLERS, addressed
from dispytch.producer import HeaderPairs, Outgoing, Producer
from dispytch.topics import DEAD_LETTER, dead_letter_topic

__all__ = ["GROUP", "QUIET", "dlq", "outgoing"]

GROUP = "dispytch.dlq"
"""The group that reads dead letters: what it acknowledged has been replayed."""

QUIET = 3.0
"""Seconds without a dead letter after which there is none left."""

_PATIENCE = 10.0  # the same where the broker says that there are some
_BATCH = 100  # letters replayed together
_TIMEOUT = 30.0  # seconds until the outcome of each must be known
_MOST_SHOWN = 10_000  # brokers limit how many messages may be held without acknowledging them
_COLUMNS = ("time", "id", "type", "handler", "reason", "attempts")


@click.group()
def dlq() -> None:
    """Show the events that could not be handled, and emit them again."""


@dlq.command("list")
@click.argument("url")
@click.argument("topic")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "--limit", type=click.IntRange(1, _MOST_SHOWN), default=1000, show_default=True, metavar="N",
    help="Show the first N.",
)  # fmt: skip
def list_(*, url: str, topic: str, as_json: bool, limit: int) -> None:
    """Show what waits in the dead-letter topic of TOPIC, and leave it there.

    Exit status: 0, also where there is nothing; 1 the broker failed, 2 called wrongly.
    """
    backend, connection = connection_for(url)
    consumer = backend.make_consumer(connection)
    pile = Pile(consumer, topic, limit)
    letters: list[Delivery] = []

    async def collect() -> None:
        async with receiving(consumer, pile.topic, GROUP, max_held=limit):
            async for batch in pile.batches():
                letters.extend(batch)

    if not until_signal(collect()):
        raise click.Abort
    if as_json:
        for letter in letters:
            print_json_line(dead_letter_facts(letter))
    elif letters:
        print_table(_COLUMNS, [_row(letter) for letter in letters])
    if not letters:
        click.echo(f"no dead letters in {pile.topic}", err=True)
        if backend.name == "memory":
            click.echo(OWN_PROCESS, err=True)
    elif pile.total is not None and pile.total > len(letters):
        click.echo(f"{len(letters)} of {pile.total} shown; --limit shows more", err=True)


@dlq.command()
@click.argument("url")
@click.argument("topic")
@click.option("--to", metavar="T", help="Emit to this topic instead of the one each came from.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Replay the first N.")
def replay(*, url: str, topic: str, to: str | None, limit: int | None) -> None:
    """Emit what waits in the dead-letter topic of TOPIC again, as it was.

    It goes to the topic it came from, and only the group and the handler that failed run; on
    another topic (--to) every handler does. A dead letter is removed when the broker has confirmed
    the event, so that one may be replayed twice, but none is lost. What is dead-lettered while this
    runs waits for the next replay.

    Exit status: 0 all replayed, 1 some were not, 2 called wrongly (nothing was replayed),
    130 Ctrl-C.
    """
    backend, connection = connection_for(url)
    consumer, producer = backend.make_consumer(connection), backend.make_producer(connection)
    run = Replay(producer, Pile(consumer, topic, limit), to)
    interrupted = not until_signal(run.all())
    click.echo(("interrupted: " if interrupted else "") + run.summary())
    if run.failure is not None:
        click.echo(f"Error: {run.failure}", err=True)
    if run.pile.total == 0 and backend.name == "memory":
        click.echo(OWN_PROCESS, err=True)
    sys.exit(130 if interrupted else 1 if run.failure is not None else 0)


class Pile:
    """The dead letters of a topic, as many as there are when reading begins.

    Args:
        consumer: what receives them, subscribed to `topic`.
        source: the topic they come from, or their own.
        limit: how many at most; None: all.

    Attributes:
        topic: the dead-letter topic.
        total: how many there were; None: not known.
    """

    def __init__(self, consumer: Consumer, source: str, limit: int | None) -> None:
        ending = consumer.topic_delimiter + DEAD_LETTER
        self.source = source.removesuffix(ending)
        self.topic = dead_letter_topic(self.source, consumer.topic_delimiter)
        self.total: int | None = None
        self.consumer = consumer
        self._limit = limit

    async def batches(self) -> AsyncIterator[Sequence[Delivery]]:
        """Those there were at the start, some at a time; what comes in newly is left alone."""
        start = datetime.now(UTC)
        self.total = await self.consumer.backlog()
        seen = 0
        while (room := self._room(seen)) > 0:
            try:
                async with asyncio.timeout(_PATIENCE if self.total else QUIET):
                    batch = await self.consumer.receive(room)
            except TimeoutError:
                return
            if self.total is None:
                batch = [letter for letter in batch if not _is_newer(letter, start)]
            elif not self.total:  # the first answer came before the broker assigned us anything
                self.total = await self.consumer.backlog() or len(batch)
            if not batch:
                return
            seen += len(batch)
            yield batch

    def _room(self, seen: int) -> int:
        """How many to ask for; one where nobody knows of any, to see whether there is."""
        known = _BATCH if self.total is None else self.total - seen if self.total else 1
        return min(_BATCH, known, _BATCH if self._limit is None else self._limit - seen)


@dataclass
class Replay:
    """One way through the dead letters.

    Attributes:
        producer: started and stopped here.
        pile: what is replayed.
        to: where to; None: where each came from.
        done: how many were emitted, and removed from the dead-letter topic.
        remain: how many are left; None: not known.
        failure: what ended it early.
    """

    producer: Producer
    pile: Pile
    to: str | None
    done: int = 0
    remain: int | None = None
    failure: Exception | None = None

    async def all(self) -> None:
        """Replay all there are, or until something fails."""
        try:
            await self.producer.start()
            async with receiving(self.pile.consumer, self.pile.topic, GROUP):
                await self._pile()
                with contextlib.suppress(DispytchError):
                    self.remain = await self.pile.consumer.backlog()
        except ConfigError:
            raise  # called wrongly
        except Exception as error:  # noqa: BLE001 - whatever it is, the figures are told
            self.failure = self.failure or error
        finally:
            await self.producer.stop()

    async def _pile(self) -> None:
        with _progress() as bar:
            task = bar.add_task("replayed", total=None)
            async for batch in self.pile.batches():
                await self._send(batch)
                bar.update(task, total=self.pile.total, completed=self.done)
                if self.failure is not None:
                    return

    async def _send(self, batch: Sequence[Delivery]) -> None:
        deadline = asyncio.get_running_loop().time() + _TIMEOUT
        events = [outgoing(letter, self.pile.source, self.to, self.producer) for letter in batch]
        for event in events:
            event.deadline = deadline
        outcomes = await self.producer.send_messages(events)
        for letter, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self.failure = self.failure or outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                await letter.ack()
                self.done += 1

    def summary(self) -> str:
        """The figures as one line."""
        if self.remain is None and self.pile.total is not None:
            self.remain = self.pile.total - self.done
        left = "how many remain is not known" if self.remain is None else f"{self.remain} remain"
        return f"{self.done} dead letter(s) of {self.pile.source} replayed, {left}"


def outgoing(letter: Delivery, source: str, to: str | None, producer: Producer) -> Outgoing:
    """A dead letter as the event it was.

    Args:
        letter: from the dead-letter topic.
        source: where it goes if it does not tell where it came from.
        to: where it goes instead, to every handler there.
        producer: what will send it.
    """
    told = _told(letter)
    kept = tuple(pair for pair in letter.headers if not pair[0].startswith(DEAD_LETTER_HEADERS))
    topic = told.get("topic") or source
    if to not in {None, topic}:
        # Handlers there have other names: addressed, it would be acknowledged unrun.
        kept = tuple(pair for pair in kept if pair[0] not in {FOR_GROUP, FOR_HANDLERS})
    elif "group" in told:
        kept = addressed(kept, told["group"], [told.get("handler", "")])
        kept = tuple(pair for pair in kept if pair != (FOR_HANDLERS, b""))
    headers = HeaderPairs(kept if producer.carries_headers else ())
    return Outgoing(
        told.get("id", ""),
        told.get("type", ""),
        to or topic,
        letter.payload,
        letter.key,
        None,
        headers,
    )


def dead_letter_facts(letter: Delivery) -> dict[str, Any]:
    """A dead letter as what JSON can hold: the message, and under `dead_letter` why it is there."""
    told = facts(letter)
    told["headers"] = [
        pair for pair in told["headers"] if not pair[0].startswith(DEAD_LETTER_HEADERS)
    ]
    return told | {"dead_letter": _told(letter)}


def _told(letter: Delivery) -> dict[str, str]:
    """What its own headers tell, without their prefix."""
    return {
        name.removeprefix(DEAD_LETTER_HEADERS): decoded(value)
        for name, value in letter.headers
        if name.startswith(DEAD_LETTER_HEADERS)
    }


def _row(letter: Delivery) -> Sequence[str]:
    told = _told(letter)
    return [printable(told.get(name, "")) for name in _COLUMNS]


def _is_newer(letter: Delivery, start: datetime) -> bool:
    try:
        return datetime.fromisoformat(_told(letter).get("time", "")) >= start
    except (ValueError, TypeError):  # none of ours, or without a time zone
        return False


def _progress() -> Progress:
    """A bar on standard error where that is a terminal."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
