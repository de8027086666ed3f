import sys
from pathlib import Path

import pytest

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_main_without_the_extra_says_what_to_install(python, missing):
    """Without click or rich the command says what to install, and exits with 1, no traceback."""
    code = BLOCK.format(name=missing) + "from dispytch.cli import main; main()"
    result = python("-c", code)
    assert (result.returncode, result.stdout) == (1, "")
    assert "pip install 'dispytch[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_main_another_missing_module_is_not_hidden(python):
    """Only click and rich are blamed on the extra; any other missing module stays an error."""
    code = "import sys; sys.modules['dispytch.cli.backends'] = None\n"
    code += "from dispytch.cli import main; main()"
    result = python("-c", code)
    assert "pip install" not in result.stderr
    assert "ModuleNotFoundError" in result.stderr


def test_script_and_module_are_the_same_command(python):
    """`dispytch` and `python -m dispytch` give the same help."""
    script = Path(sys.executable).parent / "dispytch"
    by_module = python("-m", "dispytch", "--help")
    by_script = python(str(script), "--help")
    assert by_module.returncode == by_script.returncode == 0
    assert by_module.stdout == by_script.stdout
    for command in ("backends", "demo", "emit", "schema"):
        assert command in by_module.stdout


def test_main_without_arguments_shows_help(run):
    """No command is no error: it shows what there is."""
    result = run()
    assert result.exit_code == 0
    assert "Commands:" in result.stdout


def test_version_is_the_distributions(run):
    """--version tells the installed version."""
    from importlib.metadata import version

    assert version("dispytch") in run("--version").stdout


def test_import_dispytch_imports_no_cli(python):
    """`import dispytch` imports neither the command line nor what it needs."""
    code = (
        "import sys, dispytch\n"
        "late = {'click', 'rich', 'dispytch.cli', 'dispytch.testing'} & sys.modules.keys()\n"
        "assert not late, late\n"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
