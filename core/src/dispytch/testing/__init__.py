"""Helpers for tests: `Recorder` tells what was emitted. Needs no test framework."""

from dispytch.testing.listener import TestListener
from dispytch.testing.recorder import RecordedMessage, Recorder

__all__ = ["RecordedMessage", "Recorder", "TestListener"]
