"""`dispytch new-backend`, without installing what it writes: tests/docs does."""

from pathlib import Path

import pytest


def test_new_backend_writes_a_package_and_tells_what_to_do(run, tmp_path):
    """The files are there under their names, and what to do next is printed."""
    result = run("new-backend", "my-broker", "--into", str(tmp_path))
    assert result.exit_code == 0
    package = tmp_path / "dispytch-my-broker"
    written = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert written == {
        "pyproject.toml", "README.md", "example.py", ".github/workflows/ci.yml",
        "tests/test_conformance.py", "src/dispytch_my_broker/py.typed",
        *(f"src/dispytch_my_broker/{name}.py" for name in (
            "__init__", "config", "plugin", "log", "group", "producer", "consumer")),
    }  # fmt: skip
    assert f"cd {package}\n" in result.stdout
    assert "pip install -e '.[test,lint]'" in result.stdout
    assert "src/dispytch_my_broker" in result.stdout


def test_new_backend_fills_in_the_name(run, tmp_path):
    """Name, module and classes are the new backend's, and nothing is left to fill in."""
    run("new-backend", "my-broker2", "--into", str(tmp_path))
    package = tmp_path / "dispytch-my-broker2"
    texts = {path.name: path.read_text() for path in package.rglob("*") if path.is_file()}
    assert "class MyBroker2Producer(Producer):" in texts["producer.py"]
    assert 'producer="dispytch_my_broker2.producer:MyBroker2Producer"' in texts["plugin.py"]
    assert '\nmy-broker2 = "dispytch_my_broker2.plugin"\n' in texts["pyproject.toml"]
    assert "${{ matrix.python }}" in texts.pop("ci.yml")
    assert not [name for name, text in texts.items() if "$" in text]


def test_new_backend_writes_here_by_default(run, tmp_path, monkeypatch):
    """Without --into, the package is made in the working directory."""
    monkeypatch.chdir(tmp_path)
    assert run("new-backend", "folder").exit_code == 0
    assert Path("dispytch-folder/pyproject.toml").exists()


@pytest.mark.parametrize(
    "name",
    ["", "Folder", "my_broker", "9p", "a-", "a--b", "a.b", "a+b", "a/b", "..", "ä", "a" * 31],
)
def test_new_backend_refuses_what_is_no_name(run, tmp_path, name):
    """A name that can't be a backend, a package and a module is refused, saying what can."""
    result = run("new-backend", name, "--into", str(tmp_path))
    assert result.exit_code == 2
    assert "lower-case letters" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_backend_refuses_a_name_that_is_taken(run, tmp_path):
    """The name of an installed backend is refused, naming its distribution."""
    result = run("new-backend", "memory", "--into", str(tmp_path))
    assert result.exit_code == 2
    assert "'memory' is taken: a backend of dispytch" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_backend_overwrites_nothing(run, tmp_path):
    """A directory of the package's name is left as it is."""
    there = tmp_path / "dispytch-folder" / "pyproject.toml"
    there.parent.mkdir()
    there.write_text("mine")
    result = run("new-backend", "folder", "--into", str(tmp_path))
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert there.read_text() == "mine"
    assert list(there.parent.iterdir()) == [there]


def test_new_backend_into_nowhere_is_refused(run, tmp_path):
    """A directory that is not there is a wrong call."""
    result = run("new-backend", "folder", "--into", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
