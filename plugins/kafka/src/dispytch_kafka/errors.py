"""Every exception class of aiokafka, and what it means for an event. Imports no client.

aiokafka queues a record and sends it in a batch with others, again and again where an error is
*retriable*. Two things follow. What is raised before the record is queued leaves nothing that
could be sent later: the event is rejected, whatever the class. And a retriable error that does
come out afterwards is only the last of several tries, of which an earlier one may have stored the
batch: the event's fate is unknown, even where that last answer alone was a refusal.
"""

from enum import Enum

from dispytch import ConnectError, EmitError, EmitRejected, EmitUnknown

__all__ = ["FATES", "Fate", "as_connect_error", "as_rejected", "fate_of", "outcome_of"]

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

# Trying to connect again changes nothing until somebody changes a setting.
_NOT_BY_WAITING = frozenset(
    {
        "AuthenticationFailedError",
        "AuthenticationMethodNotSupported",
        "ClusterAuthorizationFailedError",
        "IllegalSaslStateError",
        "IncompatibleBrokerVersion",
        "ProducerClosed",
        "SSLCertVerificationError",
        "SaslAuthenticationFailed",
        "SecurityDisabled",
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


def as_rejected(error: BaseException, topic: str) -> EmitRejected:
    """The outcome of an event that was not, and will not be, handed to the client."""
    retriable = fate_of(error) is not Fate.REFUSED and fate_of(error) is not Fate.RECORD
    return EmitRejected(f"not sent to {topic!r}: {_told(error)}", retriable=retriable)


def outcome_of(error: BaseException, topic: str) -> EmitError:
    """The outcome of an event that was handed to the client."""
    fate = fate_of(error)
    if fate in {Fate.REFUSED, Fate.RECORD}:
        return EmitRejected(f"refused by Kafka for {topic!r}: {_told(error)}")
    if fate is Fate.SPENT:
        return EmitRejected(
            f"not stored in {topic!r}: {_told(error)}; this AIOKafkaProducer can't go on: after a "
            "refused batch its numbering differs from the broker's. Replace it, or let a URL make "
            "it, which is replaced by itself",
            retriable=True,
        )
    return EmitUnknown(f"may have arrived in {topic!r}: {_told(error)}", retriable=True)


def as_connect_error(error: BaseException, where: str) -> ConnectError:
    """The error for a broker that can't be reached or does not want us."""
    hint = ""
    if type(error).__name__ == "ClusterAuthorizationFailedError":
        hint = "; the user may write nowhere, so that idempotent=true is refused"
    names = {cls.__name__ for cls in type(error).__mro__}
    return ConnectError(
        f"{where}: {_told(error)}{hint}", backend=BACKEND, retriable=not names & _NOT_BY_WAITING
    )


def _told(error: BaseException) -> str:
    """Class and text, once: most of aiokafka's texts start with the class."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}" if text else name
