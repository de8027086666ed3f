"""Plan: how a handler is called, with what it and its dependencies ask for.

It is made when a handler is registered: what to make in which order, and where each argument comes
from. Per event it only runs.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, TypeAlias

from pydantic import BaseModel

from dispytch.listener.received import Event

__all__ = ["BODY", "EVENT", "SEGMENTS", "Call", "Invoke", "Offload", "Plan", "Step"]

logger = logging.getLogger("dispytch")

Invoke: TypeAlias = Callable[[Event[Any], Mapping[str, str]], Awaitable[Any]]
Offload: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]

EVENT, BODY, SEGMENTS = 0, 1, 2
"""The places of the values that an attempt begins with; each step makes the next one."""


@dataclass(frozen=True, slots=True)
class Call:
    """A callable, and the places of its arguments."""

    fn: Callable[..., Any]
    by_position: tuple[int, ...]
    by_name: Mapping[str, int]

    def with_values(self, values: list[Any]) -> Any:
        """Call it."""
        named = {name: values[place] for name, place in self.by_name.items()}
        return self.fn(*[values[place] for place in self.by_position], **named)

    def written_out(self, fn: str) -> str:
        """The same as code, in which value 3 is `v3` and the callable has this name."""
        named = [f"{name}=v{place}" for name, place in self.by_name.items()]
        return f"{fn}({', '.join([*(f'v{place}' for place in self.by_position), *named])})"


@dataclass(frozen=True, slots=True)
class Step:
    """A value to make: how, and what to do with what the call returns."""

    call: Call
    name: str = ""
    awaited: bool = False
    entered: str = ""  # "", "sync" or "async"


class Plan:
    """How to call a function.

    Args:
        fn: the handler.
        body: the class of the event's body; None where nobody asks for it.
        steps: what to make before.
        call: the call.
    """

    def __init__(
        self, fn: Any, body: type[BaseModel] | None, steps: tuple[Step, ...], call: Call
    ) -> None:
        self.fn, self.body = fn, body
        self._steps, self._call = steps, call

    def written_out(self) -> Invoke | None:
        """The plan of a coroutine function as one function, in which nothing is looked up any more.

        It is what a person would write: `v3 = await f3(v0)`, `return await f(v0, v3)`. None where
        something must be closed afterwards: then `run` does it.
        """
        if any(step.entered for step in self._steps):
            return None
        lines, names = ["async def invoke(v0, v2):", "v1 = v0.body"], dict[str, Any]()
        for place, step in enumerate(self._steps, SEGMENTS + 1):
            names[f"f{place}"] = step.call.fn
            made = step.call.written_out(f"f{place}")
            lines.append(f"v{place} = {'await ' if step.awaited else ''}{made}")
            if not step.awaited:
                lines.append(f"if isinstance(v{place}, Coroutine): v{place} = await v{place}")
        lines.append(f"return await {self._call.written_out('f')}")
        if not self._steps:  # then it needs no coroutine of its own
            lines[0], lines[-1] = "def invoke(v0, v2):", f"return {self._call.written_out('f')}"
        names |= {"f": self.fn, "Coroutine": CoroutineType, "__name__": __name__}
        exec("\n ".join(lines), names)  # noqa: S102 - names and numbers of ours alone
        invoke: Invoke = names["invoke"]
        return invoke

    async def run(
        self, event: Event[Any], segments: Mapping[str, str], offload: Offload | None
    ) -> Any:
        """Make the dependencies, call, and close them in reverse order, whatever happens.

        Args:
            event: the event.
            segments: the topic's segments by name.
            offload: runs the function elsewhere, where it is a sync one.

        Raises:
            BaseException: what the function, or a dependency while it was made or closed, raised.
        """
        values = [event, event.body, segments]
        opened: list[tuple[Step, Any]] = []
        error: BaseException | None = None
        result = None
        try:
            for step in self._steps:
                made = step.call.with_values(values)
                if step.awaited or isinstance(made, CoroutineType):
                    made = await made
                if step.entered:
                    manager = made
                    is_async = step.entered == "async"
                    made = await manager.__aenter__() if is_async else manager.__enter__()
                    opened.append((step, manager))
                values.append(made)
            if offload is None:
                result = await self._call.with_values(values)
            else:
                result = await offload(lambda: self._call.with_values(values))
                if inspect.isawaitable(result):  # a coroutine function in a plain wrapper
                    result = await result
        except BaseException as raised:  # noqa: BLE001 - raised again below, after the closing
            error = raised
        for step, manager in reversed(opened):
            error = await _close(step, manager, error)
        if error is not None:
            raise error
        return result


async def _close(step: Step, manager: Any, error: BaseException | None) -> BaseException | None:
    """Close one dependency; the error that counts from now on. It can't be swallowed."""
    told = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
    try:
        if step.entered == "async":
            await manager.__aexit__(*told)
        else:
            manager.__exit__(*told)
    except BaseException as raised:  # noqa: BLE001 - handed back
        if raised is error:
            return error
        if isinstance(raised, RuntimeError) and str(raised).startswith("generator didn't stop"):
            raised = _twice(step, raised)
        if error is None or not isinstance(raised, Exception):
            return raised
        logger.error("dependency %s failed to close: %r", step.name, raised)  # noqa: TRY400
    return error


def _twice(step: Step, cause: RuntimeError) -> RuntimeError:
    error = RuntimeError(
        f"dependency {step.name} yielded a second time; a generator dependency yields once, and "
        "closes after that"
    )
    error.__cause__ = cause
    return error
