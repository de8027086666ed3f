"""SendingTests: to come."""

__all__ = ["SendingTests"]


class SendingTests:
    """To come."""
