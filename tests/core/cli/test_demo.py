import json
import re
from typing import Any

import pytest
from pydantic import Field

from dispytch import Backend, BackendConfig, plugins
from dispytch.cli import demo
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


def test_demo_emits_and_handles(python):
    """With the core and its command line alone, everything happens that should; in plain text."""
    result = python("-m", "dispytch", "demo", DISPYTCH_PLUGINS="")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert rows["take_payment"][:2] == ["24", "0"]
    assert rows["send_parcel"][:2] == ["24", "2"]
    assert rows["tell_customer"][:2] == ["24", "0"]
    assert all(int(rows[step][2]) > 1 for step in demo.STEPS)  # concurrent
    assert "attempt 2 of 3 failed: CourierBusy" in result.stdout
    assert "dead letter  in orders.dlq" in result.stdout
    assert "reason: the body is no valid OrderPlaced: customer: Field required" in result.stdout
    assert result.stdout.count("  handled: ") >= 2  # counters on the way
    assert "Nothing was lost" in result.stdout
    assert "pip install 'dispytch[kafka,rabbitmq]'" in result.stdout
    assert "\x1b" not in result.stdout
    (found,) = re.findall(r"^\{$.*?^\}$", result.stdout, re.DOTALL | re.MULTILINE)
    envelope = json.loads(found)
    assert list(envelope) == ["id", "type", "body", "timestamp"]
    assert envelope["body"]["order"] == 1


def test_demo_on_a_terminal_is_alive_and_shows_the_config_each_backend_would_apply(
    run, both, monkeypatch
):
    """On a terminal the counters live; installed backends show what they would make of an event."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    result = run("demo")
    assert result.exit_code == 0
    assert "\x1b[2K" in result.stdout  # a line is cleared, to be written again
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)
    assert "━" * 24 in plain
    assert "kafka would apply partition_key='grace', headers={'source': 'demo'}" in plain
    assert "rabbitmq would apply priority=5, expiration=60.0" in plain
    assert "pip install" not in plain


def test_demo_with_a_broken_plugin_goes_on(run, both, monkeypatch):
    """A broken plugin is told in a line, and the others are shown; a second run is as the first."""
    real = plugins.event_config

    def event_config(name: str) -> Any:
        if name == "kafka":
            raise plugins.PluginError("it fell apart", name=name)
        return real(name)

    monkeypatch.setattr(plugins, "event_config", event_config)
    result = run("demo")
    assert result.exit_code == 0
    assert "kafka: it fell apart" in result.stdout
    assert result.stdout.count("rabbitmq would apply") == 1


def test_demo_that_does_not_do_what_it_says_has_status_1(run, monkeypatch):
    """What should have happened and did not is told, and the status is 1."""
    append = demo.MemoryBroker.append

    def losing(self: Any, message: Any) -> int:
        if message.type == "parcel_sent" and json.loads(message.payload)["body"]["order"] == 7:
            return 0
        return append(self, message)

    monkeypatch.setattr(demo.MemoryBroker, "append", losing)
    result = run("demo")
    assert result.exit_code == 1
    assert "This should not have happened: tell_customer did not handle [7]" in result.stdout
    assert "Nothing was lost" not in result.stdout
