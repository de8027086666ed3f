"""The shape of the core: imports run one way, modules stay small, public names are explained."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dispytch

ROOT = Path(dispytch.__file__).parent

# From the ground up; what stands on one floor does not import each other.
FLOORS: list[set[str]] = [
    {"errors"},
    {"template"},
    {"config", "topics"},
    {"producer", "consumer", "roundtrip", "url"},
    {"hooks", "backend", "event", "fields"},
    {"plugins", "envelope"},
    {"emitter", "listener"},
    {"memory"},
    {"cli", "testing", "__main__"},
]


def _floor(noun: str) -> int:
    return next(level for level, floor in enumerate(FLOORS) if noun in floor)


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative != Path("__init__.py"):
            yield relative.with_suffix("").parts[0], path


MODULES = list(_modules())


def _imported_nouns(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "dispytch":
            names = [f"dispytch.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("dispytch."))


@pytest.mark.parametrize(("noun", "path"), MODULES, ids=[path.stem for _, path in MODULES])
def test_module_imports_only_from_lower_floors(noun: str, path: Path) -> None:
    """Imports run one way and never back, so that each module can be read on its own."""
    if noun in {"cli", "testing", "__main__"}:
        return  # the top floor may use everything
    for imported in _imported_nouns(path):
        if imported != noun and not (noun == "hooks" and imported == "backend"):
            assert _floor(imported) < _floor(noun), f"{noun} imports {imported}"


@pytest.mark.parametrize("path", [path for _, path in MODULES], ids=str)
def test_module_keeps_to_the_budgets(path: Path) -> None:
    """At most 400 lines a module, 8 parameters a function, and no import of a plugin."""
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            assert len([a for a in arguments if a not in {"self", "cls"}]) <= 8, node.name
    assert not re.search(r"^\s*(import|from) dispytch_", text, re.MULTILINE)


def _public() -> Iterator[tuple[str, object]]:
    for info in pkgutil.walk_packages([str(ROOT)], "dispytch."):
        if info.name == "dispytch.__main__":
            continue
        module = importlib.import_module(info.name)
        yield info.name, module
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            if inspect.isclass(member) or inspect.isfunction(member):
                yield f"{info.name}.{name}", member
            if inspect.isclass(member):
                for attribute, value in vars(member).items():
                    if not attribute.startswith("_") and inspect.isfunction(value):
                        yield f"{info.name}.{name}.{attribute}", value


PUBLIC = dict(_public())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name: str) -> None:
    """No public name without an explanation."""
    assert inspect.getdoc(PUBLIC[name])


def test_every_public_name_of_the_package_is_there() -> None:
    """What `dispytch.__all__` promises can be imported."""
    for name in dispytch.__all__:
        assert getattr(dispytch, name) is not None
