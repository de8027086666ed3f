"""`dispytch demo`: a shop that emits and handles on the memory backend. Its code is `orders.py`."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.live import Live
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from dispytch import plugins
from dispytch.cli.output import print_table
from dispytch.config import Given, layer_of
from dispytch.errors import PluginError
from dispytch.listener import DEAD_LETTER_HEADERS, EventListener, HandleContext
from dispytch.listener.received import CallNext
from dispytch.memory import MemoryBroker, MemoryMessage

__all__ = ["Tally", "demo"]

ORDERS = 24
CUSTOMERS = ("ada", "grace", "edsger", "barbara", "donald", "frances")
STEPS = ("take_payment", "send_parcel", "tell_customer")
_TIMEOUT = 30.0  # seconds until it must be over, which takes three


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Run a shop in memory: events emitted and handled, retried and dead-lettered.

    Needs no server, and takes a few seconds. Exit status: 0 all happened as it should, 1 not.
    """
    console = Console(highlight=False)
    schemas = installed_schemas(console)
    broker, tally = MemoryBroker.named("demo"), Tally()
    broker.clear()
    asyncio.run(run_shop(console, broker, tally, schemas))
    console.print()
    print_table(("handler", "handled", "failed attempts", "at once"), tally.rows())
    letters = broker.on("orders.dlq")
    for letter in letters:
        show_dead_letter(console, letter)
    show(console, broker.messages[0], schemas)
    if not schemas:
        say(
            console,
            "No other backend is installed. See the config of one beside the event with: "
            "pip install 'dispytch[kafka,rabbitmq]'",
        )
    wrong = problems(broker, tally)
    for problem in wrong:
        say(console, f"This should not have happened: {problem}", "bold red")
    if not wrong:
        say(
            console,
            f"{ORDERS} orders went all the way, one handler needed three attempts, and one event "
            "nobody could read is in orders.dlq. Nothing was lost.",
            "bold green",
        )
    context.exit(1 if wrong else 0)


class Tally:
    """Counts what handlers do; `watch` is a middleware of the listener."""

    def __init__(self) -> None:
        self.handled: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.orders: dict[str, set[int]] = {step: set() for step in STEPS}

    async def watch(self, ctx: HandleContext, call_next: CallNext) -> Any:
        """Around each attempt of each handler."""
        step = ctx.handler.rpartition(":")[2]
        self.running[step] += 1
        self.most[step] = max(self.most[step], self.running[step])
        try:
            result = await call_next(ctx)
        except Exception:
            self.failed[step] += 1
            raise
        finally:
            self.running[step] -= 1
        self.handled[step] += 1
        self.orders[step].add(ctx.event.body.order)
        return result

    def rows(self) -> list[tuple[str, ...]]:
        """A row per handler: its name, events handled, attempts that failed, most at once."""
        return [
            (step, str(self.handled[step]), str(self.failed[step]), str(self.most[step]))
            for step in STEPS
        ]


async def run_shop(
    console: Console, broker: MemoryBroker, tally: Tally, schemas: Mapping[str, type[BaseModel]]
) -> None:
    """Place the orders, and wait until everything is handled or dead-lettered."""
    from dispytch.cli import orders  # noqa: PLC0415 - it makes an emitter, which only this needs

    listener = EventListener.from_url(orders.URL, group="shop", middleware=[tally.watch])
    listener.include_router(orders.router)

    async def place() -> None:
        for number in range(1, ORDERS + 1):
            customer = CUSTOMERS[number % len(CUSTOMERS)]
            order = orders.OrderPlaced(order=number, customer=customer, cents=100 * number)
            await orders.emitter.emit(order, config=configs_of(schemas, customer))
            if number == ORDERS // 2:
                await orders.emitter.emit(orders.OldOrderPlaced(order=number))
            await asyncio.sleep(0.05)

    say(console, f"A shop: {ORDERS} orders by {len(CUSTOMERS)} customers, on {orders.URL}", "bold")
    with shown(console, broker, tally) as refresh:
        async with asyncio.timeout(_TIMEOUT), orders.emitter, listener:
            placing = asyncio.create_task(place())
            while not placing.done() or broker.unsettled:
                refresh()
                await asyncio.sleep(0.05)
            await placing
        refresh()
    if orders.Database.connected:
        raise click.ClickException("a connection of the database was not closed")


def problems(broker: MemoryBroker, tally: Tally) -> list[str]:
    """What did not happen as it should have."""
    every = set(range(1, ORDERS + 1))
    found = [
        f"{step} did not handle {sorted(every ^ tally.orders[step])}"
        for step in STEPS
        if tally.orders[step] != every or tally.handled[step] != ORDERS
    ]
    if dict(tally.failed) != {"send_parcel": 2}:
        found.append(f"attempts that failed: {dict(tally.failed)}, not two of send_parcel")
    if (letters := len(broker.on("orders.dlq"))) != 1:
        found.append(f"{letters} dead letters, not one")
    if max(tally.most.values(), default=0) < 2:
        found.append("no two handlers ran at once")
    return found


