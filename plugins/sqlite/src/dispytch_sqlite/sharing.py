"""Sharing: one writer for all producers and consumers of a process that have the same URL."""

import asyncio
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from dispytch_sqlite.connection import SQLiteConnection
from dispytch_sqlite.database import refused, resolved
from dispytch_sqlite.writer import Writer

__all__ = ["is_inherited", "open_writer", "release", "writers"]

_FORKED = (
    "this process was forked while the file was open, and SQLite would lose what it writes; start "
    "processes before the file is opened, or spawn them: multiprocessing.get_context('spawn')"
)


@dataclass(slots=True, eq=False)
class _Place:
    """Where the writer of a connection is, or will be when it has opened the file.

    Attributes:
        file: without links.
        writer: None: the file is being opened.
        users: how many have it, or wait for it.
        opening: held while the file is opened.
    """

    file: Path
    writer: Writer | None = None
    users: int = 0
    opening: threading.Lock = field(default_factory=threading.Lock)


_places: dict[SQLiteConnection, _Place] = {}
_inherited: list[_Place] = []  # of the process that this one was forked from
_guard = threading.Lock()  # of these two; never held for long, as a fork waits for it


async def open_writer(connection: SQLiteConnection) -> Writer:
    """The writer for a URL's connection; cancelled, it leaves nothing open.

    Raises:
        ConnectError: the file can't be opened, or can't work.
    """
    loop = asyncio.get_running_loop()
    opening = loop.run_in_executor(None, _open, connection)

    def close(opening: "asyncio.Future[Writer]") -> None:
        if opening.exception() is None:
            loop.run_in_executor(None, release, opening.result())

    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close)
        raise


def _open(connection: SQLiteConnection) -> Writer:
    file = resolved(connection.file)
    absolute = connection.model_copy(update={"path": f"/{file}"})
    with _guard:
        if any(_is_at(place, file) for place in _inherited):
            raise refused(file, _FORKED)
        place = _places.setdefault(absolute, _Place(file))
        place.users += 1
        of_file = [each for each in _places.values() if each.file == file]
    try:
        with place.opening:
            for each in of_file:
                if each.writer is not None:
                    each.writer.check()
            if place.writer is None:
                place.writer = Writer(absolute)
            return place.writer
    except BaseException:
        with _guard:
            place.users -= 1
            if not place.users:
                del _places[absolute]
        raise


def release(writer: Writer) -> None:
    """One user less; with the last one what is left is written, and the file closed. Blocks."""
    with _guard:
        connection = next((each for each, at in _places.items() if at.writer is writer), None)
        if connection is None:  # it is of the process that this one was forked from
            return
        place = _places[connection]
        place.users -= 1
        if place.users:
            return
        del _places[connection]
    writer.close()


def is_inherited(writer: Writer) -> bool:
    """Whether it is of the process that this one was forked from: it can't write here."""
    return any(place.writer is writer for place in _inherited)


def writers() -> list[Writer]:
    """Those that are open in this process."""
    return [place.writer for place in _places.values() if place.writer is not None]


def _is_at(place: _Place, file: Path) -> bool:
    return place.file == file or (place.writer is not None and place.writer.is_at(file))


def _forked() -> None:
    # Threads stay behind. What SQLite knows of the file is the parent's: a connection made here
    # would believe that it has the parent's locks, and lose its log when the parent closes.
    _inherited.extend(_places.values())
    _places.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forked
    )
