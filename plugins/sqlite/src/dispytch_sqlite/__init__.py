"""SQLite for Dispytch: durable events in one file, for several processes, without a server.

`SQLiteEventConfig` says how an event is stored, `SQLiteConnection` is what a URL becomes,
`SQLiteProducer` sends and `SQLiteConsumer` receives. These two are imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispytch_sqlite.config import SQLiteEventConfig
    from dispytch_sqlite.connection import SQLiteConnection
    from dispytch_sqlite.consumer import SQLiteConsumer
    from dispytch_sqlite.producer import SQLiteProducer

__all__ = ["SQLiteConnection", "SQLiteConsumer", "SQLiteEventConfig", "SQLiteProducer"]

_HOMES = {
    "SQLiteConnection": "dispytch_sqlite.connection",
    "SQLiteConsumer": "dispytch_sqlite.consumer",
    "SQLiteEventConfig": "dispytch_sqlite.config",
    "SQLiteProducer": "dispytch_sqlite.producer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
