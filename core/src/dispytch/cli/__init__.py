"""The `dispytch` command: running listeners, emitting, looking on, dead letters, what is installed.

Needs the extra `dispytch[cli]`; without it, `main` says so.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its status; the entry point of the script `dispytch`."""
    try:
        from dispytch.cli.app import app  # noqa: PLC0415 - it needs the extra

        app(prog_name="dispytch")
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print(
            f"dispytch: the command line needs {error.name}, which is not installed.\n"
            "Install it with: pip install 'dispytch[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
