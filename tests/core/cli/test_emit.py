import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dispytch import (
    Backend,
    BackendConfig,
    Connection,
    EmitRejected,
    EmitUnknown,
    Producer,
    plugins,
)
from dispytch.producer import Outgoing


class StrictConfig(BackendConfig):
    priority: int = 0
    headers: dict[str, str] = Field(default_factory=dict)


class LenientConfig(BaseModel):
    priority: int = 0


class Picky(Producer):
    """Refuses bodies that ask for it, and keeps the rest."""

    backend = "picky"
    event_config: ClassVar[type[BaseModel] | None] = StrictConfig
    sent: ClassVar[list[Outgoing]] = []
    batches: ClassVar[list[int]] = []

    @classmethod
    def from_connection(cls, connection: Any, /) -> "Picky":
        return cls()

    async def send_messages(self, batch: Any, /) -> Any:
        self.batches.append(len(batch))
        return await super().send_messages(batch)

    async def send_message(self, out: Outgoing, /) -> None:
        what = json.loads(out.payload)["body"].get("fail")
        if what == "rejected":
            raise EmitRejected("too large", retriable=False)
        if what == "unknown":
            raise EmitUnknown("connection lost")
        if what == "own":
            raise RuntimeError("a bug of mine")
        if what == "late":
            await asyncio.Event().wait()
        self.sent.append(out)


@pytest.fixture
def picky() -> Any:
    Picky.sent.clear()
    Picky.batches.clear()
    plugins.register(
        Backend(name="picky", event_config=StrictConfig, producer=Picky, connection=Connection)
    )
    yield Picky
    plugins.unregister("picky")


def bodies(broker: Any) -> list[Any]:
    return [json.loads(message.payload)["body"] for message in broker.messages]


def test_emit_every_line_arrives(run, broker):
    """Each line of standard input is one event's body, in order, and the summary counts them."""
    url, kept = broker
    result = run("emit", url, "--topic", "t", "--type", "y", stdin='{"a":1}\n{"a":2}\n{"a":3}')
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("3 event(s): 3 accepted, 0 rejected, 0 unknown;")
    assert "per second" in result.stdout
    assert bodies(kept) == [{"a": 1}, {"a": 2}, {"a": 3}]
    envelope = json.loads(kept.messages[0].payload)
    assert list(envelope) == ["id", "type", "body", "timestamp"]
    assert envelope["type"] == kept.messages[0].type == "y"


def test_emit_a_file_arrives(run, broker, tmp_path: Path):
    """A file is read like standard input, a byte-order mark and Windows line ends included."""
    url, kept = broker
    file = tmp_path / "events.ndjson"
    file.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n\r\n{"a":2}\r\n')
    result = run("emit", url, str(file), "--topic", "t", "--type", "y")
    assert result.exit_code == 0
    assert "1 blank line(s) skipped" in result.stdout
    assert bodies(kept) == [{"a": 1}, {"a": 2}]


def test_emit_body_is_the_lines_own_bytes(run, broker):
    """Big integers, long decimals, unicode, escapes and an `id` of its own stay as they are."""
    url, kept = broker
    line = '{"id": "mine", "n": 123456789012345678901234567890, "d": 0.10, "s": "\u2028é\\u00e9"}'
    assert run("emit", url, "--topic", "t", "--type", "y", stdin=line.encode()).exit_code == 0
    (message,) = kept.messages
    assert b'"body":' + line.encode() + b',"timestamp"' in message.payload
    assert message.event_id != "mine"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    given_bodies=st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5),
    escaped=st.booleans(),
)
def test_emit_any_json_comes_back_equal(run, broker, given_bodies, escaped):
    """Whatever JSON object goes in, the body that arrives is equal to it."""
    url, kept = broker
    kept.clear()
    text = "\n".join(json.dumps(body, ensure_ascii=escaped) for body in given_bodies)
    result = run("emit", url, "--topic", "t", "--type", "y", stdin=text.encode())
    assert result.exit_code == 0, result.stderr
    assert bodies(kept) == given_bodies


