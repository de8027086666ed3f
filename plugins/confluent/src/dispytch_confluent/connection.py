"""ConfluentConnection: what a URL becomes."""

from typing import Any, Literal

from pydantic import Field, field_validator

from dispytch_kafka import KafkaConnection

__all__ = ["ConfluentConnection"]

_SLOWEST_RECONNECT_MS = 1_000


class ConfluentConnection(KafkaConnection):
    """Where and how to reach a Kafka cluster: `kafka+confluent://`, `kafka+confluent+ssl://`.

    The options are those of `KafkaConnection`, within what librdkafka can do. Emitting uses
    librdkafka, handling aiokafka.

    Raises:
        pydantic.ValidationError: a part or an option can't work, naming it.
    """

    scheme: str = Field(
        default="kafka+confluent",
        pattern=r"^kafka\+confluent(\+ssl)?$",
        description="kafka+confluent: in the clear. kafka+confluent+ssl: over TLS.",
    )
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = Field(
        default="none",
        description="Compresses batches of records (compression.type); to handle them, all but "
        "gzip need dispytch-kafka[compression]. Default: none.",
    )
    linger_ms: int = Field(
        default=0,
        ge=0,
        le=900_000,
        description="Milliseconds a record may wait for others to share its batch (linger.ms). "
        "Those that are emitted meanwhile share one anyway. Default: 0.",
    )
    max_batch_bytes: int = Field(
        default=524_288,
        ge=1,
        lt=2**31,
        description="Bytes of a batch before compression (batch.size), and what emit_many has on "
        "its way at a time. Default: 524288.",
    )
    max_request_bytes: int = Field(
        default=1_048_576,
        ge=1_000,
        le=1_000_000_000,
        description="Bytes of the largest event (message.max.bytes); the broker has limits of its "
        "own (message.max.bytes, max.message.bytes). Default: 1048576.",
    )
    request_timeout_ms: int = Field(
        default=10_000,
        ge=10,
        le=300_000,
        description="Milliseconds until an unanswered request counts as lost, its connection is "
        "replaced and it is sent again (request.timeout.ms, socket.timeout.ms); keep it below the "
        "emitter's timeout. An event is given up, unknown, after three times that "
        "(message.timeout.ms). Default: 10000.",
    )
    retry_backoff_ms: int = Field(
        default=100,
        ge=1,
        le=300_000,
        description="Milliseconds between two tries of a request (retry.backoff.ms). Default: 100.",
    )
    metadata_max_age_ms: int = Field(
        default=300_000,
        ge=10,
        le=3_600_000,
        description="Milliseconds until new brokers and partitions are noticed at the latest "
        "(metadata.max.age.ms). Default: 300000.",
    )

    @field_validator("compression")
    @classmethod
    def _has_its_library(cls, value: str) -> str:
        return value  # librdkafka has them all

    def librdkafka_client(self) -> dict[str, Any]:
        """The settings any client of librdkafka takes: where to connect, and as whom."""
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.hosts),
            "client.id": self.client_id,
            "socket.timeout.ms": self.request_timeout_ms,
            "socket.connection.setup.timeout.ms": max(1_000, self.request_timeout_ms),
            "retry.backoff.ms": self.retry_backoff_ms,
            "retry.backoff.max.ms": max(_SLOWEST_RECONNECT_MS, self.retry_backoff_ms),
            "reconnect.backoff.ms": self.retry_backoff_ms,
            "reconnect.backoff.max.ms": max(_SLOWEST_RECONNECT_MS, self.retry_backoff_ms),
            "metadata.max.age.ms": self.metadata_max_age_ms,
            "topic.metadata.refresh.interval.ms": self.metadata_max_age_ms,
            "connections.max.idle.ms": self.connections_max_idle_ms,
        }
        protocol = "SSL" if self.tls else "PLAINTEXT"
        if self.user is not None and self.password is not None:
            protocol = f"SASL_{protocol}"
            settings |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.username": self.user.get_secret_value(),
                "sasl.password": self.password.get_secret_value(),
            }
        return settings | self._tls_settings() | {"security.protocol": protocol}

    def librdkafka_producer(self) -> dict[str, Any]:
        """The settings of a `confluent_kafka.Producer`."""
        return self.librdkafka_client() | {
            "acks": self.acks,
            "enable.idempotence": self.idempotent,
            "compression.type": self.compression,
            "linger.ms": self.linger_ms,
            "batch.size": self.max_batch_bytes,
            "batch.num.messages": 1_000_000,  # only bytes limit a batch
            "message.max.bytes": self.max_request_bytes,
            "request.timeout.ms": self.request_timeout_ms,
            "message.timeout.ms": 3 * self.request_timeout_ms + self.linger_ms,
            "partitioner": "murmur2_random",  # as Java's, and aiokafka's
            "sticky.partitioning.linger.ms": 0,  # without a key: any, not one for a while
        }

    def _tls_settings(self) -> dict[str, Any]:
        if not self.tls:
            return {}
        settings: dict[str, Any] = {
            "enable.ssl.certificate.verification": True,
            "ssl.endpoint.identification.algorithm": "https",
        }
        if self.cafile is not None:
            settings["ssl.ca.location"] = str(self.cafile)
        if self.certfile is not None:
            settings["ssl.certificate.location"] = str(self.certfile)
            settings["ssl.key.location"] = str(self.keyfile or self.certfile)
        if self.keyfile_password is not None:
            settings["ssl.key.password"] = self.keyfile_password.get_secret_value()
        return settings
