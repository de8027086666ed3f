"""ReceivingTests: to come."""

__all__ = ["ReceivingTests"]


class ReceivingTests:
    """To come."""
