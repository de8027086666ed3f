"""Every error of redis-py has a meaning, and who connects is told what to do."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import serialization

from brokers.fixtures import started
from brokers.process import free_port
from brokers.redis import LIMITED, PASSWORD, USER, Redis

pytest.importorskip("redis")

from redis import exceptions

from dispytch import ConnectError, EmitRejected, EmitUnknown
from dispytch.url import connect
from dispytch_redis import RedisConnection
from dispytch_redis.errors import (
    BACKEND,
    MEANINGS,
    Meaning,
    as_connect_error,
    as_emit_error,
    connect_problem,
    described,
    meaning_of,
)
from dispytch_redis.opening import close, open_connection


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
    "CROSSSLOT Keys in request to the same slot": Meaning.REFUSED,
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


CLUSTER = "it is a Redis Cluster, which is not supported"


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
        (reply("MOVED 3999 10.0.0.7:6381"), CLUSTER),
        (reply("CROSSSLOT Keys in request"), CLUSTER),
        (reply("CLUSTERDOWN Not served"), CLUSTER),
    ],
)  # fmt: skip
def test_what_is_told_has_no_login_and_no_payload(error: Exception, told: str) -> None:
    """One line, which may stand in any log."""
    assert described(error, "team/a") == f"{type(error).__name__}: {told}"


def test_an_error_without_a_text_has_a_name() -> None:
    """There is always something to read."""
    assert described(TimeoutError(), None) == "TimeoutError"


# Connecting


async def problem(url: str) -> ConnectError:
    """What connecting meets."""
    with pytest.raises(ConnectError) as caught:
        await close(await open_connection(connect(url, RedisConnection), BACKEND))
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)  # they could name the login
    return error


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
    ("user", "password", "rest", "told"),
    [
        (USER, "wr0ng", "", "refused the user or the password"),
        ("nobody", "wr0ng", "", "refused the user or the password"),
        (USER, PASSWORD, "/99", "no database of this number"),
        (None, "wr0ng", "", "has no password"),
    ],
    ids=["password", "user", "database", "no password"],
)
async def test_a_refused_login_is_final(
    own_redis: Redis, user: str | None, password: str, rest: str, told: str
) -> None:
    """Trying again would not help, and no secret is repeated."""
    login = f"{quote(user or '', safe='')}:{quote(password, safe='')}"
    error = await problem(f"redis://{login}@127.0.0.1:{own_redis.port}{rest}")
    assert told in str(error)
    assert not error.retriable
    assert not any(secret in str(error) for secret in (USER, PASSWORD, "wr0ng", "nobody"))


@pytest.mark.redis
async def test_a_right_that_is_missing_is_named(own_redis: Redis) -> None:
    """What the server tells of it, without the user's name."""
    own_redis.call("ACL", "SETUSER", LIMITED, "-select")
    try:
        error = await problem(f"{own_redis.limited_url}/1")
    finally:
        own_redis.call("ACL", "SETUSER", LIMITED, "+select")
    assert "no permissions to run the 'select' command" in str(error)
    assert LIMITED not in str(error)
    assert not error.retriable


@pytest.mark.redis
async def test_tls_where_there_is_none_is_guessed(own_redis: Redis) -> None:
    """A server without TLS waits for the end of a command that never comes."""
    url = own_redis.url_for(scheme="rediss")
    error = await problem(f"{url}?connect_timeout=0.5")
    assert "no answer in time" in str(error)
    assert "write redis for rediss" in str(error)
    assert error.retriable


@pytest.mark.redis
async def test_a_server_that_wants_tls_is_guessed(own_redis: Redis) -> None:
    """It hangs up on who speaks without."""
    error = await problem(own_redis.url_for(port=own_redis.tls_port))
    assert "it may want TLS (rediss)" in str(error)
    assert error.retriable


@pytest.mark.redis
async def test_a_frozen_server_gives_no_answer(own_redis: Redis) -> None:
    """It may thaw; of TLS there is no word."""
    own_redis.freeze()
    try:
        error = await problem(f"{own_redis.url}?connect_timeout=0.5")
    finally:
        own_redis.thaw()
    assert str(error).endswith("no answer in time")
    assert error.retriable


@pytest.mark.redis
async def test_an_unknown_authority_is_final(own_redis: Redis) -> None:
    """The option to name it is told."""
    error = await problem(own_redis.tls_url)
    assert "certificate is refused: self-signed certificate" in str(error)
    assert "cafile" in str(error)
    assert not error.retriable


@pytest.mark.redis
async def test_a_known_authority_lets_us_in(own_redis: Redis) -> None:
    """By TLS, with the authority and a login."""
    url = own_redis.url_for(user=USER, port=own_redis.tls_port, scheme="rediss")
    settings = connect(f"{url}?cafile={own_redis.certificates.ca}", RedisConnection)
    await close(await open_connection(settings, BACKEND))


