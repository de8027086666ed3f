"""SQLiteEventConfig: what can be wrong is refused while it is built."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from dispytch import ConfigError, EventBase, EventDefinitionError, Outgoing
from dispytch.config import ClassConfig, merge
from dispytch.fields import CENTURY, effective_key, header_pairs
from dispytch_sqlite import SQLiteEventConfig

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - on purpose
AWARE = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2)))


class Shipped(EventBase):
    __topic__ = "orders"
    __event_type__ = "shipped"

    order: int
    region: str = "north"


def refused(**settings: Any) -> str:
    """The message about the last setting, which is the wrong one."""
    with pytest.raises(ValidationError) as caught:
        SQLiteEventConfig(**settings)
    (error,) = caught.value.errors()
    assert error["loc"] == (list(settings)[-1],)
    return error["msg"]


def test_nothing_is_set_unless_it_is_given() -> None:
    """An event without settings keeps its own key, is delivered at once and never expires."""
    config = SQLiteEventConfig()
    assert (config.partition_key, config.headers) == (None, {})
    assert (config.ttl, config.delay) == (None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"partition_key": 7},
        {"partition_key": b"\xff"},
        {"headers": {"a": "1", "b": b"\xff"}},
        {"headers": (("a", "1"), ("a", "2"))},
        {"ttl": 5},
        {"ttl": 0.001},
        {"ttl": timedelta(microseconds=1)},
        {"ttl": CENTURY},
        {"ttl": timedelta(seconds=CENTURY)},
        {"delay": 0},
        {"delay": 0.5},
        {"delay": timedelta(0)},
        {"delay": CENTURY},
        {"delay": AWARE},
        {"delay": datetime(1970, 1, 1, tzinfo=UTC)},
        {"delay": datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))},
        {"delay": 5, "ttl": 5.001},
        {"delay": AWARE, "ttl": 1},
        {"delay": None, "ttl": None},
    ],
    ids=str,
)
def test_a_setting_reads_as_it_was_given(settings: dict[str, Any]) -> None:
    """Nothing is converted, also when a merge of layers validates it again."""
    config = SQLiteEventConfig(**settings)
    near = SQLiteEventConfig()
    for one in (config, merge([(config,), (near,)])):
        assert isinstance(one, SQLiteEventConfig)
        assert {name: getattr(one, name) for name in settings} == settings


@pytest.mark.parametrize(
    "settings",
    [
        {"partition_key": True},
        {"partition_key": 1.5},
        {"partition_key": chr(0xD800)},
        {"headers": {"a": 1}},
        {"headers": None},
        {"ttl": 0},
        {"ttl": 0.0},
        {"ttl": -1},
        {"ttl": timedelta(0)},
        {"ttl": timedelta(seconds=-1)},
        {"ttl": math.nan},
        {"ttl": math.inf},
        {"ttl": 10**400},
        {"ttl": CENTURY + 1},
        {"ttl": timedelta.max},
        {"ttl": True},
        {"ttl": "60"},
        {"ttl": Decimal(60)},
        {"ttl": AWARE},
        {"delay": -0.001},
        {"delay": timedelta(microseconds=-1)},
        {"delay": math.nan},
        {"delay": math.inf},
        {"delay": 10**400},
        {"delay": CENTURY + 1},
        {"delay": False},
        {"delay": "60"},
        {"delay": "2030-01-01T00:00:00Z"},
        {"delay": date(2030, 1, 1)},
        {"delay": NAIVE},
        {"dellay": 5},
        {"key": "a"},
    ],
    ids=lambda settings: str(settings)[:40],
)
def test_what_is_wrong_is_refused_when_built(settings: dict[str, Any]) -> None:
    """Every literal mistake is refused before there is an event, naming its field."""
    refused(**settings)


def test_a_naive_datetime_is_refused_with_its_reason() -> None:
    """The message says what is missing."""
    assert "time zone" in refused(delay=NAIVE)


@pytest.mark.parametrize(
    ("ttl", "delay"), [(5, 5), (5, 6.5), (timedelta(seconds=5), 5), (60, timedelta(minutes=1))]
)
def test_an_event_that_expires_while_it_is_held_back_is_refused(ttl: Any, delay: Any) -> None:
    """It would never be delivered; in whichever layers the two were set."""
    assert "less than ttl" in refused(ttl=ttl, delay=delay)
    with pytest.raises(ConfigError, match=r"delay: .*less than ttl"):
        merge([(SQLiteEventConfig(ttl=ttl),), (SQLiteEventConfig(delay=delay),)])


def test_a_nearer_layer_can_lift_a_setting() -> None:
    """None set explicitly wins over what a farther layer says."""
    far = SQLiteEventConfig(ttl=5, delay=1)
    assert merge([(far,), (SQLiteEventConfig(ttl=None, delay=None),)]) == SQLiteEventConfig()


def test_a_class_level_config_names_the_fields_of_its_event() -> None:
    """Texts of the key and of header values are filled from the event; all else stays."""
    config = SQLiteEventConfig(
        partition_key="{order}", headers={"region": "{region}", "raw": b"{region}"}, ttl=5
    )
    rendered = ClassConfig(config, Shipped).render(Shipped(order=7))
    out = Outgoing("id", "shipped", "orders", b"", "far", rendered)
    assert effective_key(out) == b"7"
    assert header_pairs(out) == [("region", b"north"), ("raw", b"{region}")]
    assert out.config.ttl == 5


def test_a_class_level_config_that_names_no_field_is_refused() -> None:
    """A misspelt placeholder fails when the class is made, not when it is emitted."""
    with pytest.raises(EventDefinitionError, match="oder"):

        class Misspelt(Shipped):
            __backend_config__ = SQLiteEventConfig(partition_key="{oder}")


def test_every_field_describes_itself() -> None:
    """`dispytch schema sqlite` has something to say of every field, the default included."""
    fields = SQLiteEventConfig.model_json_schema()["properties"]
    assert set(fields) == {"partition_key", "headers", "ttl", "delay"}
    for field in fields.values():
        assert "Default: " in field["description"]
    for name in ("ttl", "delay"):
        assert "SECONDS" in fields[name]["description"]
