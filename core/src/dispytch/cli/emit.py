"""`dispytch emit`: newline-delimited JSON from a file or standard input to a broker."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Self, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from dispytch.cli.lines import InputError, Line, Source, chunks
from dispytch.cli.recipe import Recipe
from dispytch.emitter import EventEmitter
from dispytch.emitter.batch import Batch, Result
from dispytch.errors import ConfigError, EmitRejected, SerializationError, TopicError
from dispytch.producer import Outgoing, Receipt, held_back

__all__ = ["emit"]

CHUNK = 1000
"""Lines sent together at most: what is in memory, and under way, at one time."""

_NOTHING_SENT = (EmitRejected, ConfigError, TopicError, SerializationError)


@click.command()
@click.argument("url")
@click.argument("file", default="-")
@click.option("--topic", required=True, metavar="T", help="Where to.")
@click.option("--type", "event_type", required=True, metavar="Y", help="The events' type.")
@click.option("--key", metavar="K", help="What stays in order: events of one key do.")
@click.option("--config", metavar="JSON", help="The backend's event config; see dispytch schema.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Until the outcome of each event must be known; also of connecting.",
)
def emit(
    *,
    url: str,
    file: str,
    topic: str,
    event_type: str,
    key: str | None,
    config: str | None,
    timeout: float,
) -> None:
    """Emit each line of FILE (- or none: standard input), a JSON object, as an event's body.

    T, Y, K and the strings in JSON may name fields of the line: --topic 'user.{user.id}'; {{ is a
    literal brace. Blank lines are skipped and counted. After an event failed, later ones of its
    key are not sent, so that they can be sent again in order.

    Exit status: 0 all accepted, 1 some were not, 2 called wrongly (nothing was sent), 130 Ctrl-C.
    """
    emitter = EventEmitter.from_url(url, timeout=timeout)
    recipe = Recipe(emitter.producer, topic=topic, event_type=event_type, key=key, config=config)
    tally = Tally()
    failure = None
    with _source(file) as (source, size), Reporter(size) as reporter:
        run = Run(emitter, recipe, timeout, tally, reporter)
        try:
            asyncio.run(run.all(source))
        except (KeyboardInterrupt, asyncio.CancelledError):
            failure = 130
        except InputError as error:
            reporter.say(str(error))
            failure = 1
    click.echo(("interrupted: " if failure == 130 else "") + tally.summary())
    sys.exit(failure or (0 if tally.complete else 1))


@dataclass(slots=True)
class Tally:
    """What became of the lines so far.

    Attributes:
        accepted: the broker has them.
        rejected: certainly not sent or not stored.
        unknown: they may have arrived.
        blank: skipped.
        started: on the monotonic clock, in seconds; set again when sending begins.
    """

    accepted: int = 0
    rejected: int = 0
    unknown: int = 0
    blank: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def complete(self) -> bool:
        """Whether everything was accepted."""
        return not self.rejected and not self.unknown

    def summary(self) -> str:
        """The figures as one line."""
        total = self.accepted + self.rejected + self.unknown
        rate = self.accepted / max(time.monotonic() - self.started, 1e-6)
        blank = f"; {self.blank} blank line(s) skipped" if self.blank else ""
        return (
            f"{total} event(s): {self.accepted} accepted, {self.rejected} rejected, "
            f"{self.unknown} unknown{' (may have arrived)' if self.unknown else ''}; "
            f"{rate:,.0f} per second{blank}"
        )


class Reporter:
    """What is told on standard error: bad lines, and a progress bar on a terminal.

    Args:
        size: bytes of the input; None where nobody knows.
    """

    def __init__(self, size: int | None) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=size, said="connecting")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(Text(text), soft_wrap=True)

    def advance(self, size: int, tally: Tally) -> None:
        """`size` bytes of the input are done."""
        self._bar.update(self._task, advance=size, said=f"{tally.accepted:,} accepted")


@dataclass
class Run:
    """One way through the input.

    Attributes:
        emitter: started and stopped here.
        recipe: makes the events.
        timeout: seconds for each chunk.
        tally: what became of them.
        reporter: is told of each that was not accepted.
        failed: the keys of those, for chunks to come.
    """

    emitter: EventEmitter
    recipe: Recipe
    timeout: float
    tally: Tally
    reporter: Reporter
    failed: set[Hashable] = field(default_factory=set[Hashable])

    async def all(self, source: Source) -> None:
        """Send everything.

        Raises:
            ConnectError: the broker can't be reached; nothing was sent.
            InputError: the input can't be read on.
        """
        # Python leaves Ctrl-C alone where the signal was ignored when it started, and its own
        # handling may come too late to wake a loop that is about to sleep. Elsewhere than in a
        # main thread of a Unix there is only that.
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            if task is not None:
                loop.add_signal_handler(signal.SIGINT, task.cancel)
        async with self.emitter:
            self.tally.started = time.monotonic()
            async for lines in chunks(source, CHUNK):
                filled = [line for line in lines if line.text]
                self.tally.blank += len(lines) - len(filled)
                if filled:
                    await self._chunk(filled)
                self.reporter.advance(sum(line.size for line in lines), self.tally)

    async def _chunk(self, lines: list[Line]) -> None:
        deadline = asyncio.get_running_loop().time() + self.timeout

        async def encode(line: Line) -> Outgoing:
            out = self.recipe.outgoing(line.text, time.time_ns() // 1_000_000, deadline)
            key = self.emitter.producer.ordering_key(out)
            if key is not None and key in self.failed:
                raise held_back(key)
            return out

        def key_of(line: Line) -> Hashable | None:
            return self.recipe.ordering_key(line.text)

        results: list[Result | None] = [None] * len(lines)
        try:
            results = await Batch(lines, self.emitter.producer, encode, key_of).send(deadline)
        except asyncio.CancelledError:
            self.tally.unknown += len(lines)
            raise
        except Exception as error:  # noqa: BLE001 - a producer's own: it is told of each line
            results = [error] * len(lines)
        for line, result in zip(lines, results, strict=True):
            if isinstance(result, Receipt):
                self.tally.accepted += 1
            else:
                self._count_failure(line, result)

    def _count_failure(self, line: Line, error: BaseException | None) -> None:
        if (key := self.recipe.ordering_key(line.text)) is not None:
            self.failed.add(key)
        if isinstance(error, _NOTHING_SENT):
            self.tally.rejected += 1
            outcome = "rejected"
        else:
            self.tally.unknown += 1
            outcome = "unknown, it may have arrived"
        reason = "no outcome before the deadline" if error is None else str(error)
        self.reporter.say(f"line {line.number}: {outcome}: {reason or type(error).__name__}")


@contextlib.contextmanager
def _source(file: str) -> Iterator[tuple[Source, int | None]]:
    """The input, unbuffered, and its size where that is known."""
    if file == "-":
        # The raw stream: a thread that waits inside a buffered one aborts the program's end.
        buffer = sys.stdin.buffer
        yield cast("Source", getattr(buffer, "raw", buffer)), None
        return
    try:
        opened = open(file, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise click.UsageError(f"{error.strerror}: {file}") from error
    with opened:
        yield opened, os.fstat(opened.fileno()).st_size or None
