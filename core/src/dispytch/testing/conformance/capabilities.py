"""CapabilityTests: to come."""

__all__ = ["CapabilityTests"]


class CapabilityTests:
    """To come."""
