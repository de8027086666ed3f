"""Discovery: what is imported when, what is allowed, registration by code, observers."""

import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from dispytch import (
    Backend,
    BackendConfig,
    BackendNotFoundError,
    ConfigError,
    DuplicateBackendError,
    EventEmitter,
    IncompatiblePluginError,
    plugins,
)
from dispytch.memory import MemoryConnection, MemoryProducer

ROOT = Path(__file__).parents[3]


def test_backends_imports_no_plugin(site: Any):
    """`backends()` tells names, distributions, versions and schemes, and imports nothing."""
    site.plugin("bad", "raise SystemExit('imported')")
    site.run("""
    found = {info.name: info for info in plugins.backends()}
    assert found["good"] == plugins.BackendInfo("good", "dist-good", "1.0", ("good",), None)
    assert found["bad"].distribution == "dist-bad"
    assert found["memory"].schemes == ("memory",)
    assert list(found) == sorted(found)
    loaded = [name for name in sys.modules if name.endswith(("_plugin", "_client"))]
    assert not loaded, loaded
    """)


def test_lookup_imports_only_the_one_asked_for(site: Any):
    """Looking one schema up imports that plugin alone, and never its client."""
    site.plugin("other", "raise SystemExit('imported')")
    site.run("""
    assert plugins.event_config("good").__name__ == "Config"
    assert plugins.connection_schema("good").__name__ == "Connection"
    assert plugins.backend_for_url("good://host").name == "good"
    assert "good_plugin" in sys.modules
    assert "good_client" not in sys.modules and "other_plugin" not in sys.modules
    """)


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        ("good", {"memory", "good"}),
        (" good , other ", {"memory", "good", "other"}),
        ("", {"memory"}),
        ("nobody", {"memory"}),
    ],
)
def test_dispytch_plugins_allows_only_those(site: Any, allowed: str, names: set[str]):
    """DISPYTCH_PLUGINS limits backends and schemes to those named, and to the built-in one."""
    site.plugin("other")
    site.run(
        f"""
    assert {{info.name for info in plugins.backends()}} == {names!r}
    for name in ("good", "other", "memory"):
        for call, asked in ((plugins.get_backend, name), (plugins.backend_for_url, name + "://h")):
            try:
                assert call(asked).name == name
                assert name in {names!r}, name
            except BackendNotFoundError as error:
                assert name not in {names!r}, name
                assert "DISPYTCH_PLUGINS" in str(error)
    """,
        DISPYTCH_PLUGINS=allowed,
    )


def test_refresh_sees_what_was_installed_since(site: Any):
    """The scan is cached; `refresh()` makes the next look-up see new and repaired plugins."""
    site.plugin("bad", "raise ValueError")
    site.run(f"""
    import pathlib
    site = pathlib.Path({str(site.path)!r})
    source = (site / "good_plugin.py").read_text()
    def found(name):
        try:
            return plugins.get_backend(name).name == name
        except PluginError:
            return False
    assert found("good") and not found("late") and not found("bad")
    (site / "late_plugin.py").write_text(source.replace("good", "late"))
    (site / "bad_plugin.py").write_text(source.replace("good", "bad"))
    info = site / "late-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: late\\nVersion: 1\\n")
    (info / "entry_points.txt").write_text("[dispytch.backends]\\nlate = late_plugin\\n")
    assert not found("late")
    plugins.refresh()
    assert found("late") and found("bad") and found("good")
    """)


def test_one_plugin_may_offer_several_backends_and_schemes(site: Any):
    """A plugin that returns a list offers each by its name; a scheme finds the one it is of."""
    site.module(
        "many",
        """
        from dispytch import Backend, Connection, hookimpl
        def make(name, *schemes):
            return Backend(name=name, event_config=None, connection=Connection, schemes=schemes,
                           producer="good_client:Producer")
        @hookimpl
        def dispytch_backend():
            return [make("one"), make("two", "two+ssl")]
        """,
    )
    site.distribution(
        "dist-many",
        groups={
            "dispytch.backends": {"one": "many", "two": "many"},
            "dispytch.schemes": {
                "one": "many", "two": "many", "two+ssl": "many", "three": "many",
            },
        },
    )  # fmt: skip
    site.run("""
    assert plugins.get_backend("one").name == "one"
    assert plugins.get_backend("two").name == "two"
    assert plugins.backend_for_url("one://h").name == "one"
    assert plugins.backend_for_url("TWO+SSL://h").name == "two"
    assert EventEmitter.from_url("two+ssl://h").producer is not None
    try:
        plugins.backend_for_url("three://h")
    except BackendLoadError as error:
        assert "several backends, none of which names 'three'" in str(error), str(error)
    else:
        raise AssertionError
    """)


