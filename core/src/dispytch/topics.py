"""Topic patterns: what a listener subscribes to, and the segments a matching topic has.

`"user.{user_id}.events"` matches one segment where a placeholder stands, `"orders.*"` one or more
segments in the place of its last. Dead-letter topics match no pattern: only their own names do.
"""

import re

from dispytch.template import PlaceholderError, literals_and_fields

__all__ = ["DEAD_LETTER", "REST", "TopicPattern", "dead_letter_topic"]

DEAD_LETTER = "dlq"
"""The last segment of a dead-letter topic."""

REST = "*"
"""As a pattern's last segment: one or more segments."""


def dead_letter_topic(topic: str, delimiter: str = ".") -> str:
    """Where what can't be handled goes, for each topic."""
    return f"{topic}{delimiter}{DEAD_LETTER}"


class TopicPattern:
    """A topic, or a pattern of topics, parsed when it is made.

    Args:
        text: a topic, in which `{name}` stands for one segment, or for a part of one, and a last
            segment `*` for all that follow.
        delimiter: what separates segments.

    Attributes:
        text: as given.
        names: the placeholders, in order.
        is_literal: whether it is one topic's name.

    Raises:
        PlaceholderError: a lone brace, a name that is none, two placeholders without a character
            between them, a `*` that is not the whole last segment, or an empty segment.
    """

    __slots__ = ("_compiled", "_dead", "_parts", "delimiter", "is_literal", "names", "text")

    def __init__(self, text: str, delimiter: str = ".") -> None:
        self.text = text
        self.delimiter = delimiter
        self._dead = delimiter + DEAD_LETTER
        literals, self.names = literals_and_fields(text)
        if len(set(self.names)) < len(self.names):
            raise PlaceholderError(f"{text!r} names one placeholder twice")
        if "" in literals[1:-1]:
            raise PlaceholderError(f"{text!r} has two placeholders with nothing between them")
        if any(not segment for segment in text.split(delimiter)):
            raise PlaceholderError(f"{text!r} has an empty segment")
        if REST in "".join(literals).removesuffix(REST) or (
            literals[-1].endswith(REST) and not f"{delimiter}{text}".endswith(delimiter + REST)
        ):
            raise PlaceholderError(f"{text!r}: {REST!r} can only be the whole last segment")
        self._parts = literals
        self.is_literal = not self.names and not text.endswith(REST)
        self._compiled = re.compile(self.regex, re.DOTALL)

    @property
    def regex(self) -> str:
        """A regular expression for whole topics; its groups are the placeholders."""
        not_delimiter = f"[^{re.escape(self.delimiter)}]+"
        rest = self._parts[-1].endswith(REST)
        parts = [*self._parts[:-1], self._parts[-1].removesuffix(REST)]
        found = f"({not_delimiter})".join(re.escape(part) for part in parts)
        if self.is_literal:
            return found
        tail = f"{not_delimiter}(?:{re.escape(self.delimiter)}{not_delimiter})*" if rest else ""
        return f"(?!.*{re.escape(self._dead)}$){found}{tail}"

    def match(self, topic: str) -> tuple[str, ...] | None:
        """The values of the placeholders where this topic matches, else None."""
        found = self._compiled.fullmatch(topic)
        return None if found is None else found.groups()

    def wildcards(self, one: str, rest: str) -> str:
        """The pattern in a broker's own words, which match at least the same topics.

        Args:
            one: the broker's wildcard for one whole segment (AMQP: `*`).
            rest: the broker's wildcard for all that follow (AMQP: `#`).
        """
        hole = "\0"
        segments = hole.join(self._parts).split(self.delimiter)
        return self.delimiter.join(
            one if hole in segment else rest if segment == REST else segment for segment in segments
        )

    def __repr__(self) -> str:
        return f"TopicPattern({self.text!r})"
