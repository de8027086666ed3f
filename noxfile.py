"""Every task of the workspace: `python -m nox -l` lists them, `python -m nox -s NAME` runs one."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
BUILT_ON = {"confluent": ["kafka"]}  # plugin -> those of ours that it needs
SUPPORTED = ("3.11", "3.12", "3.13")
SOURCES = ("core/src", *(f"plugins/{name}/src" for name in PLUGINS))

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "tests"]


def _candidates(version: str) -> Iterator[Path]:
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob(f"versions/{version}.*/bin/python{version}")


def _find_interpreters() -> list[str]:
    """The supported versions this machine has; puts on PATH those that only pyenv knows."""
    found: list[str] = []
    for version in SUPPORTED:
        for python in _candidates(version):
            # A shim of pyenv may be there for a version that is not selected: ask it.
            if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
                if shutil.which(f"python{version}") != str(python):
                    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
                found.append(version)
                break
    return found


PYTHONS = _find_interpreters()
OLDEST, NEWEST = PYTHONS[0], PYTHONS[-1]


def _install(session: nox.Session, *plugins: str, groups: tuple[str, ...] = ("test",)) -> None:
    """Install the core and some plugins from source, with the pinned versions of all else."""
    wanted = [requirement for group in groups for requirement in _group(group)]
    sources = [f"./plugins/{name}" for name in plugins]
    editable = [argument for source in ("./core[cli]", *sources) for argument in ("-e", source)]
    session.install("-c", "constraints.txt", *editable, *wanted)


def _group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group, for installers that don't know groups yet."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name)


def _pinned(name: str) -> list[str]:
    """The same, in the versions of constraints.txt."""
    wanted = {re.split(r"[<>=\[]", requirement)[0] for requirement in _group(name)}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    return [pin for pin in pins if pin.partition("==")[0] in wanted]


TESTED = ["core", *PLUGINS, "all"]


def _plugins_of(what: str) -> list[str]:
    """The plugins that these tests need."""
    if what == "all":
        return PLUGINS
    return [*BUILT_ON.get(what, []), what] if what in PLUGINS else []


def _groups_of(what: str) -> tuple[str, ...]:
    """The dependency groups that these tests need."""
    if what == "core":
        return ("test",)
    return ("test", "brokers", "docs") if what == "all" else ("test", "brokers")


def _tests_of(what: str, python: str) -> list[str]:
    """The tests that fit what is installed. With all installed: what needs all, and the faults."""
    if what == "core":
        return ["tests/core", "tests/conformance/test_memory.py"]
    if what in PLUGINS:
        return [f"tests/plugins/{what}"]
    together = ["tests/together", "tests/docs"]
    if python != NEWEST:
        return together
    return [*together, "tests/brokers", "tests/conformance", "tests/chaos"]


# What needs brokers on the newest Python only: `wheels` runs it on the oldest.
COMBINATIONS = [
    (python, what) for python in PYTHONS for what in TESTED if what == "core" or python == NEWEST
]


SHORT_LOAD = {"DISPYTCH_CONFORMANCE_LOAD": os.environ.get("DISPYTCH_CONFORMANCE_LOAD", "short")}
"""The conformance kit with a tenth of its events; `conformance` runs it in full."""


@nox.session
@nox.parametrize("python,what", COMBINATIONS, ids=[f"{what}-{py}" for py, what in COMBINATIONS])
def tests(session: nox.Session, what: str) -> None:
    """The core without any broker's client, each plugin alone with the core, all together."""
    _install(session, *_plugins_of(what), groups=_groups_of(what))
    tested = _tests_of(what, str(session.python))
    session.run("pytest", *tested, *session.posargs, env=SHORT_LOAD)


@nox.session(python=OLDEST)
@nox.parametrize("what", TESTED, ids=TESTED)
def wheels(session: nox.Session, what: str) -> None:
    """Build all packages, install the wheels in a fresh environment, run the tests against them.

    The core and each plugin with the lowest versions that they say they work with, all together
    with the pinned ones. What runs the tests is always pinned.
    """
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build", "hatchling", "uv")
    for package in ("core", *(f"plugins/{name}" for name in PLUGINS)):
        session.run(
            "python", "-m", "build", "--no-isolation", "-o", str(dist), package, silent=True
        )
    plugins = _plugins_of(what)
    names = ["dispytch", *(f"dispytch_{name}" for name in plugins)]
    built = [str(next(dist.glob(f"{name}-*.whl"))) for name in names]
    tools = [pin for group in _groups_of(what) for pin in _pinned(group)]
    versions = "constraints.txt" if what == "all" else _lowest(session, plugins, tools)
    extra = f"{built[0]}[cli]"
    session.install("-c", versions, "--reinstall", extra, *built[1:], *tools)
    session.run("pytest", *_tests_of(what, ""), *session.posargs, env=SHORT_LOAD)


