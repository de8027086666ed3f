"""Every error of redis-py has a meaning, and who connects is told what to do."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from brokers.fixtures import started
from brokers.process import free_port
from brokers.redis import LIMITED, PASSWORD, USER, Redis

pytest.importorskip("redis")

from redis import exceptions
from redis.asyncio import Connection, SSLConnection

from dispytch import EmitRejected, EmitUnknown
from dispytch_redis.errors import (
    MEANINGS,
    Meaning,
    as_emit_error,
    connect_problem,
    described,
    meaning_of,
)


def reply(text: str) -> Exception:
    """What redis-py makes of an error reply."""
    from redis._parsers.base import BaseParser

    error = BaseParser.parse_error(text)
    assert isinstance(error, Exception)
    return error


def test_every_error_of_redis_py_has_a_meaning() -> None:
    """A class that a new version adds fails here until it has its meaning."""
    defined = {
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert len(defined) > 25
    assert {cls.__name__ for cls in defined - MEANINGS.keys()} == set()


def test_every_meaning_is_used() -> None:
    """None is left over."""
    assert set(MEANINGS.values()) == set(Meaning)


REPLIES = {
    "ERR syntax error": Meaning.REFUSED,
    "ERR Protocol error: invalid bulk length": Meaning.REFUSED,
    "ERR The ID specified in XADD is equal or smaller than the target stream": Meaning.REFUSED,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Meaning.REFUSED,
    "NOGROUP No such consumer group": Meaning.REFUSED,
    "BUSYGROUP Consumer Group name already exists": Meaning.REFUSED,
    "UNBLOCKED the stream key no longer exists": Meaning.REFUSED,
    "FENCED": Meaning.REFUSED,
    "NOSCRIPT No matching script. Please use EVAL.": Meaning.REFUSED,
    "EXECABORT Transaction discarded because of previous errors.": Meaning.REFUSED,
    "NOPERM this user has no permissions to run the 'xadd' command": Meaning.REFUSED,
    "CROSSSLOT Keys in request don't hash to the same slot": Meaning.REFUSED,
    "MOVED 3999 10.0.0.7:6381": Meaning.REFUSED,
    "ASK 3999 10.0.0.7:6381": Meaning.REFUSED,
    "BUSY Redis is busy running a script.": Meaning.BUSY,
    "MISCONF Redis is configured to save RDB snapshots": Meaning.BUSY,
    "NOREPLICAS Not enough good replicas to write.": Meaning.BUSY,
    "OOM command not allowed when used memory > 'maxmemory'.": Meaning.BUSY,
    "READONLY You can't write against a read only replica.": Meaning.BUSY,
    "LOADING Redis is loading the dataset in memory": Meaning.BUSY,
    "MASTERDOWN Link with MASTER is down": Meaning.BUSY,
    "CLUSTERDOWN The cluster is down": Meaning.BUSY,
    "TRYAGAIN Multiple keys request during rehashing of slot": Meaning.BUSY,
    "ERR max number of clients reached": Meaning.BUSY,
    "NOAUTH Authentication required.": Meaning.LOGIN_REFUSED,
    "WRONGPASS invalid username-password pair or user is disabled.": Meaning.LOGIN_REFUSED,
}


@pytest.mark.parametrize(("text", "meaning"), REPLIES.items(), ids=lambda v: str(v)[:20])
def test_a_reply_is_certain(text: str, meaning: Meaning) -> None:
    """An error reply means that nothing was stored; only what is for now may be tried again."""
    error = reply(text)
    assert meaning_of(error) is meaning
    failure = as_emit_error(error)
    assert isinstance(failure, EmitRejected)
    assert failure.retriable == (meaning is Meaning.BUSY)
    assert failure.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.ConnectionError("Error while reading from h:1 : (104, 'reset')"),
        exceptions.TimeoutError("Timeout reading from h:1"),
        exceptions.InvalidResponse("Protocol error"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_a_reply_that_does_not_come_leaves_it_open(error: Exception) -> None:
    """The command may have been executed."""
    assert meaning_of(error) is Meaning.LOST
    failure = as_emit_error(error)
    assert isinstance(failure, EmitUnknown)
    assert failure.retriable
    assert failure.__cause__ is error


def test_what_can_not_be_written_is_rejected() -> None:
    """It never left, and would not the next time."""
    failure = as_emit_error(exceptions.DataError("Invalid input of type: 'NoneType'"))
    assert isinstance(failure, EmitRejected)
    assert not failure.retriable


def test_a_foreign_exception_has_no_meaning() -> None:
    """What redis-py does not raise is a bug, ours or a user's."""
    assert meaning_of(KeyError("x")) is None
    assert meaning_of(AttributeError("'NoneType' object has no attribute '_add_writer'")) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (reply("NOPERM User team/a has no permissions"), "User *** has no permissions"),
        (reply("ERR team/ab, team/a: team/a!"), "team/ab, ***: ***!"),
        (reply("ERR unknown command 'XADD', with args beginning with: 's' 'payload' "),
         "unknown command 'XADD'"),
        (exceptions.ResponseError("two\nlines\r\n of  it"), "two lines of it"),
        (exceptions.InvalidResponse(b"payload"), "what came is not Redis' protocol"),
        (reply("MOVED 3999 10.0.0.7:6381"), "it is a Redis Cluster, which is not supported"),
    ],
)  # fmt: skip
def test_what_is_told_has_no_login_and_no_payload(error: Exception, told: str) -> None:
    """One line, which may stand in any log."""
    assert described(error, "team/a") == f"{type(error).__name__}: {told}"


