"""Opening a connection to the server, with redis-py, which knows how to log in and about TLS."""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from dispytch import ConnectError
from dispytch_redis.connection import RedisServer
from dispytch_redis.errors import connect_problem

__all__ = ["close", "open_connection"]

_CLOSE_TIMEOUT = 2.0  # seconds that closing a connection may take


async def open_connection(settings: RedisServer, backend: str) -> Connection:
    """Connect, log in, and see that the server answers.

    Raises:
        ConnectError: it can't be reached, or refuses us; names no secrets.
    """
    if settings.is_tls and (unusable := await asyncio.to_thread(_unusable, settings)):
        raise ConnectError(
            f"{backend}: cafile, certfile or keyfile can't be used: {unusable}",
            backend=backend,
            retriable=False,
        )
    connection = _connection(settings)
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
            await _greet(connection)
    # On some versions of Python asyncio itself fails on a connection that is reset: AttributeError.
    except (RedisError, OSError, AttributeError) as error:
        await close(connection)
        text, retriable = connect_problem(error, settings.login, tls=settings.is_tls)
    except BaseException:
        await close(connection)
        raise
    else:
        return connection
    raise ConnectError(  # outside the handler: the client's error may name the login
        f"{backend}: can't connect to {settings.host}:{settings.port}: {text}",
        backend=backend,
        retriable=retriable,
    )


async def close(connection: Connection) -> None:
    """Close it, whatever state it is in."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.disconnect(nowait=True)


async def _greet(connection: Connection) -> None:
    """Not while it still loads its data, and not without a login where one is needed."""
    await connection.send_command("PING", check_health=False)
    with contextlib.suppress(ResponseError):  # a user who may not ping
        await connection.read_response()


def _connection(settings: RedisServer) -> Connection:
    """redis-py's, with all retries of its own turned off: they would send a command twice."""
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "db": settings.database,
        "username": settings.login,
        "password": settings.login_password,
        "client_name": settings.client_name,
        "socket_timeout": None,  # whoever waits for a reply watches the time
        "socket_connect_timeout": settings.connect_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if not settings.is_tls:
        return Connection(**options)
    return SSLConnection(
        ssl_ca_certs=_text(settings.cafile),
        ssl_certfile=_text(settings.certfile),
        ssl_keyfile=_text(settings.keyfile),
        ssl_password=_key_password(settings),
        **options,
    )


def _unusable(settings: RedisServer) -> str | None:
    """What is wrong with the files for TLS: redis-py would not tell it from a failed handshake."""
    try:
        context = ssl.create_default_context(cafile=settings.cafile)
        if settings.certfile is not None:
            context.load_cert_chain(settings.certfile, settings.keyfile, _key_password(settings))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _key_password(settings: RedisServer) -> str:
    """Never None: OpenSSL would ask for one on the terminal."""
    password = settings.keyfile_password
    return "" if password is None else password.get_secret_value()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
