"""What the plugin promises: it is found, refuses what is wrong early, starts and stops."""

import asyncio
import contextlib
import json
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from unittest import mock

import importlib_metadata
import pytest
from pydantic import ValidationError

from dispytch import plugins
from dispytch.config import BackendConfig
from dispytch.emitter import EventEmitter
from dispytch.errors import ConfigError, ConfigMismatchError
from dispytch.testing.conformance.hooks import Broker
from dispytch.testing.conformance.kit import Kit
from dispytch.testing.conformance.promise import promised
from dispytch.testing.conformance.proxy import LOCALHOST, free_port
from dispytch.testing.conformance.workers import environment

__all__ = ["PluginTests"]

_USER, _PASSWORD = "user-nobody-may-see", "password-nobody-may-see"
_STARTING = 20.0
"""Seconds a start with a wrong login may take; what it told until then counts."""

_LOOK_UP = """
import json, sys
from dispytch import plugins
name = sys.argv[1]
plugins.event_config(name), plugins.connection_schema(name)
print(json.dumps(sorted({module.partition(".")[0] for module in sys.modules} | set(sys.modules))))
"""


class ForeignConfig(BackendConfig):
    """An event config of a backend that nobody has."""


class PluginTests:
    """Discovery, configs, secrets, lifecycle."""

    @promised(look="the entry points in pyproject.toml, `Backend.name` and `Backend.schemes`")
    async def test_backend_is_found_by_name_and_scheme(self, kit: Kit) -> None:
        """The backend is found by its name and by every URL scheme it serves."""
        (info,) = [info for info in plugins.backends(check=True) if info.name == kit.backend.name]
        assert info.error is None
        assert plugins.get_backend(kit.backend.name) is kit.backend
        assert kit.url.partition("://")[0] in info.schemes
        for scheme in info.schemes:
            assert plugins.backend_for_url(f"{scheme}://host") is kit.backend

    @promised(
        look="what the plugin's module imports: `producer` and `consumer` as 'module:Class'",
        needs=("distribution",),
    )
    async def test_schemas_are_found_without_the_client(self, kit: Kit) -> None:
        """Looking up the schemas imports no client and needs no broker."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _LOOK_UP, kit.backend.name],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        imported = set(json.loads(done.stdout))
        homes = {
            reference.partition(":")[0]
            for reference in (kit.backend.producer, kit.backend.consumer)
            if isinstance(reference, str)
        }
        assert not imported & (homes | _clients(kit.backend.name) - set(kit.suite.light))

    @promised(
        look="`Backend.event_config`: extra='forbid', as `BackendConfig` has it", needs=("config",)
    )
    async def test_unknown_config_field_is_refused(self, kit: Kit) -> None:
        """A misspelt field of an event config is refused, by name."""
        schema = plugins.event_config(kit.backend.name)
        assert schema is not None
        with pytest.raises((ValidationError, ConfigError), match="no_such_field"):
            schema.model_validate({"no_such_field": 1})

    @promised(look="`Backend.event_config` and `Producer.event_config`", needs=("config",))
    async def test_config_of_another_backend_is_refused(self, kit: Kit) -> None:
        """An event with a config of another backend is refused, before anything is sent."""
        kind = kit.event(await kit.topic())
        emitter = await kit.emitter()
        sent = mock.AsyncMock(return_value=None)
        with (
            mock.patch.object(emitter.producer, "send_message", sent),
            mock.patch.object(emitter.producer, "send_messages", sent),
        ):
            for event, config in (
                (kind(), ForeignConfig()),
                (kind(__backend_config__=ForeignConfig()), None),
            ):
                with pytest.raises(ConfigMismatchError, match="ForeignConfig"):
                    await emitter.emit(event, config=config)
        assert not sent.called

    @promised(look="reprs, log lines and errors of producer, consumer and connection", within=180)
    async def test_secrets_appear_nowhere(self, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
        """User and password of a URL appear in no repr, log line, error or cause of one."""
        caplog.set_level(logging.DEBUG)
        urls = [_with_login(kit.url)]
        if kit.suite.lives_in == "server":
            urls.append(_with_login(kit.url, f"{LOCALHOST}:{free_port()}"))
        told = [text for url in urls for text in [*_reprs(kit, url), *await _errors(kit, url)]]
        told += map(logging.Formatter("%(name)s: %(message)s").format, caplog.records)
        leaks = [text for text in told if _USER in text or _PASSWORD in text]
        assert not leaks, f"{len(leaks)} leaks, first: {leaks[0][:500]}"

    @promised(look="`stop` of producer and consumer, called twice, and `start` after it")
    async def test_start_and_stop_can_be_repeated(self, kit: Kit) -> None:
        """Producer and consumer can be stopped twice, and started again."""
        topic = await kit.topic()
        emitter = await kit.emitter()
        await emitter.stop()
        await emitter.stop()
        await emitter.producer.stop()
        await emitter.start()
        if kit.backend.consumer is not None:
            consumer = kit.new_consumer()
            await consumer.start()
            await consumer.stop()
            await consumer.stop()
            await consumer.start()
            await kit.subscribe(consumer, topic)
            event = kit.event(topic)()
            await emitter.emit(event)
            assert [kit.id_of(each) for each in await kit.receive(consumer, 1)] == [event.id]

    @promised(look="`Consumer.stop` while `receive` waits", needs=("consumer",))
    async def test_stop_while_receiving_returns_soon(self, kit: Kit) -> None:
        """Stopping a consumer that waits for events returns in bounded time."""
        consumer = await kit.subscriber(await kit.topic())
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.wait({waiting}, timeout=0.2)
        assert not waiting.done(), "receive() did not wait"
        try:
            await kit.stop(consumer.stop())
        finally:
            await _cancelled(waiting)

    @promised(look="`Producer.stop` while `send_message` is under way")
    async def test_stop_while_sending_returns_soon(self, kit: Kit) -> None:
        """Stopping a producer in the middle of sends returns in bounded time, and ends them."""
        topic = await kit.topic()
        producer = await kit.producer()
        sends = [asyncio.create_task(kit.send(producer, topic, b"any")) for _ in range(200)]
        await asyncio.sleep(0)
        try:
            await kit.stop(producer.stop())
            _, pending = await asyncio.wait(sends, timeout=kit.suite.stop_within)
            assert not pending, f"{len(pending)} sends have no outcome"
        finally:
            await _cancelled(*sends)

    @promised(look="`stop` where the broker does not answer", needs=("broker", "consumer"))
    async def test_stop_with_a_frozen_broker_returns_soon(self, kit: Kit, broker: Broker) -> None:
        """With a broker that does not answer, stopping returns in bounded time too."""
        topic = await kit.topic()
        consumer, producer = await kit.subscriber(topic), await kit.producer()
        await asyncio.to_thread(broker.freeze)
        pending = [asyncio.create_task(kit.send(producer, topic, b"any")) for _ in range(20)]
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0.1)  # the sends are on their way
        try:
            await asyncio.gather(kit.stop(producer.stop()), kit.stop(consumer.stop()))
        finally:
            await asyncio.to_thread(broker.thaw)
            await _cancelled(*pending, waiting)


def _clients(name: str) -> set[str]:
    """The modules of what the plugin needs and the core does not."""
    (info,) = [info for info in plugins.backends() if info.name == name]
    needed = _requirements(info.distribution) - _requirements("dispytch") - {"dispytch"}
    return {
        module
        for module, owners in importlib_metadata.packages_distributions().items()
        if {_normal(owner) for owner in owners} & needed
    }


def _requirements(distribution: str) -> set[str]:
    return {
        _normal(match.group())
        for line in importlib_metadata.requires(distribution) or ()
        if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_login(url: str, hosts: str | None = None) -> str:
    """The URL with a login that must not be seen, and other hosts where given."""
    scheme, _, rest = url.partition("://")
    authority, tail = re.split(r"(?=[/?])|$", rest, maxsplit=1)
    there = authority.rpartition("@")[2] if hosts is None else hosts
    return f"{scheme}://{_USER}:{_PASSWORD}@{there}{tail}"


def _reprs(kit: Kit, url: str) -> Iterator[str]:
    """What a backend says of itself, and of a URL that it does not take."""
    try:
        connection = kit.connection(url)
        yield from (repr(connection), str(connection), connection.model_dump_json())
        of_backend = [kit.backend.make_producer(connection), EventEmitter.from_url(url)]
        if kit.backend.consumer is not None:
            of_backend += [kit.new_consumer(url), kit.listener("any", url)]
        for each in of_backend:
            yield repr(each)
            yield repr(getattr(each, "__dict__", {}))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not tell
        yield _everything(error)
    try:
        kit.connection(f"{url}{'&' if '?' in url else '?'}no_such_option=1")
    except Exception as error:  # noqa: BLE001 - as above
        yield _everything(error)


async def _errors(kit: Kit, url: str) -> list[str]:
    """What it says when it starts, or can't."""
    told = []
    for make in (kit.emitter, kit.subscriber_of):
        try:
            async with asyncio.timeout(_STARTING):
                await make(url=url)
        except Exception as error:  # noqa: BLE001 - as above
            told.append(_everything(error))
    return told


def _everything(error: BaseException) -> str:
    """All that can be read in an error and in those behind it, without the source lines."""
    told: list[str] = []
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        if (each := left.pop()) is None or id(each) in seen:
            continue
        seen.add(id(each))
        told += [*traceback.format_exception_only(each), repr(each), repr(vars(each))]
        if isinstance(each, ValidationError):
            told.append(repr(each.errors()))
        left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return "\n".join(told)


async def _cancelled(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(Exception):
        await asyncio.gather(*tasks, return_exceptions=True)
