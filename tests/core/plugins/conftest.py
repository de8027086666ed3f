"""Throw-away plugins: packages written on the fly, used from a process of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

HEALTHY = """
from dispytch import Backend, BackendConfig, Connection, hookimpl

class Config(BackendConfig):
    level: int = 0

@hookimpl
def dispytch_backend():
    return Backend(name="{name}", event_config=Config, connection=Connection,
                   producer="{name}_client:Producer")
"""

CLIENT = """
from dispytch.memory import MemoryProducer as Producer
"""


class Site:
    """A directory on the path, with what installers leave there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def module(self, name: str, source: str) -> None:
        """Write a module."""
        (self.path / f"{name}.py").write_text(dedent(source))

    def distribution(
        self,
        name: str,
        version: str = "1.0",
        *,
        groups: Mapping[str, Mapping[str, str]] | None = None,
        metadata: bool = True,
    ) -> None:
        """Write the metadata of an installed distribution, with these entry points."""
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata:
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(text)
        if groups:
            lines = [
                line
                for group, points in groups.items()
                for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
            ]
            (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def plugin(
        self, name: str, source: str | None = None, *, distribution: str | None = None
    ) -> None:
        """Install a plugin of one module that offers backend and scheme `name`; healthy or not."""
        module = f"{name}_plugin"
        self.module(module, source if source is not None else HEALTHY.format(name=name))
        self.module(f"{name}_client", CLIENT)
        self.distribution(
            distribution or f"dist-{name}",
            groups={"dispytch.backends": {name: module}, "dispytch.schemes": {name: module}},
        )

    def run(self, code: str, **env: str) -> str:
        """Run code in a process of its own; what it printed. It must succeed."""
        done = self.python(code, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, code: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run code in a process of its own."""
        program = "import sys\nfrom dispytch import *\n" + dedent(code)
        environment = {k: v for k, v in os.environ.items() if k != "DISPYTCH_PLUGINS"}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True, text=True, timeout=60, check=False,
            env={**environment, "PYTHONPATH": str(self.path), **env},
        )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty directory for plugins, with a healthy one, `good`, beside those of the test."""
    path = tmp_path / "site"
    path.mkdir()
    made = Site(path)
    made.plugin("good")
    return made
