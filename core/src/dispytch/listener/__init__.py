"""Handling events: listener, routers, handlers, and what stands between them and a consumer."""

from dispytch.listener.failure import DEAD_LETTER_HEADERS, FOR_GROUP, FOR_HANDLERS, Retry
from dispytch.listener.health import Health
from dispytch.listener.injection import Depends
from dispytch.listener.listener import EventListener, Override
from dispytch.listener.options import ListenerOptions
from dispytch.listener.received import Event, HandleContext, ListenerMiddleware
from dispytch.listener.router import Router
from dispytch.listener.segment import TopicSegment
from dispytch.listener.work import Counts, Timers

__all__ = [
    "DEAD_LETTER_HEADERS",
    "FOR_GROUP",
    "FOR_HANDLERS",
    "Counts",
    "Depends",
    "Event",
    "EventListener",
    "HandleContext",
    "Health",
    "ListenerMiddleware",
    "ListenerOptions",
    "Override",
    "Retry",
    "Router",
    "Timers",
    "TopicSegment",
]
