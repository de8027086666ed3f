import json
import re
from typing import Any

import pytest
from pydantic import Field

from dispytch import Backend, BackendConfig, plugins
from dispytch.memory import MemoryProducer


class Kafkaesque(BackendConfig):
    partition_key: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)


class Rabbity(BackendConfig):
    priority: int | None = None
    expiration: float | None = None
    headers: dict[str, str] = Field(default_factory=dict)


@pytest.fixture
def both() -> Any:
    for name, schema in (("kafka", Kafkaesque), ("rabbitmq", Rabbity)):
        plugins.register(Backend(name=name, event_config=schema, producer=MemoryProducer))
    yield
    for name in ("kafka", "rabbitmq"):
        plugins.unregister(name)


def envelopes(text: str) -> list[Any]:
    return [
        json.loads(found) for found in re.findall(r"^\{$.*?^\}$", text, re.DOTALL | re.MULTILINE)
    ]


def test_demo_with_the_core_alone_shows_envelopes(python):
    """With the core and its command line only, the demo shows real envelopes, in plain text."""
    result = python("-m", "dispytch", "demo", DISPYTCH_PLUGINS="")
    assert (result.returncode, result.stderr) == (0, "")
    shown = envelopes(result.stdout)
    assert [each["type"] for each in shown] == ["user_created", "user_created", "user_renamed"]
    assert all(list(each) == ["id", "type", "body", "timestamp"] for each in shown)
    assert "topic user.1.events  key 1" in result.stdout
    assert "pip install 'dispytch[kafka,rabbitmq]'" in result.stdout
    assert "\x1b" not in result.stdout


def test_demo_shows_the_config_each_backend_would_apply(run, both):
    """With backends installed, each event shows the config of each, its placeholders filled."""
    result = run("demo")
    assert result.exit_code == 0
    assert (
        result.stdout.count("kafka would apply partition_key='1', headers={'source': 'demo'}") == 2
    )
    assert result.stdout.count("kafka would apply partition_key='2'") == 1
    assert result.stdout.count("rabbitmq would apply priority=5, expiration=60.0") == 3
    assert "pip install" not in result.stdout


def test_demo_on_a_terminal_is_coloured(run, both, monkeypatch):
    """On a terminal the demo is in colour, and says the same."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    result = run("demo")
    assert "\x1b[" in result.stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert len(envelopes("\n".join(line.rstrip() for line in plain.splitlines()))) == 3


def test_demo_with_a_broken_plugin_goes_on(run, both, monkeypatch):
    """A broken plugin is told in a line, and the others are shown."""
    real = plugins.event_config

    def event_config(name: str) -> Any:
        if name == "kafka":
            raise plugins.PluginError("it fell apart", name=name)
        return real(name)

    monkeypatch.setattr(plugins, "event_config", event_config)
    result = run("demo")
    assert result.exit_code == 0
    assert "kafka: it fell apart" in result.stdout
    assert result.stdout.count("rabbitmq would apply") == 3
