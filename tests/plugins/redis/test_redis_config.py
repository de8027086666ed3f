"""Event configs of Redis: what can be wrong is refused while they are built."""

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from dispytch import BackendConfig, EventBase, EventDefinitionError, Outgoing
from dispytch.config import ClassConfig, merge
from dispytch.fields import CENTURY, effective_key, header_pairs
from dispytch_redis import RedisEventConfig, RedisPubSubEventConfig

BOTH = pytest.mark.parametrize("schema", [RedisEventConfig, RedisPubSubEventConfig])


class Shipped(EventBase):
    __topic__ = "orders"
    __event_type__ = "shipped"

    order: int
    region: str = "north"


def test_nothing_is_set_unless_it_is_given() -> None:
    """An event without settings keeps its own key and never expires, and nothing is deleted."""
    assert RedisEventConfig().model_dump() == {
        "partition_key": None,
        "headers": {},
        "ttl": None,
        "maxlen": None,
        "max_age": None,
        "trim_unsettled": False,
    }
    assert RedisPubSubEventConfig().model_dump() == {"partition_key": None, "headers": {}}


@pytest.mark.parametrize(
    "settings",
    [
        {"partition_key": 7},
        {"partition_key": b"\xff"},
        {"headers": {"a": "1", "b": b"\xff"}},
        {"headers": (("a", "1"), ("a", "2"))},
        {"ttl": 0.001},
        {"ttl": timedelta(seconds=CENTURY)},
        {"maxlen": 1},
        {"maxlen": 2**53},
        {"max_age": 0.5},
        {"max_age": CENTURY},
        {"max_age": timedelta(days=7)},
        {"trim_unsettled": True},
        {"maxlen": 10, "max_age": 60, "trim_unsettled": True, "ttl": 5},
        {"maxlen": None, "max_age": None, "ttl": None, "partition_key": None},
    ],
    ids=str,
)
def test_a_setting_reads_as_it_was_given(settings: dict[str, Any]) -> None:
    """Nothing is converted, also when a merge of layers validates it again."""
    config = RedisEventConfig(**settings)
    for one in (config, merge([(config,), (RedisEventConfig(),)])):
        assert isinstance(one, RedisEventConfig)
        assert {name: getattr(one, name) for name in settings} == settings


@pytest.mark.parametrize(
    "settings",
    [
        *({name: value} for name in ("ttl", "max_age") for value in (
            0, -1, timedelta(0), math.nan, math.inf, 10**400, CENTURY + 1, True, "60", Decimal(60),
            datetime(2030, 1, 1, tzinfo=UTC), date(2030, 1, 1),
        )),
        *({"maxlen": value} for value in (0, -1, True, 1.0, "10", 2**53 + 1, Decimal(1))),
        *({"trim_unsettled": value} for value in (1, 0, "true", None)),
        {"partition_key": 1.5},
        {"partition_key": True},
        {"headers": {"a": 1}},
        {"headers": None},
        {"max_len": 5},
        {"key": "a"},
    ],
    ids=lambda settings: str(settings)[:40],
)  # fmt: skip
def test_what_is_wrong_is_refused_when_built(settings: dict[str, Any]) -> None:
    """Every literal mistake is refused before there is an event, naming its field."""
    with pytest.raises(ValidationError) as caught:
        RedisEventConfig(**settings)
    (error,) = caught.value.errors()
    assert error["loc"] == tuple(settings)


@pytest.mark.parametrize("name", ["ttl", "maxlen", "max_age", "trim_unsettled"])
def test_pub_sub_refuses_what_only_streams_can(name: str) -> None:
    """A setting that could not be kept is not dropped silently."""
    with pytest.raises(ValidationError, match=name):
        RedisPubSubEventConfig.model_validate({name: 1})


def test_deleting_what_is_not_settled_can_be_set_in_a_farther_layer() -> None:
    """It needs no limit beside it: another layer may name that."""
    far, near = RedisEventConfig(trim_unsettled=True), RedisEventConfig(maxlen=10)
    assert merge([(far,), (near,)]) == RedisEventConfig(trim_unsettled=True, maxlen=10)


def test_a_nearer_layer_can_lift_a_setting() -> None:
    """None set explicitly wins over what a farther layer says."""
    far = RedisEventConfig(ttl=5, maxlen=1, max_age=60)
    near = RedisEventConfig(ttl=None, maxlen=None, max_age=None)
    assert merge([(far,), (near,)]) == RedisEventConfig()


@BOTH
def test_a_class_level_config_names_the_fields_of_its_event(schema: Any) -> None:
    """Texts of the key and of header values are filled from the event; all else stays."""
    config = schema(partition_key="{order}", headers={"region": "{region}", "raw": b"{region}"})
    rendered = ClassConfig(config, Shipped).render(Shipped(order=7))
    out = Outgoing("id", "shipped", "orders", b"", "far", rendered)
    assert effective_key(out) == b"7"
    assert header_pairs(out) == [("region", b"north"), ("raw", b"{region}")]


@BOTH
def test_a_class_level_config_that_names_no_field_is_refused(schema: Any) -> None:
    """A misspelt placeholder fails when the class is made, not when it is emitted."""
    with pytest.raises(EventDefinitionError, match="oder"):

        class Misspelt(Shipped):
            __backend_config__ = schema(partition_key="{oder}")


@BOTH
def test_every_field_describes_itself(schema: type[BackendConfig]) -> None:
    """`dispytch schema redis` has something to say of every field, the default included."""
    fields = schema.model_json_schema()["properties"]
    assert set(fields) == set(schema.model_fields)
    for name, field in fields.items():
        assert "Default: " in field["description"], name
        assert ("SECONDS" in field["description"]) == (name in {"ttl", "max_age"}), name
