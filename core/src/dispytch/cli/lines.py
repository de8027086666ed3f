"""Lines of a file or of standard input, as they come, a bounded number in memory."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

__all__ = ["InputError", "Line", "Source", "chunks"]

_BLOCK = 1 << 20  # bytes asked for at once; a pipe gives what it has
_BOM = b"\xef\xbb\xbf"
_T = TypeVar("_T")


class InputError(Exception):
    """The input can't be read on."""


class Source(Protocol):
    """An unbuffered binary stream: a read returns what is there, and b"" at the end only."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; waits for one at least."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input.

    Attributes:
        number: counted from 1, blank lines included.
        text: without white space around it; empty for a blank line.
        size: bytes it took in the input.
    """

    number: int
    text: bytes
    size: int


async def chunks(source: Source, limit: int) -> AsyncIterator[list[Line]]:
    """The lines of `source`, up to `limit` at a time, without waiting for a chunk to fill.

    Raises:
        InputError: the source can't be read on.
    """
    count, parts = 0, list[bytes]()
    while block := await _in_thread(lambda: _read(source)):
        *complete, rest = block.split(b"\n")
        if complete:
            complete[0] = b"".join((*parts, complete[0]))
            parts.clear()
        parts.append(rest)
        for start in range(0, len(complete), limit):
            lines = complete[start : start + limit]
            yield [_line(count + offset, text, 1) for offset, text in enumerate(lines, start=1)]
            count += len(lines)
    if last := b"".join(parts):
        yield [_line(count + 1, last, 0)]


def _line(number: int, text: bytes, newline: int) -> Line:
    content = text.removeprefix(_BOM) if number == 1 else text
    return Line(number, content.strip(b" \t\r"), len(text) + newline)


def _read(source: Source) -> bytes:
    try:
        block = source.read(_BLOCK)
    except OSError as error:
        raise InputError(f"the input can't be read on: {error.strerror or error}") from error
    if block is None:
        raise InputError("the input can't be read: it is in non-blocking mode")
    return block


async def _in_thread(call: Callable[[], _T]) -> _T:
    """Call in a thread of its own, so that the broker's client lives on while input is awaited.

    Not `asyncio.to_thread`: the program's end would wait for its threads, and a read of a
    terminal may never return.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: InputError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("_T", result))  # None only beside an error

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except InputError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True, name="dispytch emit: input").start()
    return await future
