"""FailingTests: to come."""

__all__ = ["FailingTests"]


class FailingTests:
    """To come."""
