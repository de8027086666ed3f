"""`dispytch new-backend`: a package that is a backend already, to be turned into another."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from dispytch import plugins

__all__ = ["new_backend", "package_files"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 30  # characters: lines of the package hold the name, and are not to become too long
_FILES = (  # each written from the template of its last name
    "pyproject.toml",
    "README.md",
    "example.py",
    ".github/workflows/ci.yml",
    "src/dispytch_$module/__init__.py",
    "src/dispytch_$module/config.py",
    "src/dispytch_$module/plugin.py",
    "src/dispytch_$module/log.py",
    "src/dispytch_$module/group.py",
    "src/dispytch_$module/producer.py",
    "src/dispytch_$module/consumer.py",
    "src/dispytch_$module/py.typed",
    "tests/test_conformance.py",
)

_NEXT_STEPS = """\
$directory is a backend over a directory of files, which passes the conformance kit:

    cd $directory
    pip install -e '.[test,lint]'
    pytest
    python example.py events

To make it yours, replace log.py and group.py of src/dispytch_$module by the client of your broker:

    config.py      what an event and a URL may say
    producer.py    sending, and which errors mean that nothing was stored
    consumer.py    receiving, and settling
    plugin.py      what it promises: declare what it keeps, and pytest tells you
"""


@click.command("new-backend")
@click.argument("name")
@click.option(
    "--into", metavar="DIR", default=".", type=click.Path(exists=True, file_okay=False),
    help="Where to make the directory of the package; by default here.",
)  # fmt: skip
def new_backend(*, name: str, into: str) -> None:
    """Write a package for a new backend NAME, which works as it is.

    The package dispytch-NAME keeps events in a directory of files. It has tests, types and CI, and
    passes the conformance kit. Nothing that exists is overwritten.

    Exit status: 0 written; 2 called wrongly: nothing was written.
    """
    check_name(name)
    directory = Path(into, f"dispytch-{name}")
    try:
        directory.mkdir()
    except FileExistsError:
        raise click.UsageError(f"{directory} exists already") from None
    except OSError as error:
        raise click.UsageError(f"can't make {directory}: {error.strerror}") from error
    for path, text in package_files(name):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    click.echo(_filled(_NEXT_STEPS, name, directory=str(directory)), nl=False)


def check_name(name: str) -> None:
    """Refuse what can't be the name of a new backend.

    Raises:
        UsageError: saying why.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise click.UsageError(
            f"NAME {name!r}: lower-case letters, digits and single hyphens, a letter first, "
            f"at most {_LONGEST} characters; for example my-broker"
        )
    for info in plugins.backends():
        if name in (info.name, *info.schemes):
            raise click.UsageError(
                f"NAME {name!r} is taken: a backend of {info.distribution or 'this process'}, "
                "which is installed; two of one name can't be used"
            )


def package_files(name: str) -> Iterator[tuple[str, str]]:
    """The path and the text of each file of a backend's package."""
    templates = files("dispytch.cli") / "templates"
    for path in _FILES:
        template = templates / f"{path.rpartition('/')[2]}.tmpl"
        yield _filled(path, name), _filled(template.read_text(encoding="utf-8"), name)


def _filled(text: str, name: str, **more: str) -> str:
    """The text with `$name`, `$module` and `$prefix` (of classes) filled in; `$$` is a dollar."""
    prefix = "".join(part.capitalize() for part in name.split("-"))
    module = name.replace("-", "_")
    return Template(text).substitute(more, name=name, module=module, prefix=prefix)
