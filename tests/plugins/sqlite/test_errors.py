"""Every error SQLite has gets a meaning, and the meaning an outcome."""

import contextlib
import inspect
import sqlite3

import pytest

from dispytch import EmitRejected, EmitUnknown
from dispytch_sqlite.errors import (
    MEANINGS,
    FileChangedError,
    Meaning,
    StoppedError,
    WriteError,
    as_connect_error,
    as_emit_error,
    described,
    is_locked,
    meaning_of,
)

NO_ERRORS = {"SQLITE_OK", "SQLITE_ROW", "SQLITE_DONE", "SQLITE_NOTICE", "SQLITE_WARNING"}
"""Results that no exception has."""

ACTIONS = {
    "SQLITE_ALTER_TABLE", "SQLITE_ANALYZE", "SQLITE_ATTACH", "SQLITE_CREATE_INDEX",
    "SQLITE_CREATE_TABLE", "SQLITE_CREATE_TEMP_INDEX", "SQLITE_CREATE_TEMP_TABLE",
    "SQLITE_CREATE_TEMP_TRIGGER", "SQLITE_CREATE_TEMP_VIEW", "SQLITE_CREATE_TRIGGER",
    "SQLITE_CREATE_VIEW", "SQLITE_CREATE_VTABLE", "SQLITE_DELETE", "SQLITE_DENY", "SQLITE_DETACH",
    "SQLITE_DROP_INDEX", "SQLITE_DROP_TABLE", "SQLITE_DROP_TEMP_INDEX", "SQLITE_DROP_TEMP_TABLE",
    "SQLITE_DROP_TEMP_TRIGGER", "SQLITE_DROP_TEMP_VIEW", "SQLITE_DROP_TRIGGER", "SQLITE_DROP_VIEW",
    "SQLITE_DROP_VTABLE", "SQLITE_FUNCTION", "SQLITE_IGNORE", "SQLITE_INSERT", "SQLITE_PRAGMA",
    "SQLITE_READ", "SQLITE_RECURSIVE", "SQLITE_REINDEX", "SQLITE_SAVEPOINT", "SQLITE_SELECT",
    "SQLITE_TRANSACTION", "SQLITE_UPDATE",
}  # fmt: skip
"""Numbers of another kind: what an authorizer is asked, and answers."""


def constants() -> dict[str, int]:
    """The codes this Python knows, by name."""
    others = ("SQLITE_LIMIT_", "SQLITE_DBCONFIG_")
    return {
        name: value
        for name, value in vars(sqlite3).items()
        if name.startswith("SQLITE_") and not name.startswith(others) and name not in ACTIONS
    }


def classes() -> list[type[Exception]]:
    return [
        member
        for _, member in inspect.getmembers(sqlite3, inspect.isclass)
        if issubclass(member, Exception)
    ]


def failed(code: int | None, *, committing: bool = False) -> WriteError:
    error = sqlite3.OperationalError("what SQLite says")
    if code is not None:
        error.sqlite_errorcode = code
        error.sqlite_errorname = "SQLITE_CODE"
    return WriteError(error, committing=committing)


def test_every_primary_code_has_a_meaning() -> None:
    """A new code of a new Python is noticed here, not in production."""
    primary = {name: code for name, code in constants().items() if code < 0x100}
    assert len(primary) > 25
    unmapped = {name for name, code in primary.items() if code not in MEANINGS}
    assert unmapped <= NO_ERRORS
    assert set(MEANINGS) <= set(primary.values())


def test_every_extended_code_has_the_meaning_of_its_primary_one() -> None:
    """SQLite makes ever more of them, and keeps the low byte."""
    by_value = {code: name for name, code in constants().items() if code < 0x100}
    extended = {name: code for name, code in constants().items() if code >= 0x100}
    assert len(extended) > 40
    for name, code in extended.items():
        if by_value[code & 0xFF] not in NO_ERRORS:
            assert meaning_of(failed(code).cause) is MEANINGS[code & 0xFF], name