def test_an_error_without_a_text_has_a_name() -> None:
    """There is always something to read."""
    assert described(TimeoutError(), None) == "TimeoutError"


# Connecting


async def problem(kind: type[Connection] = Connection, **settings: Any) -> tuple[str, bool]:
    """What connecting meets."""
    settings = {"host": "127.0.0.1", "protocol": 3, "socket_connect_timeout": 5.0, **settings}
    connection = kind(**settings)
    try:
        await connection.connect()
    except tuple(MEANINGS) as error:
        return connect_problem(error, settings.get("username"))
    finally:
        await connection.disconnect(nowait=True)
    raise AssertionError("it was let in")


@pytest.fixture
async def no_redis() -> AsyncIterator[int]:
    """The port of something that answers, and not as Redis does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()  # until it hangs up
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.redis
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"username": USER, "password": "wr0ng"}, "refused the user or the password"),
        ({"username": "nobody", "password": "wr0ng"}, "refused the user or the password"),
        ({"username": USER, "password": PASSWORD, "db": 99}, "no database of this number"),
    ],
    ids=["password", "user", "database"],
)
async def test_a_refused_login_is_final(
    own_redis: Redis, settings: dict[str, Any], told: str
) -> None:
    """Trying again would not help, and no secret is repeated."""
    text, retriable = await problem(port=own_redis.port, **settings)
    assert told in text
    assert not retriable
    assert not any(secret in text for secret in (USER, PASSWORD, "wr0ng", "nobody"))


@pytest.mark.redis
async def test_a_right_that_is_missing_is_named(own_redis: Redis) -> None:
    """What the server tells of it, without the user's name."""
    own_redis.call("ACL", "SETUSER", LIMITED, "-select")
    try:
        text, retriable = await problem(
            port=own_redis.port, username=LIMITED, password=PASSWORD, db=1
        )
    finally:
        own_redis.call("ACL", "SETUSER", LIMITED, "+select")
    assert "no permissions to run the 'select' command" in text
    assert LIMITED not in text
    assert not retriable


@pytest.mark.redis
async def test_tls_where_there_is_none_is_guessed(own_redis: Redis) -> None:
    """A server without TLS waits for the end of a command that never comes."""
    told = await problem(SSLConnection, port=own_redis.port, socket_connect_timeout=0.5)
    assert told == (
        "no answer in time; if it has no TLS on this port, write redis for rediss in the URL",
        True,
    )


