"""Every exception class of aiokafka, and what it means for us. Imports no client.

aiokafka queues a record and sends it in a batch with others, again and again where an error is
*retriable*. Two things follow. What is raised before the record is queued leaves nothing that
could be sent later: the event is rejected, whatever the class. And a retriable error that does
come out afterwards is only the last of several tries, of which an earlier one may have stored the
batch: the event's fate is unknown, even where that last answer alone was a refusal.
"""

from enum import Enum

from dispytch import ConnectError, EmitError, EmitRejected, EmitUnknown

__all__ = [
    "FATES",
    "READINGS",
    "Fate",
    "Reading",
    "as_connect_error",
    "as_rejected",
    "fate_of",
    "outcome_of",
    "reading_of",
    "told",
]

BACKEND = "kafka"


class Fate(Enum):
    """What an error tells of a batch that was handed to the client."""

    REFUSED = "not stored; the same event would be refused again"
    RECORD = "not stored, because of one of its records: its events may fare better alone"
    SPENT = "not stored, and the client's numbering of batches is broken: it needs a new client"
    BROKEN = "may be stored, and the client has stopped working: it needs a new client"
    UNKNOWN = "may be stored, or may still be"
    ELSEWHERE = "does not come from producing; taken for UNKNOWN where it does"


_BY_FATE: dict[Fate, str] = {
    # Checked by client or broker before anything is written.
    Fate.REFUSED: """
        TopicAuthorizationFailedError ClusterAuthorizationFailedError
        TransactionalIdAuthorizationFailed InvalidTopicError InvalidRequiredAcksError
        UnsupportedForMessageFormatError UnsupportedVersionError UnsupportedCodecError
        UnsupportedCompressionType SecurityDisabled InvalidRequestError InvalidTxnState
        IllegalOperation IncompatibleBrokerVersion UnrecognizedBrokerVersion
    """,
    # The broker validates all records of a batch before it appends the batch.
    Fate.RECORD: """
        MessageSizeTooLargeError RecordListTooLargeError RecordTooLargeError
        InvalidTimestampError CorruptRecordException PolicyViolationError InvalidRecord
    """,
    # Checked against the partition's log before appending. aiokafka counts a refused batch as
    # sent, so every later batch of the partition is refused too.
    Fate.SPENT: """
        OutOfOrderSequenceNumber UnknownProducerId ProducerFenced InvalidProducerEpoch
        InvalidProducerIdMapping
    """,
    # KafkaError itself is what the client's sending task dies of.
    Fate.BROKEN: "KafkaError ProducerClosed IllegalStateError Cancelled",
    # The answer was lost, or says that the record was or may have been written, or is the last of
    # several tries.
    Fate.UNKNOWN: """
        BrokerResponseError UnknownError RequestTimedOutError NotEnoughReplicasError
        NotEnoughReplicasAfterAppendError NotLeaderForPartitionError LeaderNotAvailableError
        UnknownTopicOrPartitionError KafkaStorageError BrokerNotAvailableError
        ReplicaNotAvailableError KafkaConnectionError KafkaTimeoutError KafkaUnavailableError
        NodeNotReadyError NoBrokersAvailable StaleMetadata MetadataEmptyBrokerList
        CorrelationIdError KafkaProtocolError TooManyInFlightRequests DuplicateSequenceNumber
        QuotaViolationError InvalidConfigurationError KafkaConfigurationError IllegalArgumentError
        OperationNotAttempted ConcurrentTransactions NoError
        AuthenticationFailedError AuthenticationMethodNotSupported SaslAuthenticationFailed
        UnsupportedSaslMechanismError IllegalSaslStateError ListenerNotFound
    """,
    # Consumers, groups, the administration of clusters, brokers among themselves.
    Fate.ELSEWHERE: """
        CommitFailedError ConsumerStoppedError NoOffsetForPartitionError OffsetOutOfRangeError
        InvalidFetchRequestError StaleControllerEpochError OffsetMetadataTooLargeError
        StaleLeaderEpochCodeError GroupLoadInProgressError GroupCoordinatorNotAvailableError
        NotCoordinatorForGroupError IllegalGenerationError InconsistentGroupProtocolError
        InvalidGroupIdError UnknownMemberIdError InvalidSessionTimeoutError
        RebalanceInProgressError InvalidCommitOffsetSizeError GroupAuthorizationFailedError
        TopicAlreadyExistsError InvalidPartitionsError InvalidReplicationFactorError
        InvalidReplicationAssignmentError NotControllerError InvalidTransactionTimeout
        TransactionCoordinatorFenced LogDirNotFound ReassignmentInProgress
        DelegationTokenAuthDisabled DelegationTokenNotFound DelegationTokenOwnerMismatch
        DelegationTokenRequestNotAllowed DelegationTokenAuthorizationFailed
        DelegationTokenExpired InvalidPrincipalType NonEmptyGroup GroupIdNotFound
        FetchSessionIdNotFound InvalidFetchSessionEpoch MemberIdRequired
    """,
}