def _lowest(session: nox.Session, plugins: list[str], tools: list[str]) -> str:
    """Constraints: the lowest versions of what core and plugins require themselves.

    As far as they go with these tools.
    """
    tmp = Path(session.create_tmp())
    lowest, wanted = str(tmp / "lowest.txt"), tmp / "tools.txt"
    wanted.write_text("\n".join(tools))
    packages = ("core", *(f"plugins/{name}" for name in plugins))
    own = [
        f"--no-emit-package={name}" for name in ("dispytch", *(f"dispytch-{n}" for n in plugins))
    ]
    session.run(
        "uv", "pip", "compile", "--resolution=lowest-direct", "--quiet", "--no-header",
        *own, f"--python-version={OLDEST}", "--extra=cli",
        *(f"{package}/pyproject.toml" for package in packages), str(wanted), "-o", lowest,
    )  # fmt: skip
    return lowest


@nox.session(python=NEWEST)
def demo(session: nox.Session) -> None:
    """A shop on SQLite in several processes, one of which is killed at work; needs no server."""
    _install(session, "sqlite", groups=())
    session.run("dispytch", "demo", *session.posargs)


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """Execute every snippet of README and docs."""
    _install(session, *PLUGINS, groups=_groups_of("all"))
    session.run("pytest", "tests/docs", *session.posargs)


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Ruff, linter and formatter."""
    session.install("-c", "constraints.txt", *_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=NEWEST)
def typing(session: nox.Session) -> None:
    """Mypy --strict and pyright, on the sources and on the type tests of the public API."""
    _install(session, *PLUGINS, groups=("test", "brokers", "typing"))
    session.run("mypy", *SOURCES)
    session.run("mypy", "tests/typing")
    session.run("mypy", "--config-file", "tests/typing/pydantic_plugin.ini", "tests/typing")
    session.run("mypy", "tests/brokers", "tests/chaos", "tests/conformance")
    session.run("pyright", *SOURCES, "tests/typing")


@nox.session(python=NEWEST)
def conformance(session: nox.Session) -> None:
    """The conformance kit on every backend, full loads; writes the table of guarantees.

    And 300 kills of processes that write to a file.
    """
    _install(session, *PLUGINS, groups=("test", "brokers"))
    report = Path(session.create_tmp()) / "results.xml"
    full = {"DISPYTCH_CONFORMANCE_LOAD": "full", "PYTHONPATH": "tests"}
    try:
        session.run(
            "pytest", "tests/conformance", "tests/chaos/test_sqlite_kills.py",
            f"--junitxml={report}", *session.posargs, env=full,
        )  # fmt: skip
    finally:  # what fails stands in the table, too
        session.run("python", "-m", "conformance.guarantees", str(report), env=full)


@nox.session(python=NEWEST)
def bench(session: nox.Session) -> None:
    """Measure beside bare clients and FastStream, on real brokers; writes docs/performance.md.

    Part by part (`-- kafka redis`), against what is recorded (`-- --check`), how cost grows
    (`-- --growth`).
    """
    _install(session, *PLUGINS, groups=("test", "brokers", "bench"))
    session.run("python", "-m", "bench", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(python=NEWEST)
def pins(session: nox.Session) -> None:
    """Write constraints.txt anew: the newest versions of everything, without a word on origin."""
    session.install("uv")
    projects = ["core/pyproject.toml", *(f"plugins/{name}/pyproject.toml" for name in PLUGINS)]
    own = [
        f"--no-emit-package={name}" for name in ("dispytch", *(f"dispytch-{n}" for n in PLUGINS))
    ]
    session.run(
        "uv", "pip", "compile", "--universal", "--upgrade", "--quiet", "--python-version=3.11",
        "--no-annotate", "--no-header", *own, *projects, "pyproject.toml",
        "--all-extras", "--group=dev", "-o", "constraints.txt",
    )  # fmt: skip
