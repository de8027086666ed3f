"""What a test of the kit promises, where to look when it fails, and what it needs."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest

__all__ = ["Promise", "promise_of", "promised"]

_T = TypeVar("_T", bound=Callable[..., Awaitable[None]])


@dataclass(frozen=True, slots=True)
class Promise:
    """What a test stands for.

    Attributes:
        text: what is promised: the docstring of the test.
        look: where to look when it is broken.
        needs: what must be there for the test to apply, see `BackendConformance.there`.
        within: seconds after which it has failed.
        shows: the capability that it shows; None: what every backend must keep.
    """

    text: str
    look: str
    needs: frozenset[str]
    within: float
    shows: str | None


def promised(
    *, look: str, needs: tuple[str, ...] = (), within: float = 60.0, shows: str | None = None
) -> Callable[[_T], _T]:
    """Make a test of the kit: bounded in time, and telling of what failed.

    Args:
        look: where the author of the backend should look when it fails.
        needs: capabilities, hooks and kinds of broker without which it does not apply.
        within: seconds it may take.
        shows: the capability that it shows.
    """

    def decorate(test: _T) -> _T:
        text = " ".join((test.__doc__ or "").split())
        promise = Promise(text, look, frozenset(needs), within, shows)

        @functools.wraps(test)
        async def kept(*args: Any, **fixtures: Any) -> None:
            scope = asyncio.timeout(within)
            try:
                async with scope:
                    await test(*args, **fixtures)
            except (Exception, pytest.fail.Exception) as error:
                late = isinstance(error, TimeoutError) and scope.expired()
                happened = f"not done within {within:g} s" if late else _happened(error)
                told = f"promised: {promise.text}\nhappened: {happened}\nlook at:  {look}"
                if late:
                    raise AssertionError(told) from error
                error.add_note(told)
                raise

        kept.__dict__["promise"] = promise
        return cast("_T", kept)

    return decorate


def promise_of(test: object) -> Promise | None:
    """The promise of a test of the kit; None: it is none."""
    return getattr(test, "promise", None)


def _happened(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