# Showing


class Told(logging.Handler):
    """Shows what the listener logs: the attempts that failed, and the dead letter."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        style = "red" if record.levelno >= logging.ERROR else "yellow"
        say(self._console, f"  {record.getMessage()}", style)


@contextmanager
def shown(console: Console, broker: MemoryBroker, tally: Tally) -> Iterator[Any]:
    """Counters that live on a terminal; elsewhere a line whenever a quarter more is done."""
    logger, told = logging.getLogger("dispytch"), Told(console)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(told)
    lines = Lines(console, tally)
    try:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=20, transient=True) as live:
                yield lambda: live.update(counters(broker, tally))
        else:
            yield lines.refresh
    finally:
        logger.removeHandler(told)
        logger.propagate = propagate


class Lines:
    """The counters as plain lines."""

    def __init__(self, console: Console, tally: Tally) -> None:
        self._console, self._tally = console, tally
        self._quarters = 0

    def refresh(self) -> None:
        """Print a line when there is news enough."""
        handled = self._tally.handled
        quarters = 4 * handled.total() // (len(STEPS) * ORDERS)
        if quarters > self._quarters:
            self._quarters = quarters
            counted = ", ".join(f"{step} {handled[step]}" for step in STEPS)
            say(self._console, f"  handled: {counted}")


def counters(broker: MemoryBroker, tally: Tally) -> Table:
    """The counters as they are now."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 2))
    for column in ("handler", "", "handled", "running", "failed"):
        table.add_column(column, justify="left" if column in {"handler", ""} else "right")
    for step in STEPS:
        done = tally.handled[step]
        bar = Text("━" * done, "green") + Text("━" * tally.running[step], "yellow")
        bar.append("━" * (ORDERS - len(bar)), "bright_black")
        failed = Text(str(tally.failed[step]), "red" if tally.failed[step] else "")
        table.add_row(Text(step, "cyan"), bar, str(done), str(tally.running[step]), failed)
    emitted, letters = len(broker.messages), len(broker.on("orders.dlq"))
    table.caption = f"{emitted - letters} emitted, {letters} dead-lettered"
    table.caption_justify = "left"
    return table


def show_dead_letter(console: Console, letter: MemoryMessage) -> None:
    """Print where a dead letter is, and what it tells."""
    console.print()
    console.print(Text.assemble(("dead letter", "bold red"), "  in ", (letter.topic, "bold cyan")))
    for name in ("reason", "topic", "group", "time"):
        value = letter.headers[DEAD_LETTER_HEADERS + name]
        say(console, f"  {name}: {value if isinstance(value, str) else value.decode()}")


def installed_schemas(console: Console) -> dict[str, type[BaseModel]]:
    """The event configs of the installed backends that the demo knows; imports no client."""
    schemas: dict[str, type[BaseModel]] = {}
    installed = {info.name for info in plugins.backends()}
    for name in sorted(installed & {"kafka", "rabbitmq"}):
        try:
            schema = plugins.event_config(name)
        except PluginError as error:
            say(console, f"{name}: {error}", "red")
        else:
            if schema is not None:
                schemas[name] = schema
    return schemas


def configs_of(schemas: Mapping[str, type[BaseModel]], customer: str) -> Given:
    """One config per backend, as one event may carry them."""
    values: Mapping[str, Mapping[str, Any]] = {
        "kafka": {"partition_key": customer, "headers": {"source": "demo"}},
        "rabbitmq": {"priority": 5, "expiration": 60, "headers": {"source": "demo"}},
    }
    return tuple(schema(**values[name]) for name, schema in schemas.items()) or None


def show(console: Console, message: MemoryMessage, schemas: Mapping[str, type[BaseModel]]) -> None:
    """Print one event: its topic and key, its envelope, and the config for each backend."""
    heading = Text.assemble(
        "\n",
        (message.type, "bold magenta"),
        "  as it travelled: topic ",
        (message.topic, "bold cyan"),
        "  key ",
        (str(message.key), "bold cyan"),
    )
    console.print(heading, soft_wrap=True)
    envelope = json.dumps(json.loads(message.payload), indent=2, ensure_ascii=False)
    if console.is_terminal:
        console.print(Syntax(envelope, "json", background_color="default", word_wrap=True))
    else:
        say(console, envelope)
    for name, schema in schemas.items():
        for config in layer_of(message.config, schema):
            fields = ((field, getattr(config, field)) for field in type(config).model_fields)
            settings = ", ".join(
                f"{field}={value!r}" for field, value in fields if value is not None
            )
            line = Text.assemble((f"{name} would apply ", "green"), settings)
            console.print(line, soft_wrap=True)
    console.print()


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is, unwrapped."""
    console.print(Text(text, style=style), soft_wrap=True)
