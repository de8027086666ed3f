"""RabbitMQEventConfig takes what AMQP can carry, and nothing else."""

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispytch import EventBase
from dispytch_rabbitmq import RabbitMQEventConfig

pytest.importorskip("aiormq")


def _refused(**settings: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        RabbitMQEventConfig(**settings)
    assert next(iter(settings)) in {error["loc"][0] for error in caught.value.errors()}
    return str(caught.value)


@pytest.mark.parametrize(
    ("given_mode", "kept"),
    [("persistent", "persistent"), (2, "persistent"), ("transient", "transient"), (1, "transient")],
)
def test_delivery_mode_takes_name_and_number(given_mode: Any, kept: str) -> None:
    """The number of AMQP, aio-pika's enum included, is the same as its name."""
    assert RabbitMQEventConfig(delivery_mode=given_mode).delivery_mode == kept


def test_delivery_mode_takes_the_clients_enum() -> None:
    """aio-pika's DeliveryMode works."""
    from aio_pika import DeliveryMode

    config = RabbitMQEventConfig(delivery_mode=DeliveryMode.NOT_PERSISTENT)
    assert config.delivery_mode == "transient"


def test_defaults_are_persistent_and_mandatory() -> None:
    """An event that sets nothing survives a restart, and is not dropped silently."""
    config = RabbitMQEventConfig()
    assert (config.delivery_mode, config.mandatory) == ("persistent", True)


@pytest.mark.parametrize(
    "settings",
    [
        {"delivery_mode": 3},
        {"delivery_mode": True},
        {"delivery_mode": "durable"},
        {"priority": -1},
        {"priority": 256},
        {"priority": 1.0},
        {"priority": True},
        {"expiration": -0.001},
        {"expiration": math.nan},
        {"expiration": math.inf},
        {"expiration": 4294967.3},
        {"expiration": 10**400},
        {"expiration": "60"},
        {"expiration": True},
        {"expiration": timedelta(seconds=-1)},
        {"expiration": datetime(2030, 1, 1)},  # noqa: DTZ001 - naive on purpose
        {"timestamp": -1},
        {"timestamp": 1.5},
        {"timestamp": True},
        {"timestamp": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        {"timestamp": datetime(2030, 1, 1)},  # noqa: DTZ001 - naive on purpose
        {"exchange": "a" * 128},
        {"exchange": "wrong*name"},
        {"content_type": "é" * 128},
        {"app_id": "\ud800"},
        {"message_id": "m" * 256},
        {"user_id": 1},
        {"reply_to": "amq.rabbitmq.reply-to"},
        {"mandatory": 1},
        {"headers": [("a", "b")]},
        {"headers": {1: "a"}},
        {"headers": {"k" * 129: "a"}},
        {"headers": {"é" * 65: "a"}},
        {"headers": {"a": (1, 2)}},
        {"headers": {"a": {1, 2}}},
        {"headers": {"a": uuid4()}},
        {"headers": {"a": 2**63}},
        {"headers": {"a": -(2**63) - 1}},
        {"headers": {"a": math.nan}},
        {"headers": {"a": math.inf}},
        {"headers": {"a": Decimal(-1)}},
        {"headers": {"a": Decimal("NaN")}},
        {"headers": {"a": Decimal(2**31)}},
        {"headers": {"a": Decimal("1e-256")}},
        {"headers": {"a": Decimal("1e1000000")}},
        {"headers": {"a": datetime(2030, 1, 1)}},  # noqa: DTZ001 - naive on purpose
        {"headers": {"a": datetime(1969, 1, 1, tzinfo=UTC)}},
        {"headers": {"a": {"b": [{"c": object()}]}}},
        {"headers": {"a": "\ud800"}},
        {"headers": {"CC": "queue"}},
        {"headers": {"BCC": [1]}},
        {"unknown": 1},
    ],
    ids=lambda settings: str(settings)[:80],
)
def test_what_is_wrong_is_refused_when_built(settings: dict[str, Any]) -> None:
    """Every literal mistake is refused before there is an event, naming its field."""
    _refused(**settings)


def test_milliseconds_are_refused_with_a_hint() -> None:
    """A timestamp in milliseconds is told apart from one in seconds."""
    assert "milliseconds" in _refused(timestamp=1_783_000_000_000)


def test_bad_header_is_named_by_its_path() -> None:
    """The message tells which header, also a nested one."""
    message = _refused(headers={"outer": {"inner": [1, {"x"}]}})
    assert "'outer': 'inner': [1]: AMQP has no set" in message


def test_headers_are_copied() -> None:
    """Changing what was given does not change the config."""
    nested = [1]
    config = RabbitMQEventConfig(headers={"a": nested})
    nested.append(2)
    assert config.headers == {"a": [1]}


def test_enum_in_headers_is_its_value() -> None:
    """An Enum travels as its value."""

    class Colour(Enum):
        RED = "red"

    assert RabbitMQEventConfig(headers={"c": Colour.RED}).headers == {"c": "red"}


def test_deeply_nested_headers_are_refused() -> None:
    """Even a header that holds itself ends in an error, not in a crash."""
    loop: list[Any] = []
    loop.append(loop)
    _refused(headers={"a": loop})


def test_timestamp_takes_aware_datetimes() -> None:
    """A datetime is whole seconds."""
    config = RabbitMQEventConfig(timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    assert config.timestamp == 1_767_225_600


def test_every_field_describes_itself() -> None:
    """The schema tells each field's meaning and default."""
    for name, field in RabbitMQEventConfig.model_fields.items():
        assert field.description, name
        assert "Default" in field.description, name


def test_class_level_templates_are_filled_in_exchange_and_nested_headers() -> None:
    """Placeholders work in every text, nested lists stay lists."""

    class Moved(EventBase):
        __topic__ = "t"
        __event_type__ = "moved"
        __backend_config__ = RabbitMQEventConfig(
            exchange="region.{region}", headers={"CC": ["{region}.all"], "n": {"r": "{region}"}}
        )
        region: str

    from dispytch.emitter.plan import EmitPlan
    from dispytch_rabbitmq import RabbitMQProducer

    producer = RabbitMQProducer.__new__(RabbitMQProducer)
    config = EmitPlan(Moved, producer, (), None).config(Moved(region="eu"))
    assert config == RabbitMQEventConfig(
        exchange="region.eu", headers={"CC": ["eu.all"], "n": {"r": "eu"}}
    )


numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.decimals())
leaves = st.one_of(
    st.none(), numbers, st.text(), st.binary(), st.datetimes(), st.uuids(), st.complex_numbers()
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=140), trees, max_size=4))
def test_what_is_accepted_can_be_encoded(headers: dict[str, Any]) -> None:
    """Headers are refused when built, or can be written and read back as they are."""
    from pamqp import decode

    from dispytch_rabbitmq.table import encode_table

    try:
        config = RabbitMQEventConfig(headers=headers)
    except ValidationError:
        return
    data = encode_table(config.headers)
    consumed, read = decode.field_table(data)
    assert consumed == len(data)
    assert read == config.headers


@given(
    st.dictionaries(
        st.text(max_size=30),
        st.one_of(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(),
            st.decimals(0, 2**31 - 1, places=0),
            st.booleans(),
            st.none(),
            st.binary(),
            st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - the strategy wants them naive
        ),
        max_size=4,
    ).filter(lambda table: not {"CC", "BCC"} & table.keys())
)
def test_what_amqp_has_is_accepted(headers: dict[str, Any]) -> None:
    """Nothing that travels is refused; datetimes lose what is below a second."""
    from pamqp import decode

    from dispytch_rabbitmq.table import encode_table

    config = RabbitMQEventConfig(headers=headers)
    _, read = decode.field_table(encode_table(config.headers))
    wanted = {
        name: value.replace(microsecond=0) if isinstance(value, datetime) else value
        for name, value in headers.items()
    }
    assert read == wanted
