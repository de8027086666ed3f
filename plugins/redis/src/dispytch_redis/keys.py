"""Names of the keys that Redis keeps for us."""

from collections.abc import Iterator, Mapping

__all__ = ["Keys"]


class Keys:
    """Names that begin with a prefix; topics and groups may have any characters.

    Args:
        prefix: of all of them.

    Attributes:
        topics: a hash: how many shards each topic has.
        new_topics: a stream that tells of new ones.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.topics = f"{prefix}:topics"
        self.new_topics = f"{prefix}:topics:new"

    def topic(self, topic: str) -> str:
        """What a topic is called in keys."""
        return _part(topic)

    def shard(self, topic: str, number: int) -> str:
        """What a shard is called in keys: its topic, a colon, its number."""
        return f"{_part(topic)}:{number}"

    def shards(self, topics: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """Each shard of these topics, with its topic first; how many shards each has."""
        for topic, count in topics.items():
            for number in range(count):
                yield topic, self.shard(topic, number)

    def stream(self, shard: str) -> str:
        """A stream: the events of a shard."""
        return f"{self._prefix}:stream:{shard}"

    def group(self, group: str) -> "GroupKeys":
        """What is kept for a group."""
        return GroupKeys(f"{self._prefix}:group:{_part(group)}")


class GroupKeys:
    """Names of what is kept for a group.

    Attributes:
        members: a hash: until when each member's lease lasts, and since when without a break.
        subscriptions: a hash: the topics of each member.
        owners: a hash: whose each shard is.
        changes: a stream that tells of members that came or went, and of shards that are free.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.members = f"{prefix}:members"
        self.subscriptions = f"{prefix}:subscriptions"
        self.owners = f"{prefix}:owners"
        self.changes = f"{prefix}:changes"

    def later(self, shard: str) -> str:
        """A sorted set: when each event that was put off is due, ms since 1970."""
        return f"{self._prefix}:later:{shard}"

    def later_data(self, shard: str) -> str:
        """A hash: what comes with it again."""
        return f"{self._prefix}:later-data:{shard}"


def _part(text: str) -> str:
    """A topic's or a group's name as a part of a key: a colon ends it."""
    return text.replace("%", "%25").replace(":", "%3A")
