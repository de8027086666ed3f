"""What is pure: topic patterns and lanes, against naive ones."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispytch.listener.lanes import Lanes
from dispytch.template import PlaceholderError
from dispytch.topics import TopicPattern, dead_letter_topic

words = st.text(st.sampled_from("ab-_x\n$^+(é"), min_size=1, max_size=3)
segments = words | st.just("dlq") | st.just("HOLE")


def naive(pattern: list[str], rest: bool, topic: str, delimiter: str) -> tuple[str, ...] | None:
    """The values of the whole-segment placeholders, found segment by segment."""
    parts = topic.split(delimiter)
    if not all(parts):
        return None
    is_literal = not rest and "HOLE" not in pattern
    if not is_literal and len(parts) > 1 and parts[-1] == "dlq":
        return None
    if len(parts) <= len(pattern) if rest else len(parts) != len(pattern):
        return None
    values = []
    for wanted, part in zip(pattern, parts, strict=False):
        if wanted == "HOLE":
            values.append(part)
        elif wanted != part:
            return None
    return tuple(values)


@given(
    st.lists(segments, max_size=4),
    st.booleans(),
    st.lists(segments | st.just(""), min_size=1, max_size=6),
    st.sampled_from([".", "/", ":", "|"]),
    st.booleans(),
)
def test_pattern_matches_as_a_naive_one(
    pattern: list[str], rest: bool, topic: list[str], delimiter: str, same: bool
) -> None:
    """Segment by segment; a last `*` takes one or more; `.dlq` topics only by their own name."""
    if not pattern and not rest:
        pattern = ["a"]
    names = [f"{{n{i}}}" if each == "HOLE" else each for i, each in enumerate(pattern)]
    parsed = TopicPattern(delimiter.join([*names, *(["*"] if rest else [])]), delimiter)
    if same:  # a topic that is more likely to match
        topic = [
            part if each == "HOLE" else each for each, part in zip(pattern, topic, strict=False)
        ]
        topic += ["more"] * rest
    name = delimiter.join(topic)
    assert parsed.match(name) == naive(pattern, rest, name, delimiter)
    if not parsed.is_literal:
        assert parsed.match(dead_letter_topic(name, delimiter)) is None


@pytest.mark.parametrize(
    ("pattern", "topic", "values"),
    [
        ("user-{id}.x", "user-7.x", ("7",)),
        ("user-{id}.x", "user-.x", None),
        ("{a}-{b}", "1-2-3", ("1-2", "3")),
        ("{user.id}.x", "7.x", ("7",)),
        ("a{{b}}", "a{b}", ()),
        ("*", "a", ()),
        ("*", "a.b", ()),
        ("a.*", "a", None),
        ("a.*", "a.", None),
        ("a.*", "a.dlq", None),
        ("{x}", "dlq", ("dlq",)),
        ("a+", "aa", None),
    ],
)
def test_pattern_takes_parts_of_segments(
    pattern: str, topic: str, values: tuple[str, ...] | None
) -> None:
    """A placeholder may be a part of a segment; nothing in a pattern is a regular expression."""
    assert TopicPattern(pattern).match(topic) == values


@given(st.text(st.sampled_from("ab.{}*/"), max_size=10))
def test_pattern_is_parsed_or_refused(text: str) -> None:
    """Any text is a pattern or a PlaceholderError, nothing else."""
    try:
        parsed = TopicPattern(text)
    except PlaceholderError:
        return
    assert parsed.is_literal == (not parsed.names and not text.endswith("*"))
    assert parsed.wildcards("+", "#").count(".") == text.count(".")


class LanesMachine(RuleBasedStateMachine):
    """Lanes beside lists."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[int] = Lanes()
        self.lines: defaultdict[str, list[int]] = defaultdict(list)
        self.number = 0

    @rule(lane=st.sampled_from("abc"))
    def enter(self, lane: str) -> None:
        """The first one may go, others wait."""
        self.number += 1
        assert self.lanes.enter(lane, self.number) == (not self.lines[lane])
        self.lines[lane].append(self.number)

    @rule(lane=st.sampled_from("abc"))
    def leave(self, lane: str) -> None:
        """The next one in order goes, none is lost."""
        if self.lines[lane]:
            self.lines[lane].pop(0)
            expected = self.lines[lane][0] if self.lines[lane] else None
            assert self.lanes.leave(lane) == expected

    @invariant()
    def empty_lanes_are_forgotten(self) -> None:
        """A lane exists only while one is inside."""
        assert len(self.lanes._lines) == sum(map(bool, self.lines.values()))


TestLanes = LanesMachine.TestCase
