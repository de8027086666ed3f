"""PluginTests: to come."""

__all__ = ["PluginTests"]


class PluginTests:
    """To come."""
