"""`dispytch listen`: the events of a topic, as they come."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import TypeAlias

import click
from rich.console import Console
from rich.text import Text

from dispytch.cli.receiving import (
    OWN_PROCESS,
    connection_for,
    decoded,
    envelope_of,
    facts,
    instant,
    print_json_line,
    printable,
    receiving,
    until_signal,
)
from dispytch.consumer import Consumer, Delivery
from dispytch.envelope import Envelope
from dispytch.errors import ConnectError

__all__ = ["listen"]

Show: TypeAlias = Callable[[Delivery], None]

_BATCH = 100  # events taken at once
_PAUSE = 1.0  # seconds before receiving again without a connection


@click.command()
@click.argument("url")
@click.argument("topic")
@click.option("--group", metavar="G", help="Receive as a member of this group, and acknowledge.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N events.")
def listen(*, url: str, topic: str, group: str | None, as_json: bool, limit: int | None) -> None:
    """Print the events of TOPIC as they come: a topic, or a pattern such as 'orders.*'.

    Without a group: the events from now on, and nothing is left behind on the broker. With one:
    what waits for the group, and each is acknowledged when it is printed; the group's other
    members don't get it. What is no event is printed as the bytes it is.

    Exit status: 0 ended by Ctrl-C, --limit or the reader of the pipe; 1 the broker failed,
    2 called wrongly.
    """
    backend, connection = connection_for(url)
    show = print_facts if as_json else print_event
    if backend.name == "memory":
        click.echo(OWN_PROCESS, err=True)
    consumer = backend.make_consumer(connection)
    try:
        until_signal(_listen(consumer, topic, group, limit, show))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again when Python closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _listen(
    consumer: Consumer, topic: str, group: str | None, limit: int | None, show: Show
) -> None:
    async with receiving(consumer, topic, group):
        click.echo(f"listening to {topic} on {consumer.backend}; Ctrl-C ends it", err=True)
        shown = 0
        while limit is None or shown < limit:
            room = _BATCH if limit is None else min(_BATCH, limit - shown)
            try:
                deliveries = await consumer.receive(room)
            except ConnectError as error:
                if not error.retriable:
                    raise
                click.echo(f"{error}; trying again", err=True)
                await asyncio.sleep(_PAUSE)
                continue
            for delivery in deliveries:
                show(delivery)
                sys.stdout.flush()  # acknowledged only when the reader has it
                await delivery.ack()
                shown += 1


def print_facts(delivery: Delivery) -> None:
    """Print a message as one line of JSON."""
    print_json_line(facts(delivery))


def print_event(delivery: Delivery) -> None:
    """Print a message for people: a line of what it is, and its body."""
    console = Console(highlight=False)
    envelope = envelope_of(delivery.payload)
    line = Text(no_wrap=True)
    if isinstance(envelope, Envelope):
        line.append(instant(envelope.timestamp), "dim")
        line.append(f"  {printable(delivery.topic)}", "cyan")
        line.append(f"  {printable(envelope.type)}", "bold magenta")
        key = "" if delivery.key is None else f"  key {printable(delivery.key)}"
        line.append(f"{key}  id {printable(envelope.id)}")
        body = json.dumps(envelope.body, ensure_ascii=not console.is_terminal)
    else:
        key = "" if delivery.key is None else f"  key {printable(delivery.key)}"
        line.append(f"{printable(delivery.topic)}{key}  ")
        line.append(printable(str(envelope)), "red")
        body = decoded(delivery.payload)
    with console.capture() as captured:  # a rich console ends the program when a pipe is closed
        console.print(line, soft_wrap=True)
        if isinstance(envelope, Envelope) and console.is_terminal:
            from rich.syntax import Syntax  # noqa: PLC0415 - slow to import, and for terminals only

            console.print(Syntax(body, "json", background_color="default", word_wrap=True))
        else:
            console.print(Text(f"  {printable(body)}"), soft_wrap=True)
    click.echo(captured.get(), nl=False, color=console.is_terminal)
