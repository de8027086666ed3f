"""The SQLite backend passes the conformance kit."""

from pathlib import Path
from typing import Any

import pytest

from dispytch.testing.conformance import BackendConformance

pytest.importorskip("dispytch_sqlite")


class TestSQLite(BackendConformance):
    backend = "sqlite"
    lives_in = "file"
    oversize = 17 * 1024 * 1024
    quiet = 0.3

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/events.db"

    def ttl(self, seconds: float) -> Any:
        from dispytch_sqlite import SQLiteEventConfig

        return SQLiteEventConfig(ttl=seconds)

    def delay(self, seconds: float) -> Any:
        from dispytch_sqlite import SQLiteEventConfig

        return SQLiteEventConfig(delay=seconds)
