"""Redis for tests: one real server with users and an append-only file of its own."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from brokers.process import LOCALHOST, BrokerMissing, BrokerProcess, free_port, wait_until
from brokers.redis_access import ErrorReply, RedisAccess, connected
from dispytch.testing.conformance import Proxy

if TYPE_CHECKING:
    from brokers.tls import Certificates

USER = "team/orders@eu"
PASSWORD = "p@ss/w:rd #1 %41ü"
"""May do all. Both must be percent-encoded in URLs."""
LIMITED = "limited"
"""May log in, with the same password, and ping, and then do nothing: no key, no channel."""

_RIGHTS = {USER: "~* &* +@all", LIMITED: "resetkeys resetchannels -@all +@connection"}


class Redis(BrokerProcess, RedisAccess):
    """A Redis server where nobody need log in, and the users `USER` and `LIMITED` can.

    It appends to its file before it replies and syncs that once a second (`appendfsync`): what was
    confirmed survives `kill()`. `config` overrides what a `redis.conf` may say.
    """

    kind: ClassVar[str] = "redis"

    def __init__(self, *, config: Mapping[str, str] | None = None) -> None:
        from brokers.tls import make_certificates  # here: not all who run tests have cryptography

        super().__init__()
        self._program = _program()
        self.tls_port = free_port()
        self.certificates: Certificates = make_certificates(self.home / "tls")
        self._extra = dict(config or {})

    @property
    def url(self) -> str:
        return self.url_for()

    @property
    def user_url(self) -> str:
        return self.url_for(user=USER)

    @property
    def limited_url(self) -> str:
        return self.url_for(user=LIMITED)

    @property
    def tls_url(self) -> str:
        return self.url_for(port=self.tls_port, scheme="rediss")

    def url_for(
        self,
        *,
        user: str | None = None,
        password: str = PASSWORD,
        port: int | None = None,
        scheme: str = "redis",
    ) -> str:
        """A URL with everything percent-encoded; a proxy's port leads through the proxy."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
        return f"{scheme}://{login}{LOCALHOST}:{port or self.port}"

    def proxy(self) -> Proxy:
        """A proxy in front of the plain listener, for `url_for(port=proxy.port)`."""
        return Proxy(self.port)

    @contextlib.contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Let it be full: it refuses what could need memory, with `OOM`."""
        self.call("CONFIG", "SET", "maxmemory", 1)
        try:
            yield
        finally:
            self.call("CONFIG", "SET", "maxmemory", 0)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Let it be the replica of one that is gone: it refuses writes, with `READONLY`."""
        self.call("REPLICAOF", LOCALHOST, free_port())
        try:
            yield
        finally:
            self.call("REPLICAOF", "NO", "ONE")

    @contextlib.contextmanager
    def failing_disk(self) -> Iterator[None]:
        """Let it fail to save a snapshot: it refuses writes, with `MISCONF`."""
        in_the_way = self.home / "data" / "dump.rdb"
        in_the_way.mkdir()
        try:
            self.call("CONFIG", "SET", "save", "3600 1")
            self.call("BGSAVE")
            wait_until(self._failed_to_save, 30, "saving to fail")
            yield
        finally:
            self.call("CONFIG", "SET", "save", "")
            in_the_way.rmdir()

    def _failed_to_save(self) -> bool:
        return b"rdb_last_bgsave_status:err" in self.call("INFO", "persistence")

    def _prepare(self) -> None:
        (self.home / "data").mkdir(exist_ok=True)
        settings = [f"{name} {value}\n" for name, value in self._settings().items()]
        users = [f"user {user} on {_password_hash()} {_RIGHTS[user]}\n" for user in _RIGHTS]
        (self.home / "redis.conf").write_text("".join(settings + users))

    def _command(self) -> Sequence[str | Path]:
        return [self._program, self.home / "redis.conf"]

    def _ask(self, timeout: float) -> bool:
        """Whether it answers; while it reads its file it replies with an error."""
        try:
            with connected(self.url, timeout=timeout) as connection:
                return bool(connection.call("PING") == b"PONG")
        except ErrorReply:
            return False

    def _settings(self) -> dict[str, str]:
        return {
            "bind": LOCALHOST,
            "port": str(self.port),
            "tls-port": str(self.tls_port),
            "tls-ca-cert-file": str(self.certificates.ca),
            "tls-cert-file": str(self.certificates.server.cert),
            "tls-key-file": str(self.certificates.server.key),
            "tls-auth-clients": "optional",
            "dir": str(self.home / "data"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "set-proc-title": "no",  # it would be written over the mark that tells whose it is
            **self._extra,
        }


def _password_hash() -> str:
    """The form that needs no quoting."""
    return f"#{hashlib.sha256(PASSWORD.encode()).hexdigest()}"


def _program() -> str:
    program = shutil.which("redis-server")
    if program is None:
        raise BrokerMissing("no `redis-server` on the PATH")
    return program
