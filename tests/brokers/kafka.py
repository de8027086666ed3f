"""Apache Kafka for tests: one real node in KRaft mode, controller and broker in one process."""

import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brokers.java import java, run_java
from brokers.kafka_access import KafkaAccess
from brokers.process import LOCALHOST, BrokerProcess, free_port
from dispytch.testing.conformance import Proxy

if TYPE_CHECKING:
    from brokers.tls import Certificates

USER = "dispytch"
PASSWORD = "s3cret@/#1"
LIMITED = "limited"
"""May log in, with the same password, and then do nothing: no topic, no group."""

_CLUSTER = "ZGlzcHl0Y2gtLXRlc3RzLQ"  # any 16 bytes in base64
_QUICK_START = Path(__file__).with_name("kafka.properties")
_LOGGING = Path(__file__).with_name("log4j.properties")


class Kafka(BrokerProcess, KafkaAccess):
    """A Kafka broker with a listener for every way to connect.

    `port` is the plain one. `proxied_port` belongs to the proxy that `proxy()` starts: clients that
    bootstrap through it are told its address again, so all their traffic keeps going through it.
    """

    kind: ClassVar[str] = "kafka"

    def __init__(
        self,
        *,
        auto_create_topics: bool = False,
        message_max_bytes: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        from brokers.tls import make_certificates  # here: not all who run tests have cryptography

        super().__init__()
        self.proxied_port = free_port()
        self.ssl_port = free_port()
        self.sasl_ssl_port = free_port()
        self.sasl_plaintext_port = free_port()
        self._behind_proxy_port = free_port()
        self._controller_port = free_port()
        self.certificates: Certificates = make_certificates(self.home / "tls")
        self._extra = {"auto.create.topics.enable": str(auto_create_topics).lower()}
        if message_max_bytes is not None:
            self._extra["message.max.bytes"] = str(message_max_bytes)
        self._extra |= config or {}

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    @property
    def bootstrap(self) -> str:
        return f"{LOCALHOST}:{self.port}"

    @property
    def proxied_url(self) -> str:
        """Works while a proxy from `proxy()` is open."""
        return f"kafka://{LOCALHOST}:{self.proxied_port}"

    def proxy(self) -> Proxy:
        """Open the proxy that clients of `proxied_url` go through; close it after use."""
        return Proxy(self._behind_proxy_port, self.proxied_port)

    def acl(self, *arguments: str) -> None:
        """Run Kafka's own ACL tool, as in `acl("--add", "--allow-principal", "User:limited", ...)`.

        It takes seconds, as it starts a Java.
        """
        run_java("kafka.admin.AclCommand", "--bootstrap-server", self.bootstrap, *arguments)

    def _prepare(self) -> None:
        settings = self.home / "server.properties"
        lines = [f"{name}={value}\n" for name, value in self._settings().items()]
        settings.write_text(_QUICK_START.read_text() + "".join(lines))
        if not (self.home / "data").exists():
            scram = [
                f"--add-scram=SCRAM-SHA-{size}=[name={user},password={PASSWORD}]"
                for user in (USER, LIMITED)
                for size in (256, 512)
            ]
            tool = "kafka.tools.StorageTool"
            run_java(tool, "format", "-t", _CLUSTER, "-c", settings, *scram)

    def _command(self) -> Sequence[str | Path]:
        logging = f"-Dlog4j.configuration={_LOGGING.as_uri()}"
        return java(logging, "kafka.Kafka", self.home / "server.properties")

    def _ask(self, timeout: float) -> bool:
        """Whether the broker names itself as alive when asked as clients ask."""
        with socket.create_connection((LOCALHOST, self.port), timeout) as connection:
            metadata, version, correlation, no_client_id, no_topics = 3, 1, 7, -1, 0
            request = struct.pack(">hhihi", metadata, version, correlation, no_client_id, no_topics)
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(12, socket.MSG_WAITALL)
        if len(answer) < 12:
            return False
        _size, echoed, brokers = struct.unpack(">iii", answer)
        return bool(echoed == correlation and brokers == 1)

    def _settings(self) -> dict[str, str]:
        listeners = {
            "PLAINTEXT": self.port,
            "PROXIED": self._behind_proxy_port,
            "SSL": self.ssl_port,
            "SASL_SSL": self.sasl_ssl_port,
            "SASL_PLAINTEXT": self.sasl_plaintext_port,
        }
        bound = listeners | {"CONTROLLER": self._controller_port}
        advertised = listeners | {"PROXIED": self.proxied_port}
        return {
            "listeners": _addresses(bound),
            "advertised.listeners": _addresses(advertised),
            "controller.quorum.voters": f"1@{LOCALHOST}:{self._controller_port}",
            "log.dirs": str(self.home / "data"),
            "ssl.keystore.location": str(self.certificates.server.both),
            "ssl.truststore.location": str(self.certificates.ca),
            **_logins("sasl_ssl"),
            **_logins("sasl_plaintext"),
            **self._extra,
        }


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{listener}://{LOCALHOST}:{port}" for listener, port in ports.items())


def _logins(listener: str) -> dict[str, str]:
    """The settings that let both users log in on a listener, by every mechanism."""
    security = "org.apache.kafka.common.security"
    users = " ".join(f'user_{user}="{PASSWORD}"' for user in (USER, LIMITED))
    scram = f"{security}.scram.ScramLoginModule required;"
    prefix = f"listener.name.{listener}"
    return {
        f"{prefix}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        f"{prefix}.plain.sasl.jaas.config": f"{security}.plain.PlainLoginModule required {users};",
        f"{prefix}.scram-sha-256.sasl.jaas.config": scram,
        f"{prefix}.scram-sha-512.sasl.jaas.config": scram,
    }
