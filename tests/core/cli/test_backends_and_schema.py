import datetime as dt
import enum
import json
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from dispytch import Backend, BackendConfig, Connection, plugins
from dispytch.memory import MemoryProducer


class Mode(enum.IntEnum):
    LAZY = 1
    EAGER = 2


class DemoConfig(BackendConfig):
    """A config with a field of each kind."""

    name: str = Field(description="what it is\n    called")
    mode: Mode = Mode.EAGER
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    expiration: dt.timedelta = Field(dt.timedelta(seconds=1.5), description="seconds")
    kind: Literal["a", "b"] = "a"
    headers: dict[str, str | bytes] = Field(default_factory=dict)
    hosts: tuple[str, ...] = Field((), max_length=3)


class DemoConnection(Connection):
    linger_ms: int = Field(5, description="milliseconds a batch waits")


@pytest.fixture
def registered() -> Any:
    plugins.register(
        Backend(
            name="demo",
            event_config=DemoConfig,
            connection=DemoConnection,
            producer="a_client_nobody_has:Producer",
        )
    )
    plugins.register(Backend(name="bare", event_config=DemoConfig, producer=MemoryProducer))
    yield
    plugins.unregister("demo")
    plugins.unregister("bare")


def test_backends_lists_what_is_installed(run):
    """Name, distribution, version and schemes of each, one a line."""
    result = run("backends")
    assert result.exit_code == 0
    header, *rows = (line.split() for line in result.stdout.splitlines())
    assert header == ["name", "distribution", "version", "schemes"]
    assert ["memory", "dispytch"] in [row[:2] for row in rows]


def test_backends_json_is_readable_by_programs(run):
    """--json gives a list of objects."""
    (memory,) = [
        each for each in json.loads(run("backends", "--json").stdout) if each["name"] == "memory"
    ]
    assert memory.keys() == {"name", "distribution", "version", "schemes"}
    assert memory["schemes"] == ["memory"]


def test_backends_check_names_the_broken(run, registered, monkeypatch):
    """--check loads each, tells the reason of the broken one, and exits with 1."""
    monkeypatch.setattr(plugins, "backends", lambda check: [
        plugins.BackendInfo("good", "dist", "1", ("good",)),
        plugins.BackendInfo("bad", "dist", "1", ("bad",), plugins.PluginError("it fell apart")),
    ])  # fmt: skip
    result = run("backends", "--check")
    assert result.exit_code == 1
    assert result.stderr == "bad: it fell apart\n"
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["works", "yes", "no"]
    checked = json.loads(run("backends", "--check", "--json").stdout)
    assert [each["error"] for each in checked] == [None, "it fell apart"]


def test_backends_check_of_healthy_ones_succeeds(python):
    """With only what is built in, --check exits with 0."""
    result = python("-m", "dispytch", "backends", "--check", DISPYTCH_PLUGINS="")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1].split()[0] == "memory"


def test_schema_is_a_readable_table(run, registered):
    """Each field with its type, limits, default and description, one a line; no client needed."""
    result = run("schema", "demo")
    assert result.exit_code == 0
    assert [line.split("  ") for line in result.stdout.splitlines()]
    table = "\n".join(" | ".join(filter(None, (cell.strip() for cell in line.split("  "))))
                      for line in result.stdout.splitlines())  # fmt: skip
    assert table == (
        "field | type | default | description\n"
        "name | str | required | what it is called\n"
        "mode | Mode | 2\n"
        "priority | int (>= 0, <= 255) | None | None\n"
        "expiration | timedelta | 1.5 s | seconds\n"
        "kind | 'a' | 'b' | 'a'\n"
        "headers | dict[str, str | bytes] | dict()\n"
        "hosts | tuple[str, ...] (length <= 3) | ()"
    )


def test_schema_connection_describes_the_url(run, registered):
    """--connection tells the parts of the URL and its options."""
    result = run("schema", "demo", "--connection")
    assert result.exit_code == 0
    fields = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert list(fields) == ["scheme", "user", "password", "hosts", "path", "linger_ms"]
    assert all(len(line.split("  ")) >= 4 for line in fields.values())
    assert fields["linger_ms"].endswith("milliseconds a batch waits")


def test_schema_json_is_json_schema(run, registered):
    """--json gives JSON Schema, by the names the config takes."""
    schema = json.loads(run("schema", "demo", "--json").stdout)
    assert schema["properties"]["expiration"]["description"] == "seconds"
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False


def test_schema_of_memory_takes_any_config(run):
    """The memory backend says that it takes any config, also as JSON Schema."""
    assert run("schema", "memory").stdout.startswith("memory takes any config")
    assert "takes any config" in json.loads(run("schema", "memory", "--json").stdout)["description"]


def test_schema_without_urls_says_so(run, registered):
    """A backend that takes no URL has no --connection to show."""
    result = run("schema", "bare", "--connection")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bare takes no URL" in result.stderr


def test_schema_that_json_schema_cannot_describe_says_so(run, monkeypatch):
    """A field beyond JSON Schema is an error in one line."""

    class Odd(BaseModel):
        call: type[Any] | Any = Field(default=None)
        hook: Annotated[Any, Field()] = None

    Odd.__pydantic_core_schema__ = {"type": "is-instance", "cls": int}  # type: ignore[assignment]
    monkeypatch.setattr(plugins, "event_config", lambda name: Odd)
    result = run("schema", "odd", "--json")
    assert result.exit_code == 1
    assert "JSON Schema can't describe" in result.stderr


def test_schema_unknown_backend_says_what_is_installed(run):
    """A name nobody offers exits with 2 and says what there is."""
    result = run("schema", "memroy")
    assert result.exit_code == 2
    assert "did you mean 'memory'" in result.stderr


def test_schema_imports_no_client(python):
    """Looking a schema up imports the plugin, not what it sends with."""
    code = (
        "import sys\n"
        "from dispytch import plugins, Backend, BackendConfig\n"
        "class C(BackendConfig): x: int = 1\n"
        "plugins.register(Backend(name='c', event_config=C, producer='sqlite3:Connection'))\n"
        "from dispytch.cli.app import app\n"
        "try: app(['schema', 'c'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'sqlite3' not in sys.modules\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_table_on_a_terminal_is_coloured(run, registered, monkeypatch):
    """On a terminal the same table has colour; a bracket in a type is no markup."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    result = run("schema", "demo")
    assert "\x1b[" in result.stdout
    assert "dict[str, str | bytes]" in result.stdout
    assert sys.stdout is not None
