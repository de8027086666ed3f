"""`dispytch backends`: what is installed, and whether it works."""

import click

from dispytch import plugins
from dispytch.cli.output import print_json, print_table

__all__ = ["backends"]


@click.command()
@click.option("--check", is_flag=True, help="Load each one; status 1 if any is broken.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def backends(context: click.Context, *, check: bool, as_json: bool) -> None:
    """List the installed backends: name, distribution, version and URL schemes.

    Imports none of them, unless told to --check.
    """
    found = plugins.backends(check=check)
    broken = [info for info in found if info.error is not None]
    if as_json:
        print_json(
            [
                {
                    "name": info.name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "schemes": list(info.schemes),
                }
                | ({"error": info.error and str(info.error)} if check else {})
                for info in found
            ]
        )
    else:
        print_table(
            ("name", "distribution", "version", "schemes", *(("works",) if check else ())),
            [
                (
                    info.name,
                    info.distribution,
                    info.version,
                    ", ".join(info.schemes),
                    *(("no" if info.error else "yes",) if check else ()),
                )
                for info in found
            ],
        )
        for info in broken:
            click.echo(f"{info.name}: {info.error}", err=True)
    context.exit(1 if broken else 0)
