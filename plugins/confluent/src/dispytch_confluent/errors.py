"""Every error code of librdkafka, and what it means for us. Imports no client.

What `produce` raises was not queued and can't be sent later: the event is rejected, whatever the
code. What comes out of the queue afterwards is the last of several tries, of which an earlier one
may have stored the event, and librdkafka keeps to itself whether it ever was on its way: only the
broker's own refusals are certain. The fates are those of `dispytch_kafka.errors`.
"""

from typing import Any

from dispytch import ConnectError, EmitError, EmitRejected, EmitUnknown
from dispytch_kafka.errors import Fate

__all__ = ["FATES", "as_connect_error", "as_rejected", "fate_of", "outcome_of", "told"]

BACKEND = "kafka+confluent"

_BY_FATE: dict[Fate, str] = {
    # Checked by client or broker before anything is written.
    Fate.REFUSED: """
        TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED TOPIC_EXCEPTION INVALID_REQUIRED_ACKS
        UNSUPPORTED_FOR_MESSAGE_FORMAT UNSUPPORTED_VERSION UNSUPPORTED_COMPRESSION_TYPE
        SECURITY_DISABLED INVALID_REQUEST INVALID_TXN_STATE
    """,
    # The broker validates all records of a batch before it appends the batch.
    Fate.RECORD: """
        MSG_SIZE_TOO_LARGE INVALID_MSG_SIZE RECORD_LIST_TOO_LARGE INVALID_TIMESTAMP INVALID_MSG
        POLICY_VIOLATION INVALID_RECORD
    """,
    # librdkafka repairs its numbering by itself; where it can't, what it numbered may be stored.
    Fate.BROKEN: """
        OUT_OF_ORDER_SEQUENCE_NUMBER UNKNOWN_PRODUCER_ID PRODUCER_FENCED INVALID_PRODUCER_EPOCH
        INVALID_PRODUCER_ID_MAPPING DUPLICATE_SEQUENCE_NUMBER
        _FATAL _FENCED _GAPLESS_GUARANTEE _STATE _DESTROY _CRIT_SYS_RESOURCE
    """,
    # The answer was lost, or says that the record was or may have been written, or is the last of
    # several tries.
    Fate.UNKNOWN: """
        UNKNOWN REQUEST_TIMED_OUT NETWORK_EXCEPTION NOT_ENOUGH_REPLICAS
        NOT_ENOUGH_REPLICAS_AFTER_APPEND NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE
        UNKNOWN_TOPIC_OR_PART UNKNOWN_TOPIC_ID INCONSISTENT_TOPIC_ID KAFKA_STORAGE_ERROR
        BROKER_NOT_AVAILABLE REPLICA_NOT_AVAILABLE THROTTLING_QUOTA_EXCEEDED INVALID_CONFIG
        OPERATION_NOT_ATTEMPTED CONCURRENT_TRANSACTIONS NO_ERROR SASL_AUTHENTICATION_FAILED
        UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE LISTENER_NOT_FOUND FENCED_LEADER_EPOCH
        UNKNOWN_LEADER_EPOCH TRANSACTION_ABORTABLE REBOOTSTRAP_REQUIRED STALE_BROKER_EPOCH
        _MSG_TIMED_OUT _TIMED_OUT _TIMED_OUT_QUEUE _PURGE_QUEUE _PURGE_INFLIGHT _TRANSPORT
        _ALL_BROKERS_DOWN _AUTHENTICATION _SSL _RESOLVE _UNKNOWN_TOPIC _UNKNOWN_PARTITION
        _ISR_INSUFF _QUEUE_FULL _FAIL _BAD_MSG _BAD_COMPRESSION _INVALID_ARG _INTR _RETRY
        _DESTROY_BROKER _UNKNOWN_BROKER _NODE_UPDATE _UNSUPPORTED_FEATURE _NOT_IMPLEMENTED
        _UNKNOWN_PROTOCOL _UNDERFLOW _CONFLICT _FS _INCONSISTENT _INVALID_TYPE _IN_PROGRESS
        _KEY_SERIALIZATION _VALUE_SERIALIZATION _NOT_CONFIGURED _OUTDATED _PARTIAL
        _PREV_IN_PROGRESS _READ_ONLY _APPLICATION _NOENT _NOOP _WAIT_CACHE
    """,
    # Consumers, groups, the administration of clusters, brokers among themselves.
    Fate.ELSEWHERE: """
        COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR NOT_CONTROLLER
        DELEGATION_TOKEN_AUTHORIZATION_FAILED DELEGATION_TOKEN_AUTH_DISABLED
        DELEGATION_TOKEN_EXPIRED DELEGATION_TOKEN_NOT_FOUND DELEGATION_TOKEN_OWNER_MISMATCH
        DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DUPLICATE_RESOURCE DUPLICATE_VOTER
        ELECTION_NOT_NEEDED ELIGIBLE_LEADERS_NOT_AVAILABLE FEATURE_UPDATE_FAILED
        FENCED_INSTANCE_ID FENCED_MEMBER_EPOCH FENCED_STATE_EPOCH FETCH_SESSION_ID_NOT_FOUND
        GROUP_AUTHORIZATION_FAILED GROUP_ID_NOT_FOUND GROUP_MAX_SIZE_REACHED
        GROUP_SUBSCRIBED_TO_TOPIC ILLEGAL_GENERATION INCONSISTENT_GROUP_PROTOCOL
        INCONSISTENT_VOTER_SET INVALID_COMMIT_OFFSET_SIZE INVALID_FETCH_SESSION_EPOCH
        INVALID_GROUP_ID INVALID_PARTITIONS INVALID_PRINCIPAL_TYPE INVALID_RECORD_STATE
        INVALID_REGULAR_EXPRESSION INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT
        INVALID_SESSION_TIMEOUT INVALID_SHARE_SESSION_EPOCH INVALID_TRANSACTION_TIMEOUT
        INVALID_UPDATE_VERSION INVALID_VOTER_KEY LOG_DIR_NOT_FOUND MEMBER_ID_REQUIRED
        MISMATCHED_ENDPOINT_TYPE NON_EMPTY_GROUP NO_REASSIGNMENT_IN_PROGRESS
        OFFSET_METADATA_TOO_LARGE OFFSET_NOT_AVAILABLE OFFSET_OUT_OF_RANGE
        PREFERRED_LEADER_NOT_AVAILABLE PRINCIPAL_DESERIALIZATION_FAILURE
        REASSIGNMENT_IN_PROGRESS REBALANCE_IN_PROGRESS RESOURCE_NOT_FOUND
        SHARE_SESSION_LIMIT_REACHED SHARE_SESSION_NOT_FOUND STALE_CTRL_EPOCH STALE_MEMBER_EPOCH
        STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH STREAMS_TOPOLOGY_FENCED
        TELEMETRY_TOO_LARGE TOPIC_ALREADY_EXISTS TOPIC_DELETION_DISABLED
        TRANSACTION_COORDINATOR_FENCED UNACCEPTABLE_CREDENTIAL UNKNOWN_CONTROLLER_ID
        UNKNOWN_MEMBER_ID UNKNOWN_SUBSCRIPTION_ID UNRELEASED_INSTANCE_ID
        UNSTABLE_OFFSET_COMMIT UNSUPPORTED_ASSIGNOR UNSUPPORTED_ENDPOINT_TYPE VOTER_NOT_FOUND
        INVALID_REGISTRATION
        _ASSIGNMENT_LOST _ASSIGN_PARTITIONS _AUTO_OFFSET_RESET _EXISTING_SUBSCRIPTION
        _INVALID_DIFFERENT_RECORD _KEY_DESERIALIZATION _LOG_TRUNCATION _MAX_POLL_EXCEEDED
        _NO_OFFSET _PARTITION_EOF _REVOKE_PARTITIONS _UNKNOWN_GROUP _VALUE_DESERIALIZATION
        _WAIT_COORD
    """,
}

