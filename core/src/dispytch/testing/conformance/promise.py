"""What a test of the kit promises, where to look when it fails, and what it needs."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

if TYPE_CHECKING:
    from dispytch.testing.conformance.kit import Kit

__all__ = ["Promise", "promise_of", "promised"]

_T = TypeVar("_T", bound=Callable[..., Awaitable[None]])


@dataclass(frozen=True, slots=True)
class Promise:
    """What a test stands for.

    Attributes:
        text: what is promised: the docstring of the test.
        look: where to look when it is broken.
        needs: what must be there for the test to apply, see `BackendConformance`.
        shows: the capability that it shows; None: what every backend must keep.
    """

    text: str
    look: str
    needs: frozenset[str]
    shows: str | None


def promised(
    *, look: str, needs: tuple[str, ...] = (), within: float = 60.0, shows: str | None = None
) -> Callable[[_T], _T]:
    """Make a test of the kit: bounded in time, telling of what failed, closing what it opened.

    Args:
        look: where the author of the backend should look when it fails.
        needs: capabilities, hooks and kinds of broker without which it does not apply.
        within: seconds it may take.
        shows: the capability that it shows.
    """

    def decorate(test: _T) -> _T:
        text = " ".join((test.__doc__ or "").split())
        promise = Promise(text, look, frozenset(needs), shows)

        @functools.wraps(test)
        async def kept(self: object, kit: "Kit", **fixtures: Any) -> None:
            testing = asyncio.ensure_future(test(self, kit, **fixtures))
            try:
                done, _ = await asyncio.wait({testing}, timeout=within)
                assert done, f"not done within {within:g} s"
                testing.result()
            except (Exception, pytest.fail.Exception) as error:
                error.add_note(
                    f"promised: {promise.text}\nhappened: {_happened(error)}\nlook at:  {look}"
                )
                raise
            finally:
                testing.cancel()  # where it is not done: it may not even take that
                await kit.aclose()

        kept.__dict__["promise"] = promise
        return cast("_T", kept)

    return decorate


def promise_of(test: object) -> Promise | None:
    """The promise of a test of the kit; None: it is none."""
    return getattr(test, "promise", None)


def _happened(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