def test_backends_of_one_plugin_have_their_own_schemes(site: Any):
    """What entry points name in a module tells its backends apart, for what is allowed as well."""
    site.module(
        "apart",
        """
        from dispytch import Backend, Connection, hookimpl
        def make(name, *schemes):
            return Backend(name=name, event_config=None, connection=Connection, schemes=schemes,
                           producer="good_client:Producer")
        one, two = make("one", "one+ssl"), make("two", "two+ssl")
        @hookimpl
        def dispytch_backend():
            return [one, two]
        """,
    )
    site.distribution(
        "dist-apart",
        groups={
            "dispytch.backends": {"one": "apart:one", "two": "apart : two"},
            "dispytch.schemes": {
                "one": "apart:one", "one+ssl": "apart:one", "two": "apart:two", "two+ssl":
                "apart:two",
            },
        },
    )  # fmt: skip
    code = """
    for check in (False, True):
        schemes = {info.name: info.schemes for info in plugins.backends(check)}
        assert schemes["one"] == ("one", "one+ssl"), schemes
        assert schemes.get("two", ("two", "two+ssl")) == ("two", "two+ssl"), schemes
    assert plugins.backend_for_url("one+ssl://h") is plugins.get_backend("one")
    try:
        print(plugins.backend_for_url("two+ssl://h").name)
    except BackendNotFoundError:
        print("none")
    """
    assert site.run(code) == "two\n"
    assert site.run(code, DISPYTCH_PLUGINS="one") == "none\n"


# Registration by code


class Config(BackendConfig):
    x: int = 0


def backend(name: str, **more: Any) -> Backend:
    return Backend(
        name=name,
        event_config=Config,
        producer=MemoryProducer,
        connection=MemoryConnection,
        **more,
    )


def test_registered_backend_is_found_by_name_and_scheme():
    """A backend registered by code is found by name, by scheme and in the list."""
    plugins.register(backend("coded", schemes=("coded+ssl",)))
    try:
        assert plugins.event_config("coded") is Config
        assert plugins.backend_for_url("coded+ssl://h").name == "coded"
        assert isinstance(EventEmitter.from_url("coded://h").producer, MemoryProducer)
        (info,) = [info for info in plugins.backends() if info.name == "coded"]
        assert (info.distribution, info.schemes) == ("", ("coded", "coded+ssl"))
        with pytest.raises(DuplicateBackendError, match="registered already") as caught:
            plugins.register(backend("coded"))
        assert caught.value.name == "coded"
    finally:
        plugins.unregister("coded")
    with pytest.raises(BackendNotFoundError):
        plugins.get_backend("coded")
    with pytest.raises(BackendNotFoundError, match="was not registered by code"):
        plugins.unregister("coded")


def test_registered_backend_hides_an_installed_one():
    """A backend registered by code goes before the installed one of its name."""
    plugins.register(backend("memory"))
    try:
        assert plugins.event_config("memory") is Config
        assert len([info for info in plugins.backends() if info.name == "memory"]) == 1
    finally:
        plugins.unregister("memory")
    assert plugins.event_config("memory") is None


def test_register_refuses_another_api():
    """An incompatible backend can't be registered by code either."""
    with pytest.raises(IncompatiblePluginError, match="registered by code"):
        plugins.register(backend("future", api=99))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "Upper"}, "lower-case"),
        ({"event_config": dict}, "event_config must be a pydantic model class"),
        ({"connection": 3}, "connection must be a pydantic model class"),
        ({"producer": "no colon"}, "producer must be a class or 'module:Class'"),
        ({"consumer": ":x"}, "consumer must be a class or 'module:Class'"),
    ],
)
def test_backend_that_cannot_work_is_refused(changes: dict[str, Any], reason: str):
    """A Backend checks its parts when it is made."""
    given: dict[str, Any] = {"name": "x", "event_config": None, "producer": "m:C"}
    with pytest.raises(ConfigError, match=reason):
        Backend(**given | changes)


def test_without_any_metadata_registration_by_code_works(site: Any):
    """A frozen application, which has lost all metadata, registers what it ships."""
    site.run("""
    import importlib_metadata
    importlib_metadata.entry_points = lambda **_: []
    from dispytch import memory
    assert plugins.backends() == []
    plugins.register(memory.dispytch_backend())
    assert EventEmitter.from_url("memory://x").producer.backend == "memory"
    """)


# Observers

OBSERVER = """
from dispytch import hookimpl
seen = []
@hookimpl
def dispytch_emitter_created(emitter):
    seen.append(emitter)
"""


def test_observer_is_told_once_per_emitter(site: Any):
    """A package of the group dispytch.hooks is loaded with the first emitter, told of each once."""
    site.module("observer", OBSERVER)
    site.distribution(
        "dist-observer", groups={"dispytch.hooks": {"one": "observer", "again": "observer"}}
    )
    site.run("""
    plugins.backends()
    plugins.get_backend("good")
    assert "observer" not in sys.modules
    made = [EventEmitter.from_url("memory://x") for _ in range(3)]
    import observer
    assert observer.seen == made
    """)


