"""Measures, prints, and writes docs/bench.json, its plot, and the tables of the page.

python -m nox -s bench                    everything
python -m nox -s bench -- kafka redis     only these, see PARTS
python -m nox -s bench -- --check         what grew by more than 15 % over what is recorded
python -m nox -s bench -- --growth        how cost grows
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bench import backlog, growth, kafka, local, loops, rabbitmq, redis, report, sqlite
from bench.measuring import ROUNDS, Work

PARTS: dict[str, Callable[[], Awaitable[list[Work]]]] = {
    "local": local.measure,
    "kafka": kafka.measure,
    "rabbitmq": rabbitmq.measure,
    "redis": redis.measure,
    "sqlite": sqlite.measure,
    "backlog": backlog.measure,
    "loops": loops.measure,
}


async def measured(parts: Sequence[str]) -> list[Work]:
    """What these parts measure."""
    works = []
    for name in parts:
        begun = time.monotonic()
        works += await PARTS[name]()
        print(f"{name}: {time.monotonic() - begun:.0f} s\n", flush=True)
    return works


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="only these; not written")
    parser.add_argument("--out", type=Path, help="where to write; docs/, if all was measured")
    parser.add_argument("--check", action="store_true", help="compare with what is recorded")
    parser.add_argument("--growth", action="store_true", help="measure how cost grows")
    options = parser.parse_args()
    everything = not options.parts and not options.check
    out = options.out or (report.DOCS if everything else None)
    print(f"Python {sys.version.split()[0]}; medians of {ROUNDS} rounds, ± half their middle half")
    if options.growth:
        works = asyncio.run(growth.measure())
    else:
        works = asyncio.run(measured(options.parts or list(PARTS)))
    if options.check:
        recorded = report.Report.read(report.DOCS / report.RECORD)
        print(f"Recorded: {report.told(recorded.measured)}\nNow: {report.told(report.now())}")
        grown = report.compare_with(recorded, works)
        print("\n".join(grown) or f"nothing grew by more than {report.GREW - 1:.0%}")
    if out is not None:
        report.publish(works, out, growth=options.growth)


if __name__ == "__main__":
    main()