FATES: dict[str, Fate] = {name: fate for fate, names in _BY_FATE.items() for name in names.split()}
"""The fate for each code, by its name: not every version of librdkafka has every code."""

_NOT_BY_WAITING = frozenset(
    {
        "CLUSTER_AUTHORIZATION_FAILED",
        "ILLEGAL_SASL_STATE",
        "SASL_AUTHENTICATION_FAILED",
        "SECURITY_DISABLED",
        "TOPIC_AUTHORIZATION_FAILED",
        "UNSUPPORTED_SASL_MECHANISM",
        "_AUTHENTICATION",
        "_SSL",
    }
)
"""Trying to connect again changes nothing until somebody changes a setting."""


def fate_of(error: Any) -> Fate:
    """What a `KafkaError` tells of an event that was queued."""
    return FATES.get(error.name(), Fate.UNKNOWN)


def as_rejected(error: Any, topic: str) -> EmitRejected:
    """The outcome of an event that was not, and will not be, queued."""
    retriable = fate_of(error) not in {Fate.REFUSED, Fate.RECORD}
    return EmitRejected(f"not sent to {topic!r}: {told(error)}", retriable=retriable)


def outcome_of(error: Any, topic: str) -> EmitError:
    """The outcome of an event that was queued."""
    if fate_of(error) in {Fate.REFUSED, Fate.RECORD}:
        return EmitRejected(f"refused by Kafka for {topic!r}: {told(error)}")
    return EmitUnknown(f"may have arrived in {topic!r}: {told(error)}", retriable=True)


def as_connect_error(error: Any, where: str) -> ConnectError:
    """The error for a broker that can't be reached or does not want us."""
    retriable = error.name() not in _NOT_BY_WAITING
    return ConnectError(f"{where}: {told(error)}", backend=BACKEND, retriable=retriable)


def told(error: Any) -> str:
    """Name and text of a `KafkaError`."""
    return f"{error.name()}: {error.str()}"