@pytest.mark.redis
async def test_a_server_that_wants_tls_is_guessed(own_redis: Redis) -> None:
    """It hangs up on who speaks without."""
    text, retriable = await problem(port=own_redis.tls_port)
    assert "it may want TLS (rediss)" in text
    assert retriable


@pytest.mark.redis
async def test_a_frozen_server_gives_no_answer(own_redis: Redis) -> None:
    """It may thaw; of TLS there is no word."""
    own_redis.freeze()
    try:
        told = await problem(port=own_redis.port, socket_timeout=0.5)
    finally:
        own_redis.thaw()
    assert told == ("no answer in time", True)


@pytest.mark.redis
async def test_an_unknown_authority_is_final(own_redis: Redis) -> None:
    """The option to name it is told."""
    text, retriable = await problem(SSLConnection, port=own_redis.tls_port)
    assert "certificate is refused: self-signed certificate" in text
    assert "cafile" in text
    assert not retriable


@pytest.mark.redis
async def test_too_many_clients_may_pass(own_redis: Redis) -> None:
    """Others may leave."""
    own_redis.call("CONFIG", "SET", "maxclients", 1)
    others = [Connection(host="127.0.0.1", port=own_redis.port) for _ in range(2)]
    try:
        for other in others:
            await asyncio.wait([asyncio.ensure_future(other.connect())])
        text, retriable = await problem(port=own_redis.port)
    finally:
        for other in others:
            await other.disconnect()
    assert "max number of clients reached" in text
    assert retriable


@pytest.fixture(scope="module")
def strict_redis() -> Any:
    """A Redis that wants a client's certificate."""
    with started(lambda: Redis(config={"tls-auth-clients": "yes"})) as broker:
        yield broker


@pytest.mark.redis
async def test_a_certificate_that_is_wanted_is_told(strict_redis: Redis) -> None:
    """With the option that names one, whether its reason or its hanging up comes first."""
    text, _ = await problem(
        SSLConnection, port=strict_redis.tls_port, ssl_ca_certs=str(strict_redis.certificates.ca)
    )
    assert "certfile" in text


@pytest.mark.redis
async def test_a_login_that_is_wanted_is_told(strict_redis: Redis) -> None:
    """Who gave none is told where it stands in the URL."""
    strict_redis.call("ACL", "SETUSER", "default", "off")
    # Nobody may log in without a user any more: the server ends with the module.
    text, retriable = await problem(port=strict_redis.port)
    assert "put user:password@ before the host" in text
    assert not retriable


async def test_something_else_than_redis_is_final(no_redis: int) -> None:
    """Its answer is not repeated."""
    assert await problem(port=no_redis) == ("what answers there is not Redis", False)


async def test_something_else_than_tls_is_final(no_redis: int) -> None:
    """Whoever answers plainly has no TLS there."""
    text, retriable = await problem(SSLConnection, port=no_redis)
    assert "TLS failed: WRONG_VERSION_NUMBER" in text
    assert not retriable


async def test_a_server_that_is_not_there_may_come() -> None:
    """Neither a refused connection nor an unknown name is final."""
    port = free_port()
    text, retriable = await problem(port=port)
    assert str(port) in text
    assert retriable
    text, retriable = await problem(host="no-such-host.invalid", port=port)
    assert "no-such-host.invalid" in text
    assert retriable


@pytest.mark.parametrize(
    ("error", "told", "retriable"),
    [
        (reply("ERR unknown command `HELLO`, with args beginning with: `3`, "), "Redis 6", False),
        (reply("ERR SELECT is not allowed in cluster mode"), "Redis Cluster", False),
        (reply("NOAUTH Authentication required."), "user:password@", False),
        (reply("LOADING Redis is loading the dataset in memory"), "loading", True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "EOF", True),
        (exceptions.ConnectionError("Connection closed by server."), "hung up", True),
    ],
)
def test_what_a_server_tells_when_connecting_is_advice(
    error: Exception, told: str, retriable: bool
) -> None:
    """The same for what needs another server than the one at hand."""
    text, may_pass = connect_problem(error, None)
    assert told in text
    assert may_pass == retriable
