"""The built-in memory backend passes the conformance kit."""

import uuid

import pytest

from dispytch.testing.conformance import BackendConformance


class TestMemory(BackendConformance):
    backend = "memory"
    lives_in = "process"
    quiet = 0.05

    @pytest.fixture
    def url(self) -> str:
        return f"memory://{uuid.uuid4().hex}"
