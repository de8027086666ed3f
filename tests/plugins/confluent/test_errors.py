"""Every error code of librdkafka has a fate, and the fate an outcome."""

from typing import Any

import pytest

from dispytch import EmitRejected, EmitUnknown
from dispytch_kafka.errors import Fate

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError

from dispytch_confluent.errors import FATES, as_connect_error, as_rejected, fate_of, outcome_of


def codes() -> dict[str, int]:
    return {
        name: getattr(KafkaError, name) for name in dir(KafkaError) if name.strip("_").isupper()
    }


CERTAIN = {Fate.REFUSED, Fate.RECORD}


def test_every_code_is_mapped() -> None:
    """A new version's new code is noticed here, not in production."""
    assert len(codes()) > 130
    assert not sorted(codes().keys() - FATES.keys())


def test_every_numbered_answer_is_mapped() -> None:
    """The names that errors go by are those of the codes; a code nobody knows means anything."""
    for name, code in codes().items():
        error: Any = KafkaError(code)
        assert FATES.get(error.name()) is FATES[name], name
    assert fate_of(KafkaError(9999)) is Fate.UNKNOWN


@pytest.mark.parametrize("name", sorted(codes()))
def test_a_fate_becomes_its_outcome(name: str) -> None:
    """Rejected only where it is certain; never queued is always certain."""
    error = KafkaError(codes()[name])
    outcome = outcome_of(error, "topic")
    certain = fate_of(error) in CERTAIN
    assert type(outcome) is (EmitRejected if certain else EmitUnknown)
    assert outcome.retriable is not certain
    assert type(as_rejected(error, "topic")) is EmitRejected
    assert name in str(outcome)


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("_MSG_TIMED_OUT", Fate.UNKNOWN),
        ("_PURGE_QUEUE", Fate.UNKNOWN),
        ("_PURGE_INFLIGHT", Fate.UNKNOWN),
        ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", Fate.UNKNOWN),
        ("REQUEST_TIMED_OUT", Fate.UNKNOWN),
        ("UNKNOWN_TOPIC_OR_PART", Fate.UNKNOWN),
        ("MSG_SIZE_TOO_LARGE", Fate.RECORD),
        ("TOPIC_AUTHORIZATION_FAILED", Fate.REFUSED),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", Fate.BROKEN),
        ("_FATAL", Fate.BROKEN),
    ],
)
def test_the_ones_that_matter_most(name: str, fate: Fate) -> None:
    """Could the event be stored when this is told? librdkafka does not say whether it was sent."""
    assert FATES[name] is fate


def test_nothing_local_is_certain_once_queued() -> None:
    """What librdkafka itself says of a queued event says nothing of its earlier tries."""
    assert not [name for name, fate in FATES.items() if name.startswith("_") and fate in CERTAIN]


def test_only_what_waiting_may_cure_is_worth_another_try() -> None:
    """A refused login stays refused."""
    assert as_connect_error(KafkaError(KafkaError._TRANSPORT), "here").retriable
    assert not as_connect_error(KafkaError(KafkaError._AUTHENTICATION), "here").retriable