FATES: dict[str, Fate] = {name: fate for fate, names in _BY_FATE.items() for name in names.split()}
"""The fate for each class, by its name: not every version of aiokafka has every class."""


class Reading(Enum):
    """What an error tells of a client that receives."""

    PASSES = "the client goes on by itself; the same may be tried again"
    REJOINS = "the membership it was for is over; the client joins again by itself"
    BROKEN = "the client may have stopped working: it needs a successor"
    REFUSED = "no client can do it until somebody changes a setting or a right"


_BY_READING: dict[Reading, str] = {
    # Brokers come, go and elect leaders; aiokafka asks again.
    Reading.PASSES: """
        KafkaConnectionError KafkaTimeoutError KafkaUnavailableError NodeNotReadyError
        NoBrokersAvailable StaleMetadata MetadataEmptyBrokerList CorrelationIdError
        TooManyInFlightRequests RequestTimedOutError NotLeaderForPartitionError
        LeaderNotAvailableError UnknownTopicOrPartitionError KafkaStorageError
        BrokerNotAvailableError ReplicaNotAvailableError ListenerNotFound NotControllerError
        GroupLoadInProgressError GroupCoordinatorNotAvailableError NotCoordinatorForGroupError
        StaleLeaderEpochCodeError StaleControllerEpochError NotEnoughReplicasError
        NotEnoughReplicasAfterAppendError FetchSessionIdNotFound InvalidFetchSessionEpoch
        OffsetOutOfRangeError ReassignmentInProgress ConcurrentTransactions QuotaViolationError
        TopicAlreadyExistsError NoError
    """,
    # Answers to a commit or a heartbeat of somebody whom the group does not know (any more).
    Reading.REJOINS: """
        CommitFailedError UnknownMemberIdError IllegalGenerationError RebalanceInProgressError
        MemberIdRequired
    """,
    # KafkaError itself is what the client's tasks die of. CorruptRecordException: records of other
    # partitions, taken in the same call, are lost with it.
    Reading.BROKEN: """
        KafkaError KafkaProtocolError BrokerResponseError UnknownError IllegalStateError
        IllegalOperation IllegalArgumentError ConsumerStoppedError ProducerClosed Cancelled
        CorruptRecordException InvalidFetchRequestError InvalidRequestError
        OperationNotAttempted LogDirNotFound NoOffsetForPartitionError InvalidCommitOffsetSizeError
        OffsetMetadataTooLargeError NonEmptyGroup GroupIdNotFound
    """,
    # Rights, logins, versions, settings. RecordTooLargeError: a record of a format from before
    # Kafka 0.11 that is larger than max_partition_fetch_bytes; aiokafka would pass over it.
    Reading.REFUSED: """
        TopicAuthorizationFailedError GroupAuthorizationFailedError
        ClusterAuthorizationFailedError TransactionalIdAuthorizationFailed
        AuthenticationFailedError AuthenticationMethodNotSupported SaslAuthenticationFailed
        UnsupportedSaslMechanismError IllegalSaslStateError SecurityDisabled
        DelegationTokenAuthDisabled DelegationTokenNotFound DelegationTokenOwnerMismatch
        DelegationTokenRequestNotAllowed DelegationTokenAuthorizationFailed DelegationTokenExpired
        InvalidPrincipalType UnsupportedVersionError IncompatibleBrokerVersion
        UnrecognizedBrokerVersion UnsupportedCodecError UnsupportedCompressionType
        UnsupportedForMessageFormatError RecordTooLargeError InvalidTopicError InvalidGroupIdError
        InconsistentGroupProtocolError InvalidSessionTimeoutError InvalidConfigurationError
        KafkaConfigurationError PolicyViolationError InvalidPartitionsError
        InvalidReplicationFactorError InvalidReplicationAssignmentError
    """,
}

