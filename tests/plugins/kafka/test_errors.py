"""Every exception class of aiokafka has a fate, and the fate an outcome."""

import inspect

import pytest

from dispytch import EmitRejected, EmitUnknown
from dispytch_kafka.errors import (
    FATES,
    READINGS,
    Fate,
    Reading,
    as_connect_error,
    as_rejected,
    fate_of,
    outcome_of,
    reading_of,
)

pytest.importorskip("aiokafka")

from aiokafka import errors  # type: ignore[import-untyped]

from dispytch_kafka.client import InvalidRecord, UnsupportedCompressionType


def classes() -> list[type[Exception]]:
    """All of the module, and what the broker's numbered answers become."""
    named = [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, Exception)
    ]
    return list({*named, *errors.kafka_errors.values(), InvalidRecord, UnsupportedCompressionType})


def test_every_class_is_mapped() -> None:
    """A new version's new class is noticed here, not in production."""
    assert len(classes()) > 90
    unmapped = sorted(cls.__name__ for cls in classes() if cls.__name__ not in FATES)
    assert not unmapped
    unread = sorted(cls.__name__ for cls in classes() if cls.__name__ not in READINGS)
    assert not unread


def test_every_numbered_answer_is_mapped() -> None:
    """What `for_code` can return, codes it does not know included."""
    for code in range(-5, 200):
        assert errors.for_code(code).__name__ in FATES
        assert errors.for_code(code).__name__ in READINGS


@pytest.mark.parametrize("name", sorted(FATES.keys() - {"BrokerResponseError"}))
def test_a_fate_becomes_its_outcome(name: str) -> None:
    """Rejected only where it is certain; never handed over is always certain."""
    cls = {cls.__name__: cls for cls in classes()}[name]
    error = cls()
    fate = fate_of(error)
    outcome = outcome_of(error, "topic")
    certain = fate in {Fate.REFUSED, Fate.RECORD, Fate.SPENT}
    assert type(outcome) is (EmitRejected if certain else EmitUnknown)
    assert outcome.retriable == (fate not in {Fate.REFUSED, Fate.RECORD})
    assert type(as_rejected(error, "topic")) is EmitRejected
    assert name in str(outcome)


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("NotEnoughReplicasAfterAppendError", Fate.UNKNOWN),
        ("RequestTimedOutError", Fate.UNKNOWN),
        ("KafkaConnectionError", Fate.UNKNOWN),
        ("NodeNotReadyError", Fate.UNKNOWN),
        ("UnknownError", Fate.UNKNOWN),
        ("MessageSizeTooLargeError", Fate.RECORD),
        ("InvalidTimestampError", Fate.RECORD),
        ("TopicAuthorizationFailedError", Fate.REFUSED),
        ("OutOfOrderSequenceNumber", Fate.SPENT),
        ("UnknownProducerId", Fate.SPENT),
        ("ProducerFenced", Fate.SPENT),
        ("KafkaError", Fate.BROKEN),
    ],
)
def test_the_ones_that_matter_most(name: str, fate: Fate) -> None:
    """Could the event be stored when this is raised?"""
    assert FATES[name] is fate


def test_what_aiokafka_retries_is_never_certain() -> None:
    """It is the last of several tries, of which an earlier one may have been stored."""
    for cls in classes():
        if getattr(cls, "retriable", False):
            assert FATES[cls.__name__] not in {Fate.REFUSED, Fate.RECORD, Fate.SPENT}, cls


def test_a_class_nobody_knows_is_taken_for_its_nearest_kin() -> None:
    """And one without any for unknown."""

    class Newer(errors.MessageSizeTooLargeError):  # type: ignore[misc]
        pass

    assert fate_of(Newer()) is Fate.RECORD
    assert fate_of(ZeroDivisionError()) is Fate.UNKNOWN
    assert fate_of(None) is Fate.UNKNOWN


def test_only_what_waiting_may_cure_is_worth_another_try() -> None:
    """A refused login stays refused."""
    assert as_connect_error(ConnectionRefusedError("no"), "here").retriable
    assert as_connect_error(errors.KafkaConnectionError("no"), "here").retriable
    assert not as_connect_error(errors.SaslAuthenticationFailed("no"), "here").retriable


def test_what_aiokafka_retries_ends_no_receiving() -> None:
    """Only what is not worth another try does."""
    for cls in classes():
        if getattr(cls, "retriable", False):
            assert READINGS[cls.__name__] is not Reading.REFUSED, cls


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("CommitFailedError", Reading.REJOINS),
        ("UnknownMemberIdError", Reading.REJOINS),
        ("IllegalGenerationError", Reading.REJOINS),
        ("RebalanceInProgressError", Reading.REJOINS),
        ("GroupCoordinatorNotAvailableError", Reading.PASSES),
        ("NodeNotReadyError", Reading.PASSES),
        ("RequestTimedOutError", Reading.PASSES),
        ("KafkaError", Reading.BROKEN),
        ("IllegalStateError", Reading.BROKEN),
        ("CorruptRecordException", Reading.BROKEN),
        ("GroupAuthorizationFailedError", Reading.REFUSED),
        ("TopicAuthorizationFailedError", Reading.REFUSED),
        ("SaslAuthenticationFailed", Reading.REFUSED),
        ("InconsistentGroupProtocolError", Reading.REFUSED),
    ],
)
def test_the_ones_that_matter_most_for_receiving(name: str, reading: Reading) -> None:
    """Does the client go on, join again, need a successor, or is it hopeless?"""
    assert READINGS[name] is reading


def test_an_unknown_class_needs_a_new_client() -> None:
    """By its nearest kin where there is one."""

    class Newer(errors.UnknownMemberIdError):  # type: ignore[misc]
        pass

    assert reading_of(Newer()) is Reading.REJOINS
    assert reading_of(ZeroDivisionError()) is Reading.BROKEN
