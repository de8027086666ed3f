"""`dispytch demo`: typed events on the memory backend, and what each backend would make of them."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from dispytch import plugins
from dispytch.config import Given, layer_of
from dispytch.emitter import EventEmitter
from dispytch.errors import PluginError
from dispytch.event import EventBase
from dispytch.memory import MemoryBroker, MemoryMessage, MemoryProducer

__all__ = ["demo"]

_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "kafka": {"partition_key": "{user.id}", "headers": {"source": "demo"}},
    "rabbitmq": {"priority": 5, "expiration": 60, "headers": {"source": "demo"}},
}
"""What the demo sets, for each backend it knows and finds installed."""


class User(BaseModel):
    """A model nested in the events."""

    id: int
    name: str


class UserEvent(EventBase):
    """What the events have in common: their topic names a field, and so does their key."""

    __topic__ = "user.{user.id}.events"
    __key__ = "{user.id}"

    user: User


@click.command()
def demo() -> None:
    """Emit a few typed events in memory, and show what each backend would send.

    Needs no server.
    """
    console = Console(highlight=False)
    schemas = installed_schemas(console)
    broker = MemoryBroker()
    asyncio.run(_emit(broker, configs_of(schemas)))
    for message in broker.messages:
        show(console, message, schemas)
    if not schemas:
        say(
            console,
            "No other backend is installed. See the config of one beside its event with: "
            "pip install 'dispytch[kafka,rabbitmq]'",
        )


def installed_schemas(console: Console) -> dict[str, type[BaseModel]]:
    """The event configs of the installed backends that the demo knows; imports no client."""
    schemas: dict[str, type[BaseModel]] = {}
    installed = {info.name for info in plugins.backends()}
    for name in sorted(installed & _CONFIGS.keys()):
        try:
            schema = plugins.event_config(name)
        except PluginError as error:
            say(console, f"{name}: {error}", "red")
        else:
            if schema is not None:
                schemas[name] = schema
    return schemas


def configs_of(schemas: Mapping[str, type[BaseModel]]) -> Given:
    """One config per backend, as an event class carries them."""
    return tuple(schema(**_CONFIGS[name]) for name, schema in schemas.items()) or None


async def _emit(broker: MemoryBroker, configs: Given) -> None:
    class UserCreated(UserEvent):
        __event_type__ = "user_created"
        __backend_config__ = configs

    class UserRenamed(UserEvent):
        __event_type__ = "user_renamed"
        __backend_config__ = configs

        old_name: str

    ada, grace = User(id=1, name="Ada Lovelace"), User(id=2, name="Grace Hopper")
    async with EventEmitter(MemoryProducer(broker)) as emitter:
        await emitter.emit(UserCreated(user=ada))
        await emitter.emit(UserCreated(user=grace))
        await emitter.emit(UserRenamed(user=ada, old_name="Ada Byron"))


def show(console: Console, message: MemoryMessage, schemas: Mapping[str, type[BaseModel]]) -> None:
    """Print one event: its topic and key, its envelope, and the config for each backend."""
    heading = Text.assemble(
        (message.type, "bold magenta"),
        "  topic ",
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
