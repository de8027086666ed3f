"""The tests that the documentation names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
_FILE = re.compile(r"tests/[\w/*.]+")
_READERS = re.compile(r"^(?:#|<!--) file: (\S+)", re.MULTILINE)  # in the reader's package, not here
_TEST = re.compile(r"\btest_\w+(?=`)(?!\.py)")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_named_test_exists(page: Path) -> None:
    """A promise that names its test names one that is there."""
    text = page.read_text()
    for named in set(_FILE.findall(text)) - set(_READERS.findall(text)):
        assert list(ROOT.glob(named.rstrip("."))), named
    kit = "core/src/dispytch/testing/conformance/*.py"
    paths = [path for where in ("tests/**/test_*.py", kit) for path in ROOT.glob(where)]
    tests = "".join(path.read_text() for path in paths)
    for name in _TEST.findall(text):
        assert f"def {name}(" in tests or f"async def {name}(" in text, name