def test_failing_observers_disturb_nothing(site: Any):
    """An observer that can't be imported, is misspelt or raises is logged; the others are told."""
    site.module("observer", OBSERVER)
    site.module("raising", OBSERVER + "    raise ValueError('no')")
    site.module("unimportable", "raise SystemExit(1)")
    site.module("misspelt", OBSERVER.replace("emitter_created", "emiter_created"))
    names = ("misspelt", "observer", "raising", "unimportable")
    site.distribution("dist-o", groups={"dispytch.hooks": {name: name for name in names}})
    site.run("""
    import logging
    class Keep(logging.Handler):
        def emit(self, record): kept.append(record.getMessage())
    kept = []
    logging.getLogger("dispytch").addHandler(Keep())
    emitters = [EventEmitter.from_url("memory://x"), EventEmitter.from_url("memory://x")]
    import observer, raising
    assert observer.seen == raising.seen == emitters
    text = "\\n".join(kept)
    assert text.count("'unimportable' (from dist-o 1.0) left out") == 1, text
    assert text.count("'misspelt' (from dist-o 1.0) left out") == 1, text
    assert text.count("dispytch_emitter_created of raising (dist-o 1.0) failed") == 2, text
    """)


def test_observer_not_allowed_is_not_loaded(site: Any):
    """DISPYTCH_PLUGINS limits observers as well."""
    site.module("observer", OBSERVER)
    site.distribution("dist-observer", groups={"dispytch.hooks": {"observer": "observer"}})
    code = "EventEmitter.from_url('memory://x'); print('observer' in sys.modules)"
    assert site.run(code, DISPYTCH_PLUGINS="good") == "False\n"
    assert site.run(code, DISPYTCH_PLUGINS="good,observer") == "True\n"


# Really installed

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "dispytch-{name}"
version = "{version}"
[project.entry-points."dispytch.backends"]
{name} = "{module}"
[project.entry-points."dispytch.schemes"]
{name} = "{module}"
[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""

PLUGIN = """
from dispytch import Backend, hookimpl
from dispytch.memory import MemoryConnection
@hookimpl
def dispytch_backend():
    return Backend(name="{name}", event_config=None, connection=MemoryConnection,
                   producer="dispytch.memory:MemoryProducer"{more})
"""


def test_freshly_installed_packages_are_found_as_described(tmp_path: Path):
    """Real packages in a fresh environment: healthy, broken, duplicate, incompatible, removed."""

    def package(name: str, module: str, source: str, version: str, folder: str) -> Path:
        path = tmp_path / folder
        path.mkdir()
        (path / f"{module}.py").write_text(source)
        text = PYPROJECT.format(name=name, module=module, version=version)
        (path / "pyproject.toml").write_text(text.replace('"dispytch-', f'"{folder}-', 1))
        return path

    healthy = PLUGIN.format(name="healthy", more="")
    packages = [
        package("healthy", "p_healthy", healthy, "1.1", "a"),
        package("broken", "p_broken", "import nobody_has_this", "1.2", "b"),
        package("twin", "p_twin", PLUGIN.format(name="twin", more=""), "1.3", "c"),
        package("twin", "p_twin2", PLUGIN.format(name="twin", more=""), "1.4", "d"),
        package("future", "p_future", PLUGIN.format(name="future", more=", api=9"), "1.5", "e"),
        package("gone", "p_gone", PLUGIN.format(name="gone", more=""), "1.6", "f"),
    ]
    venv.create(tmp_path / "env", with_pip=True)
    python = next((tmp_path / "env").glob("*/python"))

    def call(*args: str) -> str:
        done = subprocess.run(
            [str(python), *args], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("-m", "pip", "install", "-q", str(ROOT / "core"), *map(str, packages))
    next((tmp_path / "env").rglob("p_gone.py")).unlink()
    call(
        "-c",
        """
import asyncio
from dispytch import *
infos = {(info.name, info.distribution): info for info in plugins.backends(check=True)}
errors = {key: type(info.error).__name__ for key, info in infos.items() if info.error}
assert errors == {
    ("broken", "b-broken"): "BackendLoadError", ("gone", "f-gone"): "BackendLoadError",
    ("twin", "c-twin"): "DuplicateBackendError", ("twin", "d-twin"): "DuplicateBackendError",
    ("future", "e-future"): "IncompatiblePluginError",
}, errors
assert "b-broken 1.2" in str(infos["broken", "b-broken"].error)
class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"
async def main():
    async with EventEmitter.from_url("healthy://x") as emitter:
        assert (await emitter.emit(Ping())).topic == "pings"
asyncio.run(main())
""",
    )
