"""The group of all commands, and what becomes of their errors."""

import re
import sys
from importlib import import_module
from typing import Any

import click

from dispytch.errors import BackendNotFoundError, ConfigError, DispytchError

__all__ = ["App", "app"]

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit status: called wrongly, nothing was done; failed; ended by Ctrl-C."""

COMMANDS = ("run", "emit", "listen", "dlq", "backends", "schema", "new-backend", "demo")
"""Each in the module of its name, imported when it is needed: a worker needs no colours."""


class App(click.Group):
    """A group whose errors are one line, and never repeat a URL, which may hold a password."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; imports it."""
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"dispytch.cli.{module}"), module)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and exit with its status."""
        status: Any = FAILURE
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            if isinstance(error, click.UsageError) and error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
            click.echo(f"Error: {without_urls(error.format_message())}", err=True)
            status = error.exit_code
        except DispytchError as error:
            click.echo(f"Error: {error}", err=True)
            status = USAGE if isinstance(error, ConfigError | BackendNotFoundError) else FAILURE
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        sys.exit(status or 0)


def without_urls(text: str) -> str:
    """The text with everything that looks like a URL, or the end of one, left out."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://.*", "(a URL)", text, flags=re.DOTALL)


@click.group(
    cls=App, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="dispytch")
@click.pass_context
def app(context: click.Context) -> None:
    """Typed events over any broker: run a listener, emit, look on, replay what failed."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
