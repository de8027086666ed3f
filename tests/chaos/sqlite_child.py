"""Emitters and listeners on a file, each a process of its own, to be killed or frozen.

Run as a program, it forks one for each line that it reads: the start of an interpreter would take
longer than most of them live. It has no thread, no event loop and no open database, so that what
it forks is as good as new.
"""

import asyncio
import itertools
import json
import logging
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn
from unittest import mock

from dispytch import Event, EventBase, EventEmitter, EventListener
from dispytch_sqlite.log import Log
from dispytch_sqlite.writer import Writer

__all__ = ["LINE", "Numbered", "main"]

LINE = 64
"""Bytes of a line of their record: none spans two pages, so a kill leaves none half written."""

_SIZES = (0, 100, 1_000, 5_000)
"""Of what events carry: some commits fit a page, others take many."""


class Numbered(EventBase):
    """An event: its key, and its place among those of the key."""

    __topic__ = "numbered"
    __event_type__ = "numbered"
    __key__ = "{lane}"

    lane: int
    number: int
    filling: str = ""


def numbered(lane: int, number: int, filling: str = "") -> Numbered:
    """The event of this place; its id tells it, too."""
    return Numbered(id=f"{lane}.{number}", lane=lane, number=number, filling=filling)


class _Record:
    """What all of them write down, each line in one piece and in the order it happened."""

    def __init__(self, path: str) -> None:
        self._out = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, what: str, event: Numbered, seq: int = 0) -> None:
        line = f"{what} {os.getpid()} {event.lane} {event.number} {seq}"
        os.write(self._out, line.ljust(LINE - 1).encode() + b"\n")


async def emit(url: str, record: str, lanes: list[int], first: int) -> None:
    """Emit for ever: in each lane one event after the other, all lanes at once."""
    out = _Record(record)

    async def fill(lane: int) -> None:
        for number in itertools.count(first):
            event = numbered(lane, number, "x" * random.choice(_SIZES))
            out.write("begun", event)
            receipt = await emitter.emit(event)
            out.write("confirmed", event, receipt.details["seq"])

    async with EventEmitter.from_url(url) as emitter:
        await asyncio.gather(*map(fill, lanes))


async def freeze_in_transaction(url: str, record: str, lane: int) -> None:
    """Emit one event, and freeze when it is written and not committed; then go on emitting."""
    append = Log.append

    def append_and_freeze(*args: Any) -> Any:
        placed = append(*args)
        patch.stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        return placed

    patch = mock.patch.object(Log, "append", append_and_freeze)
    patch.start()
    await emit(url, record, [lane], 0)


async def listen(url: str, record: str, freeze: str = "", hang: str = "") -> None:
    """Handle for ever; freeze, or hang, in the handler of the event with this id, once.

    Frozen it does not have the file's lock.
    """
    out = _Record(record)
    listener = EventListener.from_url(url, group="all")
    met: set[str] = set()
    writing, write = threading.RLock(), Writer._write

    def write_alone(*args: Any) -> None:
        with writing:
            write(*args)

    mock.patch.object(Writer, "_write", write_alone).start()

    @listener.handler(Numbered)
    async def note(event: Event[Numbered]) -> None:
        is_first = event.id not in met
        met.add(event.id)
        out.write("taken", event.body)
        if event.id == freeze and is_first:
            with writing:  # not in the middle of a transaction: nobody else could write
                os.kill(os.getpid(), signal.SIGSTOP)
        if event.id == hang and is_first:
            await asyncio.Event().wait()
        await asyncio.sleep(0.001)
        out.write("handled", event.body)

    await listener.run()


_KINDS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "emit": emit,
    "freeze_in_transaction": freeze_in_transaction,
    "listen": listen,
}


def main() -> None:
    """Read lines, JSON: what to do, and what with; answer each with a number."""
    logging.basicConfig(level=logging.WARNING)
    for kind in (EventEmitter, EventListener):  # what each of them would first find and import
        kind.from_url("sqlite:///none")
    children: set[int] = set()
    try:
        for line in sys.stdin:
            what, given = json.loads(line)
            if what == "kill":
                children.discard(given)
                os.kill(given, signal.SIGKILL)
                answer = os.waitstatus_to_exitcode(os.waitpid(given, 0)[1])
            elif what == "frozen":
                answer = int(os.WIFSTOPPED(os.waitpid(given, os.WUNTRACED)[1]))
            else:
                answer = os.fork() or _become(_KINDS[what], given)
                children.add(answer)
            os.write(sys.stdout.fileno(), f"{answer}\n".encode())
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _become(kind: Callable[..., Coroutine[Any, Any, None]], given: dict[str, Any]) -> NoReturn:
    try:
        asyncio.run(kind(**given))
    except BaseException:  # noqa: BLE001 - the program's loop is not this process's to go on with
        traceback.print_exc()
    finally:
        os._exit(1)  # none of them ends by itself


if __name__ == "__main__":
    main()
