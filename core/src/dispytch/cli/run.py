"""`dispytch run`: a listener as a service, in this process or in several."""

import asyncio
import dataclasses
import importlib
import inspect
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dispytch.cli.supervisor import KILLED, Supervisor
from dispytch.listener import EventListener

__all__ = ["load", "run"]

logger = logging.getLogger("dispytch")

_THREADS_TIMEOUT = 1.0  # seconds for threads to notice that nothing more comes


@click.command()
@click.argument("target", metavar="MODULE:LISTENER")
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes; one that dies is reported and started again.",
)
@click.option("--reload", is_flag=True, help="Start again when a Python file in DIR changes.")
@click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    metavar="DIR",
    help="Where MODULE is looked for first.  [default: the working directory]",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="What handlers get to finish at the end; instead of the listener's own.",
)
@click.option(
    "--loop",
    type=click.Choice(["asyncio", "uvloop"]),
    default="asyncio",
    show_default=True,
    help="The event loop that handlers run on; uvloop must be installed.",
)
@click.option("--worker", is_flag=True, hidden=True, help="Standard input is the supervisor.")
def run(
    *,
    target: str,
    workers: int,
    reload: bool,
    app_dir: Path,
    drain_timeout: float | None,
    loop: str,
    worker: bool,
) -> None:
    """Run a listener: the name LISTENER in MODULE, or a function there that returns one.

    SIGTERM or Ctrl-C ends it in order: nothing more is taken in, handlers under way finish. A
    second one ends it at once.

    Exit status: 0 ended in order, 1 ended by an error, 2 called wrongly, 3 handlers did not finish
    in time and were killed.
    """
    loop_factory = _loop_factory(loop)
    if workers > 1 or reload:
        command = [sys.executable, "-m", "dispytch", "run", target, "--worker"]
        command += ["--app-dir", str(app_dir), "--loop", loop]
        if drain_timeout is not None:
            command += ["--drain-timeout", str(drain_timeout)]
        log_to_stderr()
        supervisor = Supervisor(command, workers, watched=app_dir if reload else None)
        sys.exit(asyncio.run(supervisor.run()))
    listener = load(target, app_dir)
    if drain_timeout is not None:
        listener.options = dataclasses.replace(listener.options, drain_timeout=drain_timeout)
    log_to_stderr()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_supervised(listener) if worker else listener.run())
    finally:
        _end_threads()


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None: asyncio does."""
    if loop == "asyncio":
        return None
    try:
        module: Any = importlib.import_module(loop)
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{loop} is not installed: pip install {loop}") from error
    factory: Callable[[], asyncio.AbstractEventLoop] = module.new_event_loop
    return factory


def log_to_stderr() -> None:
    """Log what matters, unless the application has set up logging itself."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)-8s %(process)d %(name)s: %(message)s",
        )


def load(target: str, app_dir: Path) -> EventListener:
    """Import a listener.

    Args:
        target: `"module:name"`; the name of a listener, or of a function that returns one.
        app_dir: where modules are looked for first.

    Raises:
        click.UsageError: there is no such thing.
        click.ClickException: the module or the function failed; its traceback was printed.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise click.UsageError(
            f"expected MODULE:LISTENER, for example app.main:listener, not {target!r}"
        )
    sys.path.insert(0, str(app_dir.resolve()))
    module = _import(module_name, app_dir)
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise click.UsageError(f"{module_name} has no {path!r}{_listeners_in(module)}")
        found = getattr(found, name)
    if not isinstance(found, EventListener) and _is_factory(found):
        try:
            found = found()
        except Exception as error:
            traceback.print_exc()
            raise click.ClickException(f"{target} failed; see above") from error
    if not isinstance(found, EventListener):
        raise click.UsageError(
            f"{target} is no EventListener but {_kind(found)}{_listeners_in(module)}"
        )
    return found


def _import(name: str, app_dir: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise click.UsageError(
                f"no module {error.name!r} in {app_dir.resolve()}, nor installed; "
                "--app-dir says where it is"
            ) from error
        traceback.print_exc()
        raise click.ClickException(f"{name} can't be imported; see above") from error
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise click.ClickException(f"{name} can't be imported; see above") from error


def _is_factory(found: Any) -> bool:
    if not inspect.isroutine(found) or inspect.iscoroutinefunction(found):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        return False
    return True


def _kind(found: Any) -> str:
    if inspect.isroutine(found):
        kind = "coroutine function" if inspect.iscoroutinefunction(found) else "function"
        return f"the {kind} {found.__name__}{inspect.signature(found)}"
    if inspect.isclass(found):
        return f"the class {found.__name__}"
    return f"a {type(found).__name__}"


def _listeners_in(module: Any) -> str:
    names = [name for name, each in vars(module).items() if isinstance(each, EventListener)]
    return f"; listeners there: {', '.join(names)}" if names else "; there is no listener there"


async def _supervised(listener: EventListener) -> None:
    """Run, and stop when the supervisor is gone; standard input is its end of a socket."""
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as supervisor:

        def gone() -> None:
            loop.remove_reader(supervisor)
            stopping.append(loop.create_task(listener.stop()))

        supervisor.send(f"{listener.options.drain_timeout}".encode())
        loop.add_reader(supervisor, gone)
        try:
            await listener.run()
        finally:
            loop.remove_reader(supervisor)


def _end_threads() -> None:
    """Leave at once where a handler on a thread did not finish: Python would wait for it."""
    deadline = time.monotonic() + _THREADS_TIMEOUT
    threads = [each for each in threading.enumerate() if each.name.startswith("dispytch-handler")]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if stuck := sum(thread.is_alive() for thread in threads):
        logger.error("%d handler(s) on threads did not finish: killed", stuck)
        logging.shutdown()
        os._exit(KILLED)
