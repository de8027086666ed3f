"""What each error of `sqlite3` means for the event that met it, and for who opens a file.

SQLite says by a code what happened; an exception without one is a mistake of ours.
"""

import sqlite3
from enum import Enum

from dispytch import ConnectError, EmitError, EmitRejected, EmitUnknown

__all__ = [
    "BACKEND",
    "MEANINGS",
    "FileChangedError",
    "Meaning",
    "StoppedError",
    "WriteError",
    "as_connect_error",
    "as_emit_error",
    "described",
    "is_locked",
    "meaning_of",
]

BACKEND = "sqlite"


class FileChangedError(Exception):
    """The file has been removed or replaced since it was opened: what is written is lost."""


class StoppedError(Exception):
    """It had no turn to be written before the producer was stopped."""

    def __init__(self) -> None:
        super().__init__("the producer was stopped before its turn")


class WriteError(Exception):
    """A transaction failed and was rolled back; the cause tells why.

    Attributes:
        cause: what failed it.
        committing: whether it came while the disk was to confirm.
    """

    def __init__(self, cause: Exception, *, committing: bool) -> None:
        super().__init__(described(cause))
        self.cause, self.committing = cause, committing
        self.__cause__ = cause

    @property
    def is_unsure(self) -> bool:
        """Whether what was written may be there nevertheless."""
        return self.committing and meaning_of(self.cause) in {Meaning.DISK, Meaning.OURS}


class Meaning(Enum):
    """What an error tells."""

    LOCKED = "another process writes, or holds the file locked"
    FULL = "the disk is full, or the file may not grow"
    READ_ONLY = "the file, or its directory, can't be written"
    BROKEN = "the file is no sound SQLite database"
    MISSING = "the file, or its directory, is not there or can't be opened"
    DISK = "the disk or the memory failed"
    TOO_LARGE = "SQLite can't take a value of this size"
    OURS = "a mistake in this plugin"


MEANINGS: dict[int, Meaning] = {
    sqlite3.SQLITE_BUSY: Meaning.LOCKED,
    sqlite3.SQLITE_LOCKED: Meaning.LOCKED,
    sqlite3.SQLITE_PROTOCOL: Meaning.LOCKED,
    sqlite3.SQLITE_FULL: Meaning.FULL,
    sqlite3.SQLITE_READONLY: Meaning.READ_ONLY,
    sqlite3.SQLITE_PERM: Meaning.READ_ONLY,
    sqlite3.SQLITE_AUTH: Meaning.READ_ONLY,
    sqlite3.SQLITE_NOTADB: Meaning.BROKEN,
    sqlite3.SQLITE_CORRUPT: Meaning.BROKEN,
    sqlite3.SQLITE_FORMAT: Meaning.BROKEN,
    sqlite3.SQLITE_SCHEMA: Meaning.BROKEN,
    sqlite3.SQLITE_CANTOPEN: Meaning.MISSING,
    sqlite3.SQLITE_NOTFOUND: Meaning.MISSING,
    sqlite3.SQLITE_EMPTY: Meaning.MISSING,
    sqlite3.SQLITE_IOERR: Meaning.DISK,
    sqlite3.SQLITE_NOLFS: Meaning.DISK,
    sqlite3.SQLITE_NOMEM: Meaning.DISK,
    sqlite3.SQLITE_INTERRUPT: Meaning.DISK,
    sqlite3.SQLITE_ABORT: Meaning.DISK,
    sqlite3.SQLITE_TOOBIG: Meaning.TOO_LARGE,
    sqlite3.SQLITE_ERROR: Meaning.OURS,
    sqlite3.SQLITE_INTERNAL: Meaning.OURS,
    sqlite3.SQLITE_CONSTRAINT: Meaning.OURS,
    sqlite3.SQLITE_MISMATCH: Meaning.OURS,
    sqlite3.SQLITE_MISUSE: Meaning.OURS,
    sqlite3.SQLITE_RANGE: Meaning.OURS,
}
"""By primary result code: the low byte of the codes that SQLite gives."""

_ADVICE = {
    Meaning.LOCKED: "end what holds it, or try again",
    Meaning.FULL: "make room",
    Meaning.READ_ONLY: "give this user the right to write both",
    Meaning.BROKEN: "name another file, or put a copy of this one back",
    Meaning.MISSING: "name a file that this user may open",
    Meaning.DISK: "look into the system's log",
}

_LASTING = frozenset({Meaning.READ_ONLY, Meaning.BROKEN, Meaning.MISSING, Meaning.TOO_LARGE})


def meaning_of(error: BaseException) -> Meaning:
    """What an error tells."""
    if isinstance(error, FileChangedError):
        return Meaning.MISSING
    if isinstance(error, StoppedError):
        return Meaning.LOCKED
    code = getattr(error, "sqlite_errorcode", None)
    return Meaning.OURS if code is None else MEANINGS.get(code & 0xFF, Meaning.OURS)


def is_locked(error: BaseException) -> bool:
    """Whether the same may work in a moment, when another process has written."""
    return meaning_of(error) is Meaning.LOCKED


def described(error: BaseException) -> str:
    """What happened, in our words and in SQLite's."""
    if isinstance(error, FileChangedError | StoppedError):
        return str(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{meaning_of(error).value} ({name}: {error})"


def as_emit_error(error: WriteError) -> EmitError:
    """The outcome of an event whose transaction failed."""
    kind = EmitUnknown if error.is_unsure else EmitRejected
    told = "it may be stored" if error.is_unsure else "nothing was stored"
    failure = kind(f"{told}: {error}", retriable=meaning_of(error.cause) not in _LASTING)
    failure.__cause__ = error.cause
    return failure


def as_connect_error(error: BaseException, doing: str) -> ConnectError:
    """The same for who opens a file, or asks for a sign of life."""
    cause = error.cause if isinstance(error, WriteError) else error
    meaning = meaning_of(cause)
    advice = "" if isinstance(cause, FileChangedError) else _ADVICE.get(meaning, "")
    return ConnectError(
        f"{BACKEND}: {doing}: {described(cause)}{advice and '; '}{advice}",
        backend=BACKEND,
        retriable=meaning not in _LASTING,
    )
