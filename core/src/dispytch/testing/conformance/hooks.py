"""What an author may give the kit: the broker's process, and a way to it that can be cut."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Broker", "Cut", "Network"]


class Broker(Protocol):
    """A broker's process. All methods block: the kit calls them in a thread."""

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        ...

    def start(self) -> None:
        """Start it again, at the same address with the same data; returns when it is usable."""
        ...

    def restart(self) -> None:
        """Shut it down in order, and start it again."""
        ...

    def freeze(self) -> None:
        """Stop it where it is: connections stay open, and nobody answers (SIGSTOP)."""
        ...

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        ...


class Cut(Protocol):
    """What can be done to connections; `Proxy` does it. All methods block."""

    def reset(self) -> None:
        """Reset all connections; new ones work."""
        ...

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        ...

    def black_hole(self) -> None:
        """Swallow all bytes; connections stay open."""
        ...

    def restore(self) -> None:
        """Let everything through again."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """A way to the broker that can be cut.

    Attributes:
        url: leads through it.
        proxy: cuts it.
    """

    url: str
    proxy: Cut
