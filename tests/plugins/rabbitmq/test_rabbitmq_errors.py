"""Every exception of the clients has a meaning."""

import asyncio
import importlib
import pkgutil
import ssl
import warnings
from collections.abc import Iterator

import pytest

pytest.importorskip("aio_pika")

import aio_pika
import aiormq
import pamqp
from aiormq import spec

from dispytch import EmitRejected, EmitUnknown
from dispytch_rabbitmq.errors import MEANINGS, describe, emit_error


def _defined_by(package: object) -> Iterator[type[BaseException]]:
    name = package.__name__  # type: ignore[attr-defined]
    for found in pkgutil.walk_packages(package.__path__, f"{name}."):  # type: ignore[attr-defined]
        if ".hook-" in found.name:
            continue
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            module = importlib.import_module(found.name)
        for value in vars(module).values():
            is_error = isinstance(value, type) and issubclass(value, BaseException)
            if is_error and value.__module__.split(".")[0] == name:
                yield value


@pytest.mark.parametrize("package", [aio_pika, aiormq, pamqp], ids=lambda p: p.__name__)
def test_every_exception_of_the_clients_is_mapped(package: object) -> None:
    """A class that a new version adds fails here until it has its meaning."""
    defined = set(_defined_by(package))
    assert defined
    assert not {cls.__qualname__ for cls in defined - MEANINGS.keys()}


@pytest.mark.parametrize(
    ("error", "alone", "outcome"),
    [
        (aiormq.exceptions.DeliveryError(None, spec.Basic.Nack(1)), False, EmitRejected),
        (aiormq.exceptions.ChannelAccessRefused("no"), True, EmitRejected),
        (aiormq.exceptions.ChannelAccessRefused("no"), False, EmitUnknown),
        (aiormq.exceptions.ChannelPreconditionFailed("too large"), True, EmitRejected),
        (aiormq.exceptions.ChannelClosed(541, "?"), True, EmitUnknown),
        (aiormq.exceptions.ConnectionClosed(320, "forced"), True, EmitUnknown),
        (aiormq.exceptions.ChannelInvalidStateError("closed"), True, EmitUnknown),
        (asyncio.CancelledError(), False, EmitUnknown),
        (asyncio.InvalidStateError(), False, EmitUnknown),
        (ConnectionResetError(), False, EmitUnknown),
        (asyncio.IncompleteReadError(b"", 1), False, EmitUnknown),
        (ssl.SSLError("bad record"), False, EmitUnknown),
        (TimeoutError(), False, EmitUnknown),
        (RuntimeError("closed"), False, EmitUnknown),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outcome_follows_the_meaning(
    error: BaseException, alone: bool, outcome: type[BaseException]
) -> None:
    """A refusal counts only where no other message can have caused it."""
    assert type(emit_error(error, alone=alone, login="guest")) is outcome


def test_foreign_exception_stays_as_it_is() -> None:
    """A bug is not dressed up as an outcome."""
    error = ZeroDivisionError()
    assert emit_error(error, alone=True, login="guest") is error


def test_login_is_left_out_of_what_the_broker_said() -> None:
    """RabbitMQ repeats the user's name; we do not."""
    error = aiormq.exceptions.ChannelAccessRefused("refused for user 's3cret-user'")
    assert "s3cret" not in describe(error, "s3cret-user")
