"""The backend of docs/plugins.md, installed from the page into a fresh environment and used."""

import json
import re
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"^```\w+\n# file: (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_backend_of_the_page_is_installed_and_used(tmp_path: Path) -> None:
    """A reader who copies the seven files of the page has a backend that works."""
    package = tmp_path / "dispytch-spool"
    files = _FILE.findall((ROOT / "docs/plugins.md").read_text())
    assert len(files) == 7
    for name, text in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    venv.create(tmp_path / "env", with_pip=True)
    python = str(next((tmp_path / "env").glob("*/python")))

    def call(*args: str, stdin: str = "") -> str:
        done = subprocess.run(
            [python, *args],
            input=stdin, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    call("-m", "pip", "install", "-q", f"{ROOT / 'core'}[cli]", str(package))
    spooled = tmp_path / "events.ndjson"
    assert "offset" in call("-W", "error", str(package / "try_spool.py"), spooled.name)
    assert len(spooled.read_text().splitlines()) == 2

    (row,) = [each for each in json.loads(call("-m", "dispytch", "backends", "--check", "--json"))
              if each["name"] == "spool"]  # fmt: skip
    assert row == {
        "name": "spool", "distribution": "dispytch-spool", "version": "0.1.0",
        "schemes": ["spool"], "error": None,
    }  # fmt: skip
    assert "written beside the event" in call("-m", "dispytch", "schema", "spool")
    assert "fsync" in call("-m", "dispytch", "schema", "spool", "--connection")
    summary = call(
        "-m", "dispytch", "emit", f"spool://{spooled}", "--topic", "t", "--type", "y",
        "--config", '{"tag": "{a}"}', stdin='{"a": "x"}\n{"a": "y"}\n',
    )  # fmt: skip
    assert "2 accepted, 0 rejected, 0 unknown" in summary
    lines = [json.loads(line) for line in spooled.read_text().splitlines()[2:]]
    assert [(line["tag"], line["envelope"]["body"]) for line in lines] == [
        ("x", {"a": "x"}), ("y", {"a": "y"}),
    ]  # fmt: skip
