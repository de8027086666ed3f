"""Runs client code where it cannot touch the event loop of the test.

The same coroutine runs either in a thread (quick: topics, queues) or in a fresh interpreter (for
reading back what the code under test wrote, free of anything that it did to this process).
"""

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

_TESTS = Path(__file__).resolve().parent.parent


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on an event loop of its own, whether or not the caller has one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def in_process(function: Callable[..., Coroutine[Any, Any, T]], *args: object, timeout: float) -> T:
    """Call a coroutine function of one of our modules in another Python."""
    done = subprocess.run(
        [sys.executable, "-m", "brokers.elsewhere"],
        input=pickle.dumps((function, args)),
        capture_output=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(_TESTS)},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{function.__qualname__} failed:\n{done.stderr.decode()}")
    return cast("T", pickle.loads(done.stdout))


if __name__ == "__main__":
    _function, _args = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps(asyncio.run(_function(*_args))))
