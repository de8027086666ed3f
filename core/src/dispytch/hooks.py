"""Hookspecs and the hookimpl marker (pluggy): registration and lifecycle, nothing per event."""

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from dispytch.backend import Backend

__all__ = ["PROJECT", "hookimpl"]

PROJECT = "dispytch"

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of one of the hooks below."""

_hookspec = pluggy.HookspecMarker(PROJECT)


@_hookspec(firstresult=True)
def dispytch_backend() -> "Backend | list[Backend] | None":
    """The backends of this plugin; called once, when one of them is first asked for."""


@_hookspec
def dispytch_emitter_created(emitter: Any) -> None:
    """An `EventEmitter` was made: attach hooks to it. For tracing, metrics and the like."""


@_hookspec
def dispytch_listener_created(listener: Any) -> None:
    """An `EventListener` was made: add middleware to it. For tracing, metrics and the like."""
