"""RabbitMQ for tests: one real node with an epmd, ports, cookie and users of its own."""

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from brokers.process import (
    LOCALHOST,
    BrokerError,
    BrokerMissing,
    BrokerProcess,
    free_port,
    wait_until,
)
from brokers.rabbitmq_access import RabbitMQAccess
from dispytch.testing.conformance import Proxy

if TYPE_CHECKING:
    from brokers.tls import Certificates

VHOST = "team a/orders"
"""A second virtual host, whose name must be percent-encoded in URLs."""
LIMITED = "limited"
LIMITED_PASSWORD = "p@ss/w:rd#1"
"""May connect to both virtual hosts, and then do nothing."""

_ALL, _NOTHING = ".*", ""
_ONLY_HERE = "-kernel inet_dist_use_interface {127,0,0,1}"
_NO_SPINNING = "+sbwt none +sbwtdcpu none +sbwtdio none"  # leave the cores to the other processes


class RabbitMQ(BrokerProcess, RabbitMQAccess):
    """A RabbitMQ broker with the users `guest` (all rights) and `limited` (none)."""

    kind: ClassVar[str] = "rabbitmq"

    def __init__(self, *, config: Mapping[str, str] | None = None) -> None:
        from brokers.tls import make_certificates  # here: not all who run tests have cryptography

        super().__init__()
        self._programs = _programs()
        self.tls_port = free_port()
        self._erlang_port = free_port()
        self._epmd_port = free_port()
        self.certificates: Certificates = make_certificates(self.home / "tls")
        self._extra = dict(config or {})

    @property
    def url(self) -> str:
        return self.url_for()

    @property
    def tls_url(self) -> str:
        return self.url_for(port=self.tls_port, scheme="amqps")

    @property
    def vhost_url(self) -> str:
        return self.url_for(vhost=VHOST)

    @property
    def limited_url(self) -> str:
        return self.url_for(user=LIMITED, password=LIMITED_PASSWORD)

    def url_for(
        self,
        *,
        user: str = "guest",
        password: str = "guest",
        vhost: str = "/",
        port: int | None = None,
        scheme: str = "amqp",
    ) -> str:
        """A URL with everything percent-encoded; a proxy's port leads through the proxy."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"{scheme}://{login}@{LOCALHOST}:{port or self.port}/{path}"

    def proxy(self) -> Proxy:
        """A proxy in front of the plain listener, for `url_for(port=proxy.port)`."""
        return Proxy(self.port)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node and return what it printed."""
        done = subprocess.run(
            [self._programs / "rabbitmqctl", "--quiet", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerError(f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def write_declarations(self) -> None:
        """Have what was declared written to disk: the broker itself does so within seconds only.

        Unlike confirmed messages, a durable queue just declared does not survive a kill: it is
        gone, or, as its name is kept in one place and its log in another, there, empty, and mute.
        """
        self.ctl("eval", "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")

    def add_user(self, user: str, password: str) -> None:
        """Add a user, without any rights yet."""
        self.ctl("add_user", "--", user, password)

    def set_permissions(
        self,
        user: str,
        configure: str = _ALL,
        write: str = _ALL,
        read: str = _ALL,
        vhost: str = "/",
    ) -> None:
        """Set what the user may do: each is a pattern for names, an empty one allows nothing."""
        self.ctl("set_permissions", "-p", vhost, "--", user, configure, write, read)

    @contextlib.contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Let the node believe it is out of memory: it blocks all connections that publish."""
        self.ctl("set_vm_memory_high_watermark", "0.0001")
        try:
            wait_until(self._has_alarm, 30, "the memory alarm")
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "0.4")
            wait_until(lambda: not self._has_alarm(), 30, "the memory alarm to clear")

    def close_all_connections(self, reason: str = "closed by a test") -> None:
        """Close every client's connection from the broker's side, with a proper AMQP close."""
        self.ctl("close_all_connections", reason)

    def _has_alarm(self) -> bool:
        return self.ctl("eval", "rabbit_alarm:get_alarms().").strip() != "[]"

    def _prepare(self) -> None:
        for directory in ("user", "conf.d"):
            (self.home / directory).mkdir(exist_ok=True)
        self._link_plugins()
        settings = [f"{name} = {value}\n" for name, value in self._settings().items()]
        (self.home / "rabbitmq.conf").write_text("".join(settings))
        (self.home / "advanced.config").write_text("[].\n")
        (self.home / "enabled_plugins").write_text("[].\n")
        (self.home / "definitions.json").write_text(json.dumps(_definitions()))

    def _link_plugins(self) -> None:
        """Give the node only the libraries that it is made of.

        Looking through the optional plugins, although all are off, took a fifth of each start.
        """
        plugins = self.home / "plugins"
        plugins.mkdir(exist_ok=True)
        for entry in (self._programs.parent / "plugins").iterdir():
            link = plugins / entry.name
            needed = entry.name.startswith("rabbitmq_prelaunch") or "rabbitmq_" not in entry.name
            if needed and not link.is_symlink():
                link.symlink_to(entry)

    def _command(self) -> Sequence[str | Path]:
        return [self._programs / "rabbitmq-server"]

    def _environment(self) -> dict[str, str]:
        """Paths that keep the node apart from an installed one: nothing of /etc or /var is used."""
        return {
            "HOME": str(self.home / "user"),  # where Erlang makes its cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOCALHOST,
            "RABBITMQ_NODENAME": f"dispytch{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._erlang_port),
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_PLUGINS_DIR": str(self.home / "plugins"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_ONLY_HERE} {_NO_SPINNING}",
            "RABBITMQ_CTL_ERL_ARGS": _ONLY_HERE,
        }

    def _ask(self, timeout: float) -> bool:
        """Whether the broker opens the AMQP dialogue; it listens when users and hosts exist."""
        socket.create_connection((LOCALHOST, self.tls_port), timeout).close()
        with socket.create_connection((LOCALHOST, self.port), timeout) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            method_frame = b"\x01"
            return connection.recv(1) == method_frame

    def _settings(self) -> dict[str, str]:
        return {
            "listeners.tcp.1": f"{LOCALHOST}:{self.port}",
            "listeners.ssl.1": f"{LOCALHOST}:{self.tls_port}",
            "ssl_options.cacertfile": str(self.certificates.ca),
            "ssl_options.certfile": str(self.certificates.server.cert),
            "ssl_options.keyfile": str(self.certificates.server.key),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "false",
            "load_definitions": str(self.home / "definitions.json"),
            "disk_free_limit.absolute": "1MB",
            **self._extra,
        }


def _definitions() -> dict[str, object]:
    """Users and virtual hosts, made at boot: `rabbitmqctl` would take half a second for each."""
    rights = {"guest": _ALL, LIMITED: _NOTHING}
    return {
        "users": [
            {"name": "guest", "password": "guest", "tags": "administrator"},
            {"name": LIMITED, "password": LIMITED_PASSWORD, "tags": ""},
        ],
        "vhosts": [{"name": "/"}, {"name": VHOST}],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": names, "write": names, "read": names}
            for user, names in rights.items()
            for vhost in ("/", VHOST)
        ],
    }


def _programs() -> Path:
    """Where RabbitMQ's own scripts are.

    What Debian puts on the PATH are wrappers that switch to the system's `rabbitmq` user.
    """
    debian = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
    if debian:
        return debian[-1]
    program = shutil.which("rabbitmq-server")
    if program is None:
        raise BrokerMissing("no `rabbitmq-server` on this machine")
    return Path(program).resolve().parent