@pytest.mark.parametrize("option", ["cafile", "certfile"])
async def test_a_file_for_tls_that_is_none_is_told(option: str, tmp_path: Path) -> None:
    """Before anything is connected, and not as a failure of the server's."""
    (tmp_path / "empty.pem").touch()
    error = await problem(f"rediss://127.0.0.1:{free_port()}?{option}={tmp_path}/empty.pem")
    assert "cafile, certfile or keyfile can't be used: SSLError" in str(error)
    assert not error.retriable


@pytest.mark.redis
@pytest.mark.parametrize("given", ["", "&keyfile_password=wr0ng", "&keyfile_password=s3cret"])
async def test_a_key_file_needs_its_password(
    strict_redis: Redis, given: str, tmp_path: Path
) -> None:
    """A wrong one is told and not repeated; without one nobody is asked on the terminal."""
    own = strict_redis.certificates
    key = tmp_path / "locked.key"
    key.write_bytes(_locked(own.client.key.read_bytes(), b"s3cret"))
    query = f"cafile={own.ca}&certfile={own.client.cert}&keyfile={key}{given}"
    url = strict_redis.url_for(user=USER, port=strict_redis.tls_port, scheme="rediss")
    if given.endswith("s3cret"):
        await close(await open_connection(connect(f"{url}?{query}", RedisConnection), BACKEND))
        return
    error = await problem(f"{url}?{query}")
    assert "cafile, certfile or keyfile can't be used: SSLError" in str(error)
    assert "wr0ng" not in str(error)


def _locked(key: bytes, password: bytes) -> bytes:
    """The same key, encrypted."""
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )


@pytest.mark.redis
async def test_too_many_clients_may_pass(own_redis: Redis) -> None:
    """Others may leave; the server hangs up, and its reason does not always arrive first."""
    own_redis.call("CONFIG", "SET", "maxclients", 1)
    other = await asyncio.open_connection("127.0.0.1", own_redis.port)
    try:
        error = await problem(own_redis.url)
    finally:
        other[1].close()
    assert "clients" in str(error)
    assert error.retriable


@pytest.fixture(scope="module")
def strict_redis() -> Any:
    """A Redis that wants a client's certificate."""
    with started(lambda: Redis(config={"tls-auth-clients": "yes"})) as broker:
        yield broker


@pytest.mark.redis
async def test_a_certificate_that_is_wanted_is_told(strict_redis: Redis) -> None:
    """With the option that names one, whether its reason or its hanging up comes first."""
    error = await problem(f"{strict_redis.tls_url}?cafile={strict_redis.certificates.ca}")
    assert "certfile" in str(error)


@pytest.mark.redis
async def test_a_login_that_is_wanted_is_told(strict_redis: Redis) -> None:
    """Who gave none is told where it stands in the URL."""
    strict_redis.call("ACL", "SETUSER", "default", "off")  # for ever: it ends with the module
    error = await problem(strict_redis.url)
    assert "put user:password@ before the host" in str(error)
    assert not error.retriable


async def test_something_else_than_redis_is_final(no_redis: int) -> None:
    """Its answer is not repeated."""
    error = await problem(f"redis://127.0.0.1:{no_redis}")
    assert str(error).endswith("what answers there is not Redis")
    assert not error.retriable


async def test_something_else_than_tls_is_final(no_redis: int) -> None:
    """Whoever answers plainly has no TLS there."""
    error = await problem(f"rediss://127.0.0.1:{no_redis}")
    assert "TLS failed: WRONG_VERSION_NUMBER" in str(error)
    assert not error.retriable


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_a_server_that_is_not_there_may_come(host: str) -> None:
    """Neither a refused connection nor an unknown name is final."""
    port = free_port()
    error = await problem(f"redis://{host}:{port}")
    assert f"{host}:{port}" in str(error)
    assert error.retriable


@pytest.mark.parametrize(
    ("error", "told", "retriable"),
    [
        (reply("ERR SELECT is not allowed in cluster mode"), "Redis Cluster", False),
        (reply("ERR unknown command 'SELECT'"), "unknown command 'SELECT'", False),
        (reply("LOADING Redis is loading the dataset in memory"), "loading", True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "EOF", True),
        (exceptions.ConnectionError("Connection closed by server."), "hung up", True),
        (exceptions.ConnectionError("Error while writing to socket."), "hung up", True),
    ],
)
def test_what_a_server_tells_when_connecting_is_advice(
    error: Exception, told: str, retriable: bool
) -> None:
    """The same for what needs another server than the one at hand."""
    text, may_pass = connect_problem(error, None)
    assert told in text
    assert may_pass == retriable


@pytest.mark.parametrize(
    ("error", "retriable"),
    [
        (reply("NOPERM this user has no permissions"), False),
        (reply("OOM command not allowed"), True),
        (exceptions.TimeoutError("Timeout reading"), True),
    ],
)
def test_who_listens_is_told_as_well(error: Exception, retriable: bool) -> None:
    """A refusal that lasts ends a consumer; all else may pass."""
    failure = as_connect_error(error, "redis+pubsub")
    assert str(failure).startswith("redis+pubsub: ")
    assert failure.retriable == retriable
