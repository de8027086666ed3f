"""The emitter: from an event to a confirmed Receipt."""

from dispytch.emitter.context import EmitContext, Middleware
from dispytch.emitter.emitter import EventEmitter

__all__ = ["EmitContext", "EventEmitter", "Middleware"]
