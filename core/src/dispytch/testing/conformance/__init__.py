"""The tests that every backend passes: ours, and anybody's.

Needs `dispytch[testing]`. Nothing here loads itself into a test run: subclass `BackendConformance`.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "capabilities",
            "failing",
            "flow",
            "kit",
            "plugin",
            "probes",
            "receiving",
            "report",
            "sending",
            "workers",
        )
    )
)

from dispytch.testing.conformance.hooks import Broker, Cut, Network  # noqa: E402
from dispytch.testing.conformance.kit import Kit  # noqa: E402
from dispytch.testing.conformance.proxy import Proxy, free_port  # noqa: E402
from dispytch.testing.conformance.suite import BackendConformance  # noqa: E402

__all__ = ["BackendConformance", "Broker", "Cut", "Kit", "Network", "Proxy", "free_port"]