# What only producing raises, or an administrator's request: here it would be a fault of the client.
_PRODUCING = """
    MessageSizeTooLargeError RecordListTooLargeError InvalidTimestampError InvalidRecord
    InvalidRequiredAcksError InvalidTxnState OutOfOrderSequenceNumber UnknownProducerId
    ProducerFenced InvalidProducerEpoch InvalidProducerIdMapping DuplicateSequenceNumber
    InvalidTransactionTimeout TransactionCoordinatorFenced
"""

READINGS: dict[str, Reading] = {
    name: reading for reading, names in _BY_READING.items() for name in names.split()
} | dict.fromkeys(_PRODUCING.split(), Reading.BROKEN)
"""The same for receiving."""

# Trying to connect again changes nothing until somebody changes a setting.
_NOT_BY_WAITING = frozenset(
    {
        "AuthenticationFailedError",
        "AuthenticationMethodNotSupported",
        "ClusterAuthorizationFailedError",
        "GroupAuthorizationFailedError",
        "IllegalSaslStateError",
        "IncompatibleBrokerVersion",
        "ProducerClosed",
        "SSLCertVerificationError",
        "SaslAuthenticationFailed",
        "SecurityDisabled",
        "TopicAuthorizationFailedError",
        "TransactionalIdAuthorizationFailed",
        "UnrecognizedBrokerVersion",
        "UnsupportedSaslMechanismError",
        "UnsupportedVersionError",
    }
)


def fate_of(error: BaseException | None) -> Fate:
    """What an error tells of the batch it was raised for: by the nearest class that is mapped."""
    names = (cls.__name__ for cls in type(error).__mro__)
    return next((FATES[name] for name in names if name in FATES), Fate.UNKNOWN)


def reading_of(error: BaseException) -> Reading:
    """What an error tells of a client that receives: by the nearest class that is mapped."""
    names = (cls.__name__ for cls in type(error).__mro__)
    return next((READINGS[name] for name in names if name in READINGS), Reading.BROKEN)


def as_rejected(error: BaseException, topic: str) -> EmitRejected:
    """The outcome of an event that was not, and will not be, handed to the client."""
    retriable = fate_of(error) is not Fate.REFUSED and fate_of(error) is not Fate.RECORD
    return EmitRejected(f"not sent to {topic!r}: {told(error)}", retriable=retriable)


def outcome_of(error: BaseException, topic: str) -> EmitError:
    """The outcome of an event that was handed to the client."""
    fate = fate_of(error)
    if fate in {Fate.REFUSED, Fate.RECORD}:
        return EmitRejected(f"refused by Kafka for {topic!r}: {told(error)}")
    if fate is Fate.SPENT:
        return EmitRejected(
            f"not stored in {topic!r}: {told(error)}; this AIOKafkaProducer can't go on: after a "
            "refused batch its numbering differs from the broker's. Replace it, or let a URL make "
            "it, which is replaced by itself",
            retriable=True,
        )
    return EmitUnknown(f"may have arrived in {topic!r}: {told(error)}", retriable=True)


def as_connect_error(error: BaseException, where: str) -> ConnectError:
    """The error for a broker that can't be reached or does not want us."""
    hint = ""
    if type(error).__name__ == "ClusterAuthorizationFailedError":
        hint = "; the user may write nowhere, so that idempotent=true is refused"
    names = {cls.__name__ for cls in type(error).__mro__}
    return ConnectError(
        f"{where}: {told(error)}{hint}", backend=BACKEND, retriable=not names & _NOT_BY_WAITING
    )


def told(error: BaseException) -> str:
    """Class and text, once: most of aiokafka's texts start with the class."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}" if text else name
