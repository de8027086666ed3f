"""KafkaConnection: what a URL becomes."""

import ssl
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dispytch import ConfigError, Connection

__all__ = ["KafkaConnection"]

DEFAULT_PORT = 9092
_INT32 = 2**31


def _host(value: str) -> str:
    _, _, port = value.rpartition("]")[2].rpartition(":")
    return (
        value if port.isdigit() and ":" in value.rpartition("]")[2] else f"{value}:{DEFAULT_PORT}"
    )


def _milliseconds(default: int, description: str, minimum: int = 1) -> Any:
    return Field(default=default, ge=minimum, lt=_INT32, description=description)


class KafkaConnection(Connection):
    """Where and how to reach a Kafka cluster: `kafka://` in the clear, `kafka+ssl://` over TLS.

    `kafka+ssl://user:password@a:9093,b:9093?cafile=/etc/ca.pem`. The cluster's other brokers are
    found from any of the hosts. Certificates and host names are always checked.

    Raises:
        pydantic.ValidationError: a part or an option can't work, naming it.
    """

    scheme: str = Field(
        default="kafka",
        pattern=r"^kafka(\+ssl)?$",
        description="kafka: in the clear. kafka+ssl: over TLS.",
    )
    user: SecretStr | None = Field(default=None, description="The SASL user. Default: no login.")
    password: SecretStr | None = Field(default=None, description="The SASL password.")
    hosts: tuple[Annotated[str, BeforeValidator(_host)], ...] = Field(
        min_length=1,
        description=f"Brokers to ask for the cluster's layout, host:port. Default port: "
        f"{DEFAULT_PORT}.",
    )
    path: str = Field(default="", pattern="^/?$", description="Kafka has none: stays empty.")

    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-256",
        description="How user and password are proven. PLAIN sends the password itself and so "
        "needs kafka+ssl. Default: SCRAM-SHA-256.",
    )
    cafile: FilePath | None = Field(
        default=None,
        description="PEM file of the authorities trusted to sign brokers' certificates. Default: "
        "the system's.",
    )
    certfile: FilePath | None = Field(
        default=None,
        description="PEM file with this client's certificate, for brokers that ask for one "
        "(ssl.client.auth). Default: none.",
    )
    keyfile: FilePath | None = Field(
        default=None,
        description="PEM file with the private key of certfile. Default: it is in certfile.",
    )
    keyfile_password: SecretStr | None = Field(
        default=None, description="Decrypts the private key. Default: it is not encrypted."
    )
    client_id: str = Field(
        default="dispytch",
        min_length=1,
        max_length=200,
        description="Names this client in the broker's logs, metrics and quotas (client.id). "
        "Default: dispytch.",
    )
    acks: Literal["all", "1"] = Field(
        default="all",
        description="Who must have a record before it counts as stored (acks): all in-sync "
        "replicas, or 1, the leader alone, whose loss then loses the record. Default: all.",
    )
    idempotent: bool = Field(
        default=True,
        description="Whether the broker drops the copies that retries inside the client would "
        "make (enable.idempotence); needs acks=all. Default: true.",
    )
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = Field(
        default="none",
        description="Compresses batches of records (compression.type); all but gzip need "
        "dispytch-kafka[compression]. Default: none.",
    )
    linger_ms: int = _milliseconds(
        0,
        "Milliseconds a record may wait for others to share its batch (linger.ms). Default: 0.",
        minimum=0,
    )
    max_batch_bytes: int = Field(
        default=65_536,
        ge=1,
        lt=_INT32,
        description="Bytes of a batch before compression, per partition (batch.size); also what "
        "is buffered per partition while the broker is gone. Default: 65536.",
    )
    max_request_bytes: int = Field(
        default=1_048_576,
        ge=1,
        lt=_INT32,
        description="Bytes of a request, and so of the largest event (max.request.size); the "
        "broker has limits of its own (message.max.bytes, max.message.bytes). Default: 1048576.",
    )
    request_timeout_ms: int = _milliseconds(
        10_000,
        "Milliseconds until an unanswered request counts as lost, its connection is replaced and "
        "it is sent again (request.timeout.ms); keep it below the emitter's timeout. "
        "Default: 10000.",
    )
    retry_backoff_ms: int = _milliseconds(
        100, "Milliseconds between two tries of a request (retry.backoff.ms). Default: 100."
    )
    metadata_max_age_ms: int = _milliseconds(
        300_000,
        "Milliseconds until new brokers and partitions are noticed at the latest "
        "(metadata.max.age.ms). Default: 300000.",
    )
    connections_max_idle_ms: int = _milliseconds(
        540_000,
        "Milliseconds until an unused connection is closed (connections.max.idle.ms). "
        "Default: 540000.",
    )

    group_instance_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="A name of this member that survives its restarts (group.instance.id): back "
        "within session_timeout_ms it gets its partitions again, and no rebalance stops the "
        "others. Each member needs its own. Default: none, a member is new after every start.",
    )
    auto_offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest",
        description="Where a group begins that has no position yet, or whose position is gone "
        "(auto.offset.reset): with the oldest record there is, or with what comes next. "
        "Default: earliest.",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed",
        description="Whether records of transactions are seen only once they are committed "
        "(isolation.level). Default: read_committed.",
    )
    session_timeout_ms: int = _milliseconds(
        10_000,
        "Milliseconds without a heartbeat after which a member counts as dead and others get its "
        "partitions (session.timeout.ms); within the broker's group.min.session.timeout.ms and "
        "group.max.session.timeout.ms. Default: 10000.",
    )
    heartbeat_interval_ms: int = _milliseconds(
        3_000,
        "Milliseconds between two heartbeats (heartbeat.interval.ms), at most a third of "
        "session_timeout_ms; also how soon a member learns of a rebalance. Default: 3000.",
    )
    max_poll_interval_ms: int = _milliseconds(
        300_000,
        "Milliseconds without a sign of life of the consuming task after which the member leaves "
        "its group (max.poll.interval.ms). Handlers may take longer. Default: 300000.",
    )
    rebalance_timeout_ms: int | None = Field(
        default=None,
        ge=1,
        lt=_INT32,
        description="Milliseconds that members get in a rebalance to finish what they handle "
        "(rebalance.timeout.ms). Default: 60000, or the listener's drain_timeout and 30 s, "
        "whichever is more.",
    )
    commit_interval_ms: int = _milliseconds(
        1_000,
        "Milliseconds that an acknowledgement may wait to be committed with others "
        "(auto.commit.interval.ms). Default: 1000.",
    )
    commit_every: int = Field(
        default=500,
        ge=1,
        description="How many acknowledgements may wait to be committed, whatever the interval: as "
        "many events more may come again after a crash. Default: 500.",
    )
    discovery_interval_ms: int = _milliseconds(
        5_000,
        "Milliseconds until a consumer notices new topics that match a pattern, and new "
        "partitions. Default: 5000.",
    )
    fetch_max_wait_ms: int = _milliseconds(
        500,
        "Milliseconds that a broker may wait for records before it answers with none "
        "(fetch.max.wait.ms). Default: 500.",
    )
    max_partition_fetch_bytes: int = Field(
        default=1_048_576,
        ge=1,
        lt=_INT32,
        description="Bytes fetched of one partition at a time (max.partition.fetch.bytes); a "
        "larger record comes all the same, alone. Default: 1048576.",
    )

    @property
    def tls(self) -> bool:
        """Whether the scheme asks for TLS."""
        return self.scheme.endswith("+ssl")

    @field_validator("compression")
    @classmethod
    def _has_its_library(cls, value: str) -> str:
        if value not in {"none", "gzip"} and find_spec("cramjam") is None:
            raise ValueError(f"{value} needs the library cramjam: dispytch-kafka[compression]")
        return value

    @field_validator("cafile", "certfile", "keyfile", "keyfile_password")
    @classmethod
    def _belongs_to_tls(cls, value: Any, info: ValidationInfo) -> Any:
        scheme = str(info.data.get("scheme", ""))
        if value is not None and scheme and not scheme.endswith("+ssl"):
            raise ValueError(f"is for TLS: write {scheme}+ssl:// instead of {scheme}://")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("a login needs both user and password")
        if self.user is None and "sasl_mechanism" in self.model_fields_set:
            raise ValueError("sasl_mechanism needs a user and a password")
        if self.user and self.sasl_mechanism == "PLAIN" and not self.tls:
            raise ValueError(
                "sasl_mechanism PLAIN would send the password in the clear: use "
                f"{self.scheme}+ssl://, or SCRAM-SHA-256 or SCRAM-SHA-512"
            )
        if self.certfile is None and (self.keyfile or self.keyfile_password):
            raise ValueError("keyfile and keyfile_password need certfile")
        if self.idempotent and self.acks != "all":
            raise ValueError("acks=1 needs idempotent=false")
        if self.heartbeat_interval_ms * 3 > self.session_timeout_ms:
            raise ValueError(
                "heartbeat_interval_ms must be at most a third of session_timeout_ms, or one late "
                "heartbeat ends a membership"
            )
        return self

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings: certificates and host names are checked. None in the clear.

        Raises:
            ConfigError: a file can't be read as what it should be, naming the option.
        """
        if not self.tls:
            return None
        option = "cafile"
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            option = "certfile, keyfile or keyfile_password"
            if self.certfile is not None:
                # Always a password: without one OpenSSL would ask for it on the terminal.
                secret = self.keyfile_password or SecretStr("")
                context.load_cert_chain(
                    self.certfile, self.keyfile, password=secret.get_secret_value()
                )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"{self.scheme}:// URL: {option}: {type(error).__name__}: can't be loaded"
            ) from error
        return context

    def client_settings(self) -> dict[str, Any]:
        """The settings any aiokafka client takes: where to connect, and as whom."""
        settings: dict[str, Any] = {
            "bootstrap_servers": list(self.hosts),
            "client_id": self.client_id,
            "request_timeout_ms": self.request_timeout_ms,
            "retry_backoff_ms": self.retry_backoff_ms,
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "connections_max_idle_ms": self.connections_max_idle_ms,
            "ssl_context": self.ssl_context(),
        }
        protocol = "SSL" if self.tls else "PLAINTEXT"
        if self.user is not None and self.password is not None:
            protocol = f"SASL_{protocol}"
            settings |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.user.get_secret_value(),
                "sasl_plain_password": self.password.get_secret_value(),
            }
        return settings | {"security_protocol": protocol}

    def producer_settings(self) -> dict[str, Any]:
        """The settings of an `AIOKafkaProducer`."""
        return self.client_settings() | {
            "acks": "all" if self.acks == "all" else 1,
            "enable_idempotence": self.idempotent,
            "compression_type": None if self.compression == "none" else self.compression,
            "linger_ms": self.linger_ms,
            "max_batch_size": self.max_batch_bytes,
            "max_request_size": self.max_request_bytes,
        }

    def consumer_settings(self, group: str | None, drain_timeout: float) -> dict[str, Any]:
        """The settings of an `AIOKafkaConsumer`.

        Args:
            group: the group to be a member of; None: of none.
            drain_timeout: seconds that handlers get to finish in a rebalance.
        """
        settings = self.client_settings() | {
            "enable_auto_commit": False,
            # What a member of no group has lost by retention is not worth the rest.
            "auto_offset_reset": self.auto_offset_reset if group else "earliest",
            "isolation_level": self.isolation_level,
            "metadata_max_age_ms": min(self.metadata_max_age_ms, self.discovery_interval_ms),
            "fetch_max_wait_ms": self.fetch_max_wait_ms,
            "max_partition_fetch_bytes": self.max_partition_fetch_bytes,
        }
        if group is None:
            return settings
        rebalance = self.rebalance_timeout_ms or max(60_000, round(1000 * (drain_timeout + 30)))
        return settings | {
            "group_id": group,
            "group_instance_id": self.group_instance_id,
            "session_timeout_ms": self.session_timeout_ms,
            "heartbeat_interval_ms": self.heartbeat_interval_ms,
            "max_poll_interval_ms": self.max_poll_interval_ms,
            "rebalance_timeout_ms": rebalance,
        }
