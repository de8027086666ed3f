"""Opens files, and refuses those that can't work. All of this blocks: call it in a thread."""

import contextlib
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dispytch import ConnectError
from dispytch_sqlite.errors import BACKEND, FileChangedError, as_connect_error, is_locked
from dispytch_sqlite.schema import APPLICATION_ID, TABLES, VERSION

__all__ = [
    "FileIdentity",
    "network_filesystem",
    "open_database",
    "open_reader",
    "refused",
    "resolved",
    "transaction",
]

_OLDEST = (3, 35, 0)  # RETURNING, UPDATE FROM
_OPENING = 10.0  # seconds that opening waits for others who open the same file

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs",
     "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb2",
     "smb3", "smbfs"}
)  # fmt: skip
"""File systems that several machines share: SQLite's locks and shared memory don't work there."""


class FileIdentity:
    """Which file was opened, to notice when another one is in its place.

    A process goes on writing to a file that was removed, and nobody else would ever read it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._is = path, _identity(path)

    def is_at(self, path: Path) -> bool:
        """Whether this is the file at a path now."""
        found = _identity(path)
        return found is not None and found == self._is

    def check(self) -> None:
        """Raises FileChangedError: it is not there any more."""
        if not self.is_at(self._path):
            raise FileChangedError(
                f"the file {self._path} was removed or replaced while it was in use; "
                "stop all processes that use it, and start them again"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def open_database(path: Path, partitions: int) -> sqlite3.Connection:
    """Open a file for writing, or make it.

    Args:
        path: the file.
        partitions: for a file that is made.

    Raises:
        ConnectError: it can't be opened or made, can't work, or is not ours.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise refused(path, f"this Python has SQLite {sqlite3.sqlite_version}, needed is {wanted}")
    _check_directory(path)
    with _explained(path):
        db = _connect(path, 0)  # SQLite's waiting is unfair: the writer has its own
        try:
            _prepare(path, db, partitions)
        except BaseException:
            db.close()
            raise
        return db


def resolved(path: Path) -> Path:
    """A path without links.

    Raises:
        ConnectError: it can't be followed.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.12 has a RuntimeError for a loop
        raise refused(path, f"it can't be found ({error})") from error


def refused(path: Path, why: str) -> ConnectError:
    """A file that can't be used, whoever asks again."""
    return ConnectError(f"{BACKEND}: can't use {path}: {why}", backend=BACKEND, retriable=False)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a file, which is there, for reading.

    Raises:
        ConnectError: it can't be opened.
    """
    with _explained(path):
        db = _connect(path, 1, "rw")
        db.execute("PRAGMA temp_store = MEMORY")
        return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write, all or nothing, if nobody else does."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def network_filesystem(directory: Path) -> str | None:
    """The kind of the network file system that a directory is on; None: it is local, or unknown."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return None
    return _filesystem_of(directory, mounts)


def _filesystem_of(directory: Path, mounts: str) -> str | None:
    best, kind = -1, ""
    for line in filter(None, mounts.split("\n")):
        left, _, right = line.partition(" - ")
        # Spaces and ends of lines are written as octal numbers; other characters stay.
        point = left.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        place = Path(point.encode("latin-1").decode("utf-8", "surrogateescape"))
        if directory.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), right.split()[0]
    return kind if kind in _NETWORK else None


def _check_directory(path: Path) -> None:
    directory = path.parent
    if not os.path.isdir(directory):  # Path.is_dir raises where it may not look
        raise refused(path, f"its directory {directory} is not there; make it")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise refused(
            path,
            f"its directory {directory} can't be written, and SQLite keeps a second file there; "
            "give this user the right to",
        )
    kind = network_filesystem(directory)
    if kind is not None:
        raise refused(
            path,
            f"it is on a network file system ({kind}), where SQLite loses data; use a local disk, "
            "or a broker for several machines",
        )


def _connect(path: Path, timeout: float, mode: str = "rwc") -> sqlite3.Connection:
    # Each connection has one user at a time, which need not be the thread that opened it.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )


def _prepare(path: Path, db: sqlite3.Connection, partitions: int) -> None:
    """Make it ours; while others do the same, wait for them."""
    deadline = time.monotonic() + _OPENING
    while True:
        try:
            _check_owner(path, db)
            _make_tables(path, db, partitions)
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() >= deadline:
                raise
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - no secret
        else:
            return


def _check_owner(path: Path, db: sqlite3.Connection) -> None:
    # One statement: between two of them another process may have made it.
    owner, version, tables = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise refused(path, "it is a database of another program; name a file of its own")
    if owner == APPLICATION_ID and version > VERSION:
        raise refused(
            path,
            f"it was made by a newer dispytch-sqlite (its version is {version}, this one knows "
            f"{VERSION}); upgrade: pip install -U dispytch-sqlite",
        )


def _make_tables(path: Path, db: sqlite3.Connection, partitions: int) -> None:
    made = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not made:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise refused(path, f"it can't be used with a write-ahead log (its journal is {mode!r})")
    with transaction(db):  # others may make it at this moment
        if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            db.execute("UPDATE settings SET partitions = partitions")  # tells a read-only file
            return
        for statement in TABLES.split(";\n"):
            db.execute(statement)
        db.execute("INSERT INTO settings VALUES (?)", (partitions,))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise as_connect_error(error, f"can't open {path}") from error
