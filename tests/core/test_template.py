"""Placeholders: what they reach, what they refuse, and how they render."""

from contextlib import suppress
from datetime import date
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dispytch.template import PlaceholderError, Template, check_fields, key_text


class Colour(Enum):
    RED = "red"
    NONE = 0


class Owner(BaseModel):
    id: int
    name: str | None = None

    @property
    def secret(self) -> str:
        return "no field"


class Item(BaseModel):
    owner: Owner
    maybe: Annotated[Owner | None, Field()] = None
    either: Owner | str = "x"
    tag: str = "t"
    any: Any = None


literals = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(literals)
def test_text_without_placeholders_comes_back_when_braces_are_doubled(text: str) -> None:
    """Doubling every brace makes any text literal."""
    template = Template(text.replace("{", "{{").replace("}", "}}"))
    assert template.fields == ()
    assert template.render(None) == text


@given(literals, literals, st.integers(), literals.filter(lambda t: "." not in t and t))
def test_placeholder_renders_between_its_literals(
    head: str, tail: str, number: int, tag: str
) -> None:
    """What stands around placeholders is kept, and each is replaced by its field's text."""
    quoted = [part.replace("{", "{{").replace("}", "}}") for part in (head, tail)]
    template = Template(f"{quoted[0]}{{owner.id}}-{{tag}}{quoted[1]}")
    item = Item(owner=Owner(id=number), tag=tag)
    assert template.render(item, ".") == f"{head}{number}-{tag}{tail}"


@given(st.text(alphabet="{}ab.", max_size=12))
def test_parsing_never_fails_otherwise_than_with_a_placeholder_error(text: str) -> None:
    """Any text is a template or is refused as one."""
    with suppress(PlaceholderError):
        assert all(field for field in Template(text).fields)


@pytest.mark.parametrize(
    "text",
    [
        "{owner.__class__}", "{owner.secret}", "{__class__}", "{owner.model_fields}", "{nope}",
        "{owner.id.real}", "{either.id}", "{any.id}", "{model_config}", "{_private}",
    ],
)  # fmt: skip
def test_placeholder_outside_the_fields_is_refused_with_its_name(text: str) -> None:
    """Nothing outside the model's fields can be reached: attributes, properties, other types."""
    with pytest.raises(PlaceholderError) as caught:
        check_fields(Template(text), Item)
    assert caught.value.field == text.strip("{}")


@pytest.mark.parametrize(
    "text", ["{tag!r}", "{tag:>10}", "{tag[0]}", "{0}", "{}", "{a b}", "{tag.}", "{", "}", "a}{"]
)
def test_format_syntax_is_refused(text: str) -> None:
    """Conversions, formats, indexes and stray braces of str.format are no templates."""
    with pytest.raises(PlaceholderError):
        check_fields(Template(text), Item)


def test_fields_of_optional_and_nested_models_are_accepted() -> None:
    """Optional and annotated models are looked into."""
    check_fields(Template("{maybe.id}{owner.name}{tag}"), Item)


@pytest.mark.parametrize("text", ["{maybe.id}", "{owner.name}"])
def test_none_in_a_placeholder_is_refused(text: str) -> None:
    """None never becomes the text 'None'."""
    with pytest.raises(PlaceholderError, match=text.strip("{}")):
        Template(text).render(Item(owner=Owner(id=1)))


@pytest.mark.parametrize("value", ["", "a.b", "."])
def test_value_that_changes_the_topics_shape_is_refused(value: str) -> None:
    """A segment is never empty and never holds the delimiter."""
    with pytest.raises(PlaceholderError, match="tag"):
        Template("x.{tag}").render(Item(owner=Owner(id=1), tag=value), ".")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"), (5, "5"), (Colour.RED, "red"), (Colour.NONE, "0"),
        (date(2026, 1, 2), "2026-01-02"), (UUID(int=1), str(UUID(int=1))),
        (Decimal("1.50"), "1.50"), (True, None), (1.5, None), (None, None),
        (b"x", None), ([1], None),
    ],
)  # fmt: skip
def test_key_text_follows_one_rule(value: object, text: str | None) -> None:
    """Values with one obvious text become it; bool, float and containers have none."""
    assert key_text(value) == text


@pytest.mark.parametrize("value", [True, 1.5, [1], {"a": 1}, b"x"])
def test_value_without_one_obvious_text_is_refused(value: object) -> None:
    """A float's or a list's text is a guess, so it is refused."""
    with pytest.raises(PlaceholderError, match="any"):
        Template("{any}").render(Item(owner=Owner(id=1), any=value))


def test_value_type_that_knows_its_text_is_rendered() -> None:
    """Addresses and users' own value types render by str()."""
    assert (
        Template("{any}").render(Item(owner=Owner(id=1), any=IPv4Address("127.0.0.1")))
        == "127.0.0.1"
    )
