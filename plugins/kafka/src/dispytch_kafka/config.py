"""KafkaEventConfig: how an event becomes a record. KafkaConnection: what a URL becomes."""

import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from dispytch import BackendConfig, ConfigError, Connection
from dispytch_kafka.record import encode_key

__all__ = ["Headers", "KafkaConnection", "KafkaEventConfig", "PartitionKey"]

PartitionKey: TypeAlias = bytes | str | int | UUID | Decimal | date | Enum
"""What can be a key: bytes as they are, the others as the UTF-8 of their text."""

Headers: TypeAlias = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]
"""Headers of a record: a dict, or pairs where a name may come twice."""

DEFAULT_PORT = 9092
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_INT32, _INT64 = 2**31, 2**63


def _key(value: object) -> object:
    if value is not None:
        encode_key(value)
    return value


def _integer(limit: int, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise ValueError(f"must be an int, not a {type(value).__name__}")
    if not 0 <= value < limit:
        raise ValueError(f"must be at least 0 and less than {limit}")
    return value


def _partition(value: object) -> int | None:
    return _integer(_INT32, value)


def _timestamp(value: object) -> int | None:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError("a datetime must say its time zone; this one is naive")
        value = (value - _EPOCH) // _MILLISECOND
    return _integer(_INT64, value)


def _headers(value: object) -> Mapping[str, str | bytes] | tuple[tuple[str, str | bytes], ...]:
    if isinstance(value, Mapping):
        return {name: _header(name, one) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        raise ValueError(f"must be a dict or a list of pairs, not a {kind}")  # noqa: TRY004 - the one error pydantic reports
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise ValueError("must be a dict, or pairs of a name and a value")
    return tuple((name, _header(name, one)) for name, one in value)


def _header(name: object, value: object) -> str | bytes:
    if not isinstance(name, str):
        raise ValueError("the name of a header must be a str")  # noqa: TRY004 - as above
    if not isinstance(value, str | bytes):
        kind = type(value).__name__
        raise ValueError(f"header {name!r} must be str or bytes, not {kind}")  # noqa: TRY004 - as above
    for text in (name, value):
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"header {name!r} holds characters that UTF-8 can't encode"
                ) from None
    return value


class KafkaEventConfig(BackendConfig):
    """How Kafka carries an event. Every field may be left out.

    As a class-level config, the texts of `partition_key` and of header values may name fields of
    the event: `KafkaEventConfig(partition_key="{user.id}")`.

    Raises:
        pydantic.ValidationError: a value Kafka could not carry, naming the field.
    """

    partition_key: Annotated[
        PartitionKey | None,
        PlainValidator(_key),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The record's key; records of one key go to one partition and stay in order. "
        "bytes as they are; str, int, UUID, Decimal, date and datetime as the UTF-8 of their "
        "text; an Enum by its value. Default: the event's __key__, and without one no key.",
    )
    partition: Annotated[
        int | None,
        PlainValidator(_partition),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The number of the partition, from 0. Default: chosen by the key as Java's "
        "default partitioner does (murmur2); without a key, at random.",
    )
    timestamp_ms: Annotated[
        int | datetime | None,
        PlainValidator(_timestamp),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = Field(
        default=None,
        description="The record's timestamp in milliseconds since 1970 UTC; a datetime with a "
        "time zone is converted. A topic with message.timestamp.type=LogAppendTime replaces it. "
        "Default: now.",
    )
    headers: Annotated[
        Headers,
        PlainValidator(_headers),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    ] = Field(
        default={},
        description="Headers of the record: a dict, or pairs where a name may come twice, of str "
        "to str (sent as UTF-8) or bytes. Merged by name with those of farther layers. "
        "Default: none.",
    )


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

    @field_validator("compression")
    @classmethod
    def _has_its_library(cls, value: str) -> str:
        if value not in {"none", "gzip"} and find_spec("cramjam") is None:
            raise ValueError(f"{value} needs the library cramjam: dispytch-kafka[compression]")
        return value

    @field_validator("cafile", "certfile", "keyfile", "keyfile_password")
    @classmethod
    def _belongs_to_tls(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("scheme") == "kafka":
            raise ValueError("is for TLS: write kafka+ssl:// instead of kafka://")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("a login needs both user and password")
        if self.user is None and "sasl_mechanism" in self.model_fields_set:
            raise ValueError("sasl_mechanism needs a user and a password")
        if self.user and self.sasl_mechanism == "PLAIN" and self.scheme == "kafka":
            raise ValueError(
                "sasl_mechanism PLAIN would send the password in the clear: use kafka+ssl://, or "
                "SCRAM-SHA-256 or SCRAM-SHA-512"
            )
        if self.certfile is None and (self.keyfile or self.keyfile_password):
            raise ValueError("keyfile and keyfile_password need certfile")
        if self.idempotent and self.acks != "all":
            raise ValueError("acks=1 needs idempotent=false")
        return self

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings: certificates and host names are checked. None in the clear.

        Raises:
            ConfigError: a file can't be read as what it should be, naming the option.
        """
        if self.scheme == "kafka":
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
                f"kafka+ssl:// URL: {option}: {type(error).__name__}: can't be loaded"
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
        protocol = "PLAINTEXT" if self.scheme == "kafka" else "SSL"
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
