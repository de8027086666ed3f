"""The backend of docs/write-a-backend.md, and what the command writes, used as a reader does."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import dispytch

pytest.importorskip("click", reason="the command line needs dispytch[cli]")

from dispytch.cli.new_backend import package_files

ROOT = Path(__file__).parents[2]
OTHER = "some-other-name"
_FILE = re.compile(r"^```\w+\n(?:#|<!--) file: (\S+)(?: -->)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PAGE = dict(_FILE.findall((ROOT / "docs/write-a-backend.md").read_text()))
_SHORT = {**os.environ, "DISPYTCH_CONFORMANCE_LOAD": "short", "NO_COLOR": "1"}
_SHORT.pop("DISPYTCH_PLUGINS", None)

_IMPATIENT = """
from dispytch.testing.conformance import capabilities

capabilities._DECLARED = TestFolder.recovery = 10.0
"""
"""What never comes is not waited for as long as the kit does."""


class Fault(NamedTuple):
    """What makes the package broken, and the test of the kit that tells of it.

    Attributes:
        meant: the test.
        says: what it says happened.
        module: of the package.
        changes: what stands there, and what in its place.
    """

    meant: str
    says: str
    module: str
    changes: dict[str, str]


_SETTLES_EARLY = Fault(
    "test_killed_consumer_loses_nothing",
    "what the killed consumer had begun",
    "consumer.py",
    {
        "                deliveries = [LogDelivery": (
            "                await self._in_thread(self._group.save, position)\n"
            "                deliveries = [LogDelivery"
        ),
        "await self._in_thread(self._group.save, done_before)": "pass",
    },
)
_CONFIRMS_EARLY = Fault(
    "test_durable_files_are_as_declared",
    "0 of 50 came",
    "producer.py",
    {"return await self._put(out)": "self._put(out)"},
)


class Desk:
    """A reader's directory outside the repository, with an environment of its own.

    Attributes:
        root: holds the package of the page and one that the command wrote.
        kits: for each package the run of its tests, which takes a while and goes on meanwhile.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kits: dict[str, subprocess.Popen[str]] = {}
        venv.create(root / "env", with_pip=True)
        self.python = next((root / "env").glob("*/python"))

    def call(self, *args: str, within: str = "", stdin: str = "") -> str:
        """Run `python ARGS` in the directory, or in one `within`; what it printed."""
        done = subprocess.run(
            [self.python, *args], cwd=self.root / within, env=_SHORT, input=stdin,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *requirements: str) -> None:
        """Install into the environment, tools in the versions that are pinned."""
        self.call("-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *requirements)

    def begin_tests(self, package: str, *args: str) -> None:
        """Run the tests of a package, beside everything else."""
        self.kits[package] = subprocess.Popen(
            [self.python, "-m", "pytest", "-q", *args], cwd=self.root / package, env=_SHORT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Both packages, installed; their tests have begun."""
    desk = Desk(tmp_path_factory.mktemp("reader"))
    for name, text in {**_PAGE, "src/dispytch_folder/py.typed": ""}.items():
        target = desk.root / "dispytch-folder" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    desk.install(f"{ROOT / 'core'}[cli,testing]")
    desk.call("-m", "dispytch", "new-backend", OTHER)
    packages = ("dispytch-folder", f"dispytch-{OTHER}")
    desk.install(*(f"./{package}[test,lint]" for package in packages), "pyright[nodejs]")
    for package in packages:
        desk.begin_tests(package)
    yield desk
    for kit in desk.kits.values():
        kit.kill()
        kit.communicate()


def test_page_has_the_files_that_the_command_writes() -> None:
    """There is one source of truth: who copies the page has what the command writes."""
    written = dict(package_files("folder"))
    assert written.pop("src/dispytch_folder/py.typed") == ""
    assert _PAGE.keys() == written.keys()
    for name, text in written.items():
        assert _PAGE[name] == text, name


def test_package_imports_public_names_only() -> None:
    """An author needs what is public, and nothing else of the project."""
    allowed = {"dispytch_folder", "pydantic", "pytest", *sys.stdlib_module_names}
    for name, text in _PAGE.items():
        for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, name
            elif isinstance(node, ast.ImportFrom) and node.module == "dispytch":
                assert {alias.name for alias in node.names} <= set(dispytch.__all__), name
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert module == "dispytch.testing.conformance" or (
                    module.partition(".")[0] in allowed
                ), name


def test_backend_of_the_page_is_installed_and_used(desk: Desk) -> None:
    """A reader who copies the files of the page has a backend that works."""
    backends = json.loads(desk.call("-m", "dispytch", "backends", "--check", "--json"))
    (row,) = [each for each in backends if each["name"] == "folder"]
    assert row == {
        "name": "folder", "distribution": "dispytch-folder", "version": "0.1.0",
        "schemes": ["folder"], "error": None,
    }  # fmt: skip
    assert "stored beside the event" in desk.call("-m", "dispytch", "schema", "folder")
    assert "fsync" in desk.call("-m", "dispytch", "schema", "folder", "--connection")

    printed = desk.call("-X", "dev", "-W", "error", "dispytch-folder/example.py", "events")
    assert "offset" in printed
    assert printed.splitlines()[-2:] == ["billed ada", "billed grace"]
    url = f"folder://{desk.root / 'events'}"
    listen = ("-m", "dispytch", "listen", url, "--group", "audit", "--json", "--limit", "2")
    seen = [json.loads(line) for line in desk.call(*listen, "orders.*").splitlines()]
    assert [each["body"]["customer"] for each in seen] == ["ada", "grace"]


def test_backend_of_the_page_takes_configs(desk: Desk) -> None:
    """What an event says to the backend arrives there."""
    summary = desk.call(
        "-m", "dispytch", "emit", f"folder://{desk.root / 'more'}?fsync=false",
        "--topic", "t", "--type", "y", "--config", '{"tag": "{a}"}',
        stdin='{"a": "x"}\n{"a": "y"}\n',
    )  # fmt: skip
    assert "2 accepted, 0 rejected, 0 unknown" in summary
    lines = (desk.root / "more/events.jsonl").read_text().splitlines()
    assert [json.loads(line)["tag"] for line in lines if line != "#"] == ["x", "y"]


@pytest.mark.parametrize("tool", ["ruff check .", "ruff format --check .", "mypy"])
@pytest.mark.parametrize("package", ["dispytch-folder", f"dispytch-{OTHER}"])
def test_package_is_clean(desk: Desk, package: str, tool: str) -> None:
    """The package passes its own CI, as it is."""
    desk.call("-m", *tool.split(), within=package)


def test_package_is_clean_for_pyright(desk: Desk) -> None:
    """The other type checker finds nothing either."""
    # Told where to look: it passes over folders below a hidden one, where a test's may be.
    checked = ("--pythonpath", desk.python, "src", "tests", "example.py")
    desk.call("-m", "pyright", *checked, within=f"dispytch-{OTHER}")


@pytest.mark.parametrize("name", ["x", "a-b-c", "n" * 30])
def test_package_is_clean_whatever_its_name(desk: Desk, name: str) -> None:
    """No name is so short or so long that the formatter would change a line."""
    desk.call("-m", "dispytch", "new-backend", name)
    for tool in ("ruff check .", "ruff format --check ."):
        desk.call("-m", *tool.split(), within=f"dispytch-{name}")


@pytest.mark.parametrize("package", ["dispytch-folder", f"dispytch-{OTHER}"])
def test_package_passes_the_conformance_kit(desk: Desk, package: str) -> None:
    """Its tests, which are the kit, pass where it is installed."""
    told, _ = desk.kits[package].communicate(timeout=500)
    assert desk.kits[package].returncode == 0, told
    assert " passed" in told
    assert "failed" not in told


def test_kit_finds_the_faults_of_files(desk: Desk) -> None:
    """A package that settles or confirms too early fails the test meant for that, and no other."""
    faults = (_SETTLES_EARLY, _CONFIRMS_EARLY)
    for fault in faults:
        copy = desk.root / fault.meant
        shutil.copytree(desk.root / "dispytch-folder", copy)
        module = copy / "src/dispytch_folder" / fault.module
        text = module.read_text()
        for old, new in fault.changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        module.write_text(text)
        with (copy / "tests/test_conformance.py").open("a") as tests:
            tests.write(_IMPATIENT)
        # With its modules before those that are installed.
        asked = ("-o", "pythonpath=src", "-k", "killed_consumer or durable_files")
        desk.begin_tests(fault.meant, *asked)
    for fault in faults:
        told, _ = desk.kits[fault.meant].communicate(timeout=120)
        assert re.findall(r"(?m)^FAILED \S+::(\w+)", told) == [fault.meant], told
        assert "1 failed, 1 passed" in told
        assert re.search(rf"(?m)^E +promised: .*\nE +happened: .*{fault.says}", told), told