@pytest.mark.parametrize("cls", classes())
def test_an_exception_without_a_code_is_a_mistake_of_ours(cls: type[Exception]) -> None:
    """The module raises them itself: a closed connection, a wrong number of parameters."""
    assert meaning_of(cls("no code")) is Meaning.OURS
    assert cls.__name__ in described(cls("no code"))


def test_every_meaning_is_used() -> None:
    """None is left over from a code that has another one by now."""
    assert set(MEANINGS.values()) == set(Meaning)


OUTCOMES = {
    Meaning.LOCKED: (EmitRejected, True),
    Meaning.FULL: (EmitRejected, True),
    Meaning.READ_ONLY: (EmitRejected, False),
    Meaning.BROKEN: (EmitRejected, False),
    Meaning.MISSING: (EmitRejected, False),
    Meaning.DISK: (EmitUnknown, True),
    Meaning.TOO_LARGE: (EmitRejected, False),
    Meaning.OURS: (EmitUnknown, True),
}
"""Of a commit that failed; and whether the same may work later."""


@pytest.mark.parametrize("code", [*MEANINGS, None])
def test_a_commit_that_failed_has_the_outcome_of_its_meaning(code: int | None) -> None:
    """Unknown only where the disk may have the event: everywhere else it is certain."""
    error = failed(code, committing=True)
    kind, retriable = OUTCOMES[meaning_of(error.cause)]
    outcome = as_emit_error(error)
    assert (type(outcome), outcome.retriable) == (kind, retriable)
    assert outcome.__cause__ is error.cause
    told = "it may be stored" if kind is EmitUnknown else "nothing was stored"
    assert str(outcome).startswith(told)
    assert "what SQLite says" in str(outcome)


@pytest.mark.parametrize("code", [*MEANINGS, None])
def test_what_failed_before_the_commit_is_certainly_not_stored(code: int | None) -> None:
    """It was rolled back, whatever it was."""
    error = failed(code, committing=False)
    outcome = as_emit_error(error)
    assert type(outcome) is EmitRejected
    assert outcome.retriable == OUTCOMES[meaning_of(error.cause)][1]
    assert "may be" not in str(outcome)


@pytest.mark.parametrize("code", [*MEANINGS, None])
def test_who_opens_a_file_is_told_what_happened_and_what_to_do(code: int | None) -> None:
    """The same meanings, for a file; a lasting one is not tried again."""
    error = failed(code)
    told = as_connect_error(error, "can't open events.db")
    meaning = meaning_of(error.cause)
    assert told.backend == "sqlite"
    assert told.retriable == OUTCOMES[meaning][1]
    assert str(told).startswith(f"sqlite: can't open events.db: {meaning.value} (")
    assert ("; " in str(told)) == (meaning not in {Meaning.OURS, Meaning.TOO_LARGE})


def test_only_a_lock_is_waited_for() -> None:
    """All else would fail again at once."""
    waited_for = {code for code in MEANINGS if is_locked(failed(code).cause)}
    assert waited_for == {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


def test_our_own_errors_say_themselves_what_happened() -> None:
    """They have no code, and are no mistake."""
    gone = as_emit_error(WriteError(FileChangedError("the file went away"), committing=False))
    assert (type(gone), gone.retriable) == (EmitRejected, False)
    assert str(gone) == "nothing was stored: the file went away"
    stopped = as_emit_error(WriteError(StoppedError(), committing=False))
    assert (type(stopped), stopped.retriable) == (EmitRejected, True)
    assert str(stopped) == "nothing was stored: the producer was stopped before its turn"


def test_what_sqlite_raises_has_a_code() -> None:
    """All of the above stands on this."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement, meaning in [
            ("SELECT * FROM nothing", Meaning.OURS),
            ("PRAGMA query_only = 1; CREATE TABLE t (x)", Meaning.READ_ONLY),
            ("ATTACH '/nowhere/at/all.db' AS other", Meaning.MISSING),
        ]:
            with pytest.raises(sqlite3.Error) as caught:
                db.executescript(statement)
            assert meaning_of(caught.value) is meaning
            assert caught.value.sqlite_errorname in described(caught.value)