def test_emit_options_name_fields(run, broker):
    """Topic, type, key and the config's strings may name fields of the line, nested ones too."""
    url, kept = broker
    config = '{"headers": {"repo": "{payload.repo.id}", "{n}": 1}, "literal": "{{x}}"}'
    result = run(
        "emit", url, "--topic", "gh.{event}", "--type", "{event}.v1",
        "--key", "{payload.repo.id}", "--config", config,
        stdin='{"event":"push","payload":{"repo":{"id":12345678901234567890}}}',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (message,) = kept.messages
    assert (message.topic, message.type, message.key) == (
        "gh.push",
        "push.v1",
        "12345678901234567890",
    )
    assert message.config.model_dump() == {
        "headers": {"repo": "12345678901234567890", "{n}": 1}, "literal": "{x}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": NaN, "t": "x", "k": 1}', "not JSON"),
        ('{"t": "x"}', "'k' has no value"),
        ('{"k": 1}', "'t' has no value"),
        ('{"t": "a.b", "k": 1}', "contains the delimiter"),
        ('{"t": null, "k": 1}', "is None"),
        ('{"t": "x", "k": 1.5}', "no one obvious text"),
        (b'{"t": "\xff", "k": 1}', "not JSON"),
    ],
)
def test_emit_bad_line_is_reported_with_its_number(run, broker, line, reason):
    """A line that makes no event is told with number and reason; its neighbours arrive."""
    url, kept = broker
    bad = line if isinstance(line, bytes) else line.encode()
    result = run(
        "emit", url, "--topic", "t.{t}", "--type", "y", "--key", "{k}",
        stdin=b"\n".join((b"", b'{"t":"y","k":2}', bad, b'{"t":"y","k":3}')),
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.startswith("line 3: rejected: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "3 event(s): 2 accepted, 1 rejected, 0 unknown" in result.stdout
    assert len(kept.messages) == 2


def test_emit_outcomes_are_told_apart(run, picky):
    """What the broker refused is rejected; what nobody can tell is unknown."""
    lines = '{"n":1}\n{"fail":"rejected"}\n{"fail":"unknown"}\n{"fail":"own"}\n{"n":5}\n'
    result = run("emit", "picky://", "--topic", "t", "--type", "y", stdin=lines)
    assert result.exit_code == 1
    assert "5 event(s): 2 accepted, 1 rejected, 2 unknown (may have arrived)" in result.stdout
    assert result.stderr.splitlines() == [
        "line 2: rejected: too large",
        "line 3: unknown, it may have arrived: connection lost",
        "line 4: unknown, it may have arrived: a bug of mine",
    ]


def test_emit_past_the_deadline_is_unknown(run, picky):
    """An event without an outcome within --timeout is unknown, and the command goes on."""
    result = run(
        "emit",
        "picky://",
        "--topic",
        "t",
        "--type",
        "y",
        "--timeout",
        "0.2",
        stdin='{"fail":"late"}\n',
    )
    assert result.exit_code == 1
    assert "0 accepted, 0 rejected, 1 unknown" in result.stdout
    assert "line 1: unknown" in result.stderr


def test_emit_after_a_failure_the_key_is_held_back(run, picky):
    """After a failure later events of that key are not sent, however far away; others are."""
    lines = ['{"k":1,"fail":"rejected"}', '{"k":2,"n":0}']
    lines += [f'{{"k":{key},"n":{n}}}' for n in range(1, 1500) for key in (1, 2)]
    result = run(
        "emit", "picky://", "--topic", "t", "--type", "y", "--key", "{k}", stdin="\n".join(lines)
    )
    assert "3000 event(s): 1500 accepted, 1500 rejected, 0 unknown" in result.stdout
    assert [json.loads(out.payload)["body"]["n"] for out in picky.sent] == list(range(1500))
    assert {out.key for out in picky.sent} == {"2"}
    assert "line 2999: rejected: not sent: an earlier event" in result.stderr


def test_emit_memory_is_bounded(run, picky):
    """However long the input, no more than a thousand events are under way together."""
    result = run("emit", "picky://", "--topic", "t", "--type", "y", stdin="{}\n" * 4500)
    assert result.exit_code == 0
    assert sum(picky.batches) == 4500
    assert max(picky.batches) == 1000


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        (
            '{"partition_key": "x"}',
            "StrictConfig has no field 'partition_key'; it has: priority, headers",
        ),
        ('{"priority": "high"}', "priority"),
        ('{"headers": {"a": "{b"}}', "lone '{'"),
    ],
)
def test_emit_wrong_config_is_reported_once(run, picky, config, reason):
    """A config that can't work is told once, before anything is sent."""
    result = run(
        "emit", "picky://", "--topic", "t", "--type", "y", "--config", config, stdin="{}\n{}\n"
    )
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: --config")
    assert reason in result.stderr
    assert picky.batches == []


def test_emit_config_of_a_lenient_schema_is_not_dropped(run, picky, monkeypatch):
    """A third party's schema that ignores unknown fields does not make us drop one silently."""
    monkeypatch.setattr(Picky, "event_config", LenientConfig)
    result = run("emit", "picky://", "--topic", "t", "--type", "y", "--config", '{"priorty": 1}')
    assert result.exit_code == 2
    assert "LenientConfig has no field 'priorty'" in result.stderr


