"""What `listen` and `dlq` share: a consumer for a URL, and what it receives as text."""

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import click
from pydantic import BaseModel

from dispytch import plugins
from dispytch.backend import Backend
from dispytch.consumer import Consumer, Delivery, Subscription
from dispytch.envelope import Envelope, JSONDeserializer
from dispytch.errors import ConfigError, ConnectError, DecodeError
from dispytch.template import PlaceholderError
from dispytch.url import connect

__all__ = [
    "OWN_PROCESS",
    "connection_for",
    "decoded",
    "envelope_of",
    "facts",
    "instant",
    "print_json_line",
    "printable",
    "receiving",
    "until_signal",
]

_TIMEOUT = 30.0  # seconds until it is subscribed
_STOP_TIMEOUT = 10.0

OWN_PROCESS = (
    "memory:// is a broker inside this one process: nothing that another process emitted is in it"
)
"""What to say where somebody may look for it there."""


def connection_for(url: str) -> tuple[Backend, BaseModel]:
    """The backend of a URL, and the URL validated.

    Raises:
        ConfigError: the URL is wrong; its values are not repeated.
        PluginError: no installed backend serves it.
    """
    backend = plugins.backend_for_url(url)
    if backend.connection is None:
        raise ConfigError(f"backend {backend.name!r} takes no URL")
    return backend, connect(url, backend.connection)


@contextlib.asynccontextmanager
async def receiving(
    consumer: Consumer, topic: str, group: str | None, max_held: int = 1000
) -> AsyncIterator[None]:
    """A consumer, subscribed; it is stopped at the end, and gives back what is not settled.

    Raises:
        ConfigError: the topic can't be subscribed to.
        ConnectError: the broker can't be reached, or not in time.
    """
    subscription = Subscription(topic, group, delimiter=consumer.topic_delimiter)
    try:
        _ = subscription.pattern
    except PlaceholderError as error:
        raise ConfigError(f"TOPIC: {error}") from error
    consumer.max_held = max_held
    scope = asyncio.timeout(_TIMEOUT)
    try:
        async with scope:
            await consumer.start()
            await consumer.subscribe([subscription])
        yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise ConnectError(
            f"{consumer.backend}: not subscribed within {_TIMEOUT:g} s", backend=consumer.backend
        ) from error
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT):
                await consumer.stop()


def until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Run it until it ends or a SIGINT or SIGTERM cancels it; whether it ended by itself."""

    async def run() -> bool:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        # Elsewhere than in a main thread of a Unix there is only Python's own handling.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            if task is not None:
                loop.add_signal_handler(signal.SIGINT, task.cancel)
                loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await work
        except asyncio.CancelledError:
            return False
        return True

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        return False


def envelope_of(payload: bytes) -> Envelope | DecodeError:
    """The envelope in these bytes, or why there is none."""
    try:
        return JSONDeserializer().deserialize(payload)
    except DecodeError as error:
        return error


def facts(delivery: Delivery) -> dict[str, Any]:
    """A message as what JSON can hold: what `--json` prints, one line each.

    An event has id, type, timestamp and body; anything else has its bytes and the reason.
    """
    told: dict[str, Any] = {"topic": delivery.topic, "key": delivery.key}
    told["headers"] = [[name, decoded(value)] for name, value in delivery.headers]
    envelope = envelope_of(delivery.payload)
    if isinstance(envelope, Envelope):
        event = {"id": envelope.id, "type": envelope.type, "timestamp": envelope.timestamp}
        return told | event | {"body": envelope.body}
    try:
        told["payload"] = delivery.payload.decode()
    except UnicodeDecodeError:
        told["payload_base64"] = base64.b64encode(delivery.payload).decode()
    return told | {"error": str(envelope)}


def print_json_line(value: dict[str, Any]) -> None:
    """Print a value as one line; in ASCII, which every pipe takes, whatever its encoding."""
    click.echo(json.dumps(value))


def decoded(value: bytes) -> str:
    """The text of a header; bytes that are none are shown as escapes."""
    return value.decode(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with everything escaped that could do something to a terminal."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def instant(timestamp: int) -> str:
    """Milliseconds since 1970 UTC as a local time; as a number where it is no time."""
    try:
        moment = datetime.fromtimestamp(timestamp / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return str(timestamp)
    return moment.isoformat(sep=" ", timespec="milliseconds")