@pytest.mark.parametrize("option", ["--topic", "--type", "--key"])
@pytest.mark.parametrize("value", ["", "{", "{a-b}", "{a.__class__!r}"])
def test_emit_wrong_template_is_reported_once(run, broker, option, value):
    """A template that can't be parsed is told once, before anything is sent."""
    options = {"--topic": "t", "--type": "y", "--key": "k", option: value}
    result = run(
        "emit", broker[0], *(part for pair in options.items() for part in pair), stdin="{}\n{}"
    )
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(f"Error: {option}")


@pytest.mark.parametrize(
    "args",
    [
        ["emit", "kafak://user:s3cret@host/x", "--topic", "t", "--type", "y"],
        ["emit", "memory://user:s3cret@host:99999", "--topic", "t", "--type", "y"],
        ["emit", "memory://host?x=s3cret", "--topic", "t", "--type", "y"],
        ["emit", "memory://user:s3c@ret@s3cret", "--topic", "t", "--type", "y"],
        ["emit", "file", "memory://user:s3cret@host", "--topic", "t", "--type", "y"],
        ["emit", "memory://", "memory://user:s3cret@host", "--topic", "t", "--type", "y"],
        ["emit", "memory://", "-", "memory://user:s3cret@host", "--topic", "t", "--type", "y"],
        ["memory://user:s3cret@host"],
        ["schema", "memory://user:s3cret@host"],
        ["emit", "--timeout", "memory://user:s3cret@host", "-", "--topic", "t", "--type", "y"],
    ],
)
def test_wrong_call_never_repeats_the_url(run, args):
    """A URL, wherever it was put by mistake, is not repeated: it may hold a password."""
    result = run(*args, stdin="")
    assert result.exit_code == 2
    assert "s3cret" not in result.stderr + result.stdout
    assert "Error: " in result.stderr


def test_emit_missing_file_is_reported(run, broker, tmp_path: Path):
    """A file that can't be opened ends the command before anything is sent."""
    result = run("emit", broker[0], str(tmp_path / "none"), "--topic", "t", "--type", "y")
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_emit_broker_out_of_reach_is_reported(run, picky, monkeypatch):
    """No connection within --timeout is told in one line, and nothing was sent."""

    async def hang(self: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Picky, "start", hang)
    result = run("emit", "picky://", "--topic", "t", "--type", "y", "--timeout", "0.1", stdin="{}")
    assert result.exit_code == 1
    assert "picky: not connected within 0.1 s" in result.stderr


def test_emit_on_a_terminal_shows_progress(tmp_path: Path):
    """On a terminal a bar tells how far it is; the summary stays on standard output alone."""
    file = tmp_path / "events.ndjson"
    file.write_text('{"a":1}\n' * 2500 + "bad\n")
    args = ["emit", "memory://", str(file), "--topic", "t", "--type", "y"]
    ours, theirs = os.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "dispytch", *args],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as done:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                shown += part
        assert done.stdout is not None
        summary = done.stdout.read()
    os.close(ours)
    assert done.returncode == 1
    assert summary.startswith(b"2501 event(s): 2500 accepted, 1 rejected, 0 unknown")
    assert b"100%" in shown
    assert b"2,500 accepted" in shown
    assert b"line 2501: rejected: not JSON" in shown


def test_emit_ctrl_c_tells_what_was_accepted(tmp_path: Path):
    """Ctrl-C, while input is awaited, ends the command with 130 and the figures so far."""
    log = tmp_path / "seen"
    (tmp_path / "spy.py").write_text(
        "import pathlib\n"
        "from dispytch import hookimpl\n"
        "from dispytch.cli import lines\n"
        "@hookimpl\n"
        "def dispytch_emitter_created(emitter):\n"
        "    read, calls = lines._read, []\n"
        "    def told(source):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 2:\n"
        f"            pathlib.Path({str(log)!r}).touch()\n"
        "        return read(source)\n"
        "    lines._read = told\n"
    )
    info = tmp_path / "spy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dispytch.hooks]\nspy = spy\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dispytch", "emit", "memory://", "--topic", "t", "--type", "y"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(b'{"a":1}\n')
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not log.exists():  # the first line is counted, more input is awaited
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        out, err = process.stdout.read(), process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert out.startswith(b"interrupted: 1 event(s): 1 accepted, 0 rejected, 0 unknown")
    assert b"Traceback" not in err
    assert b"Fatal" not in err
