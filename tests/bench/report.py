"""What was measured, as JSON, as the tables of docs/performance.md, and as a plot."""

import json
import math
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from bench import plot
from bench.measuring import BARE, LOOP, OURS, PEER, Samples, Work, half_width, percentile

DOCS = Path(__file__).parents[2] / "docs"
RECORD, GROWTH, PLOT, PAGE = "bench.json", "bench-growth.json", "bench.svg", "performance.md"
GREW = 1.15
"""A ratio that is larger by more than this factor is told."""

_PACKAGES = (
    "dispytch",
    "pydantic",
    "aiokafka",
    "aio-pika",
    "aiormq",
    "redis",
    "faststream",
    "uvloop",
)
_END = "<!-- end of what is generated -->"


@dataclass(frozen=True, slots=True)
class Report:
    """A run.

    Attributes:
        measured: when, with what, on what.
        works: what was measured.
    """

    measured: dict[str, Any]
    works: list[Work]

    @classmethod
    def of(cls, works: list[Work]) -> Self:
        """What was measured just now."""
        return cls(now(), works)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was written."""
        recorded = json.loads(path.read_text())
        return cls(recorded["measured"], [Work.of(each) for each in recorded["works"]])

    def write(self, path: Path) -> None:
        """With every repeat."""
        works = [json.loads(json.dumps(asdict(each)), parse_float=_rounded) for each in self.works]
        lines = ",\n  ".join(json.dumps(each) for each in works)
        measured = json.dumps(self.measured)
        path.write_text(f'{{"measured": {measured},\n "works": [\n  {lines}\n]}}\n')


def now() -> dict[str, Any]:
    """When it is, with what, on what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(memory),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rounded(text: str) -> float:
    return float(f"{float(text):.5g}")


# Tables


def table(report: Report) -> str:
    """The Markdown of a run: the ratios, and everything."""
    ratios = [_ratio_row(work) for work in _compared(report.works, BARE)]
    lines = [
        _begin("bench"),
        "",
        told(report.measured),
        "",
        f"![Time per event as ratio to the bare client]({PLOT})",
        "",
        _row("Work", "bare client: 1", PEER, OURS),
        _row("---", "---", "---", "---"),
        *ratios,
        *_loops(report.works),
        "",
        "### Everything",
        "",
        _row("", "time", "of it client CPU", "ratio", "guarantee"),
        _row("---", "---:", "---:", "---:", "---"),
    ]
    for work in report.works:
        lines.append(_row(f"**{work.title}**", "", "", "", ""))
        lines.extend(_full_row(work, samples) for samples in work.contenders)
    return "\n".join([*lines, "", _END])


def told(measured: dict[str, Any]) -> str:
    """When, with what, on what."""
    packages = ", ".join(f"{name} {number}" for name, number in measured["packages"].items())
    return (
        f"Measured on {measured['date']} with Python {measured['python']} on {measured['system']} "
        f"({measured['machine']}), {measured['processors']} processors, "
        f"{measured['memory_gib']} GiB; {packages}."
    )


def _compared(works: Sequence[Work], side: str) -> list[Work]:
    """Those compared with one of this side."""
    return [work for work in works if work.base is not None and work.base.side == side]


def _loops(works: Sequence[Work]) -> list[str]:
    """The table of event loops, if they were measured."""
    found = _compared(works, LOOP)
    if not found:
        return []
    names = [each.name for each in found[0].contenders]
    lines = ["", "### Event loops", "", _row("Dispytch's work", f"{names[0]}: 1", *names[1:])]
    lines.append(_row("---", *["---:"] * len(names)))
    for work in found:
        base, *others = work.contenders
        title = work.title.partition(": ")[2]
        time = f"{_number(statistics.median(base.walls))} {work.unit}"
        lines.append(_row(title, time, *(compared(work, base, each) for each in others)))
    return lines


def _ratio_row(work: Work) -> str:
    base = work.base
    if base is None:
        raise ValueError("there is nothing to compare with")
    first = f"{base.name}: {_number(statistics.median(base.walls))} {work.unit}"
    sides = [
        "<br>".join(
            f"{each.name}: {compared(work, base, each)}"
            for each in work.contenders
            if each.side == side
        )
        for side in (PEER, OURS)
    ]
    faster = [
        f"{each.name}: {compared(work, base, each)}"
        for each in work.contenders[1:]
        if each.side == BARE
    ]
    return _row(work.title, "<br>".join([first, *faster]), *(side or "-" for side in sides))


def compared(work: Work, base: Samples, samples: Samples) -> str:
    """The ratio; where it is about milliseconds, what comes on top."""
    if work.unit == "ms":
        more = [a - b for a, b in zip(samples.walls, base.walls, strict=True)]
        return f"{statistics.median(more):+,.3g} ms"
    ratios = samples.ratios(base)
    return f"**{statistics.median(ratios):.2f}** ±{half_width(ratios):.2f}"


def _full_row(work: Work, samples: Samples) -> str:
    base = work.base
    cpu = _number(statistics.median(samples.cpus)) if any(samples.cpus) else ""
    time = f"{_number(statistics.median(samples.walls))} ±{_number(half_width(samples.walls))}"
    if len(samples.walls) >= 100:
        time += f", p99 {_number(percentile(samples.walls))}"
    ratio = f"{statistics.median(samples.ratios(base)):.2f}" if base is not None else ""
    side = samples.side if samples.side in {PEER, OURS} else ""
    return _row(
        f"{side} {samples.name}".strip(), f"{time} {work.unit}", cpu, ratio, samples.guarantee
    )


def growth_table(report: Report) -> str:
    """The Markdown of how cost grows: a table for each dimension."""
    lines = [_begin("bench -- --growth"), "", told(report.measured), ""]
    dimension = ""
    for work in report.works:
        grows, _, what = work.title.partition(": ")
        if grows != dimension:
            dimension = grows
            lines += ["", _row(grows, *(each.name for each in work.contenders))]
            lines.append(_row("---", *["---:"] * len(work.contenders)))
        medians = [_number(statistics.median(each.walls)) for each in work.contenders]
        lines.append(_row(f"{what}, {work.unit}", *medians))
    return "\n".join([*lines, "", _END])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _begin(command: str) -> str:
    return f"<!-- generated: nox -s {command} -->"


# Files


def written(page: str, text: str) -> str:
    """The page with this table in the place of the one like it."""
    begin = re.escape(text.partition("\n")[0])
    found = re.compile(f"{begin}.*?{_END}", re.DOTALL)
    return found.sub(lambda _: text, page) if found.search(page) else f"{page}\n{text}\n"


def publish(works: list[Work], directory: Path, *, growth: bool) -> None:
    """Write a run as JSON, into the page, and as a plot."""
    directory.mkdir(parents=True, exist_ok=True)
    name = GROWTH if growth else RECORD
    Report.of(works).write(directory / name)
    report = Report.read(directory / name)  # what is rounded, as it will be read
    text = growth_table(report) if growth else table(report)
    page = directory / PAGE
    page.write_text(written(page.read_text() if page.exists() else "", text))
    if not growth:
        (directory / PLOT).write_text(plot.svg(report.works))


def compare_with(recorded: Report, works: Sequence[Work]) -> list[str]:
    """What grew by more than a measurement may, the most first."""
    before = {
        (work.title, each.side, each.name): statistics.median(each.ratios(work.base))
        for work in recorded.works
        if work.base is not None
        for each in work.contenders
    }
    grown: list[tuple[float, str]] = []
    for work in works:
        if work.base is None:
            continue
        for each in work.contenders:
            ratios = each.ratios(work.base)
            ratio = statistics.median(ratios)
            what = f"{work.title}: {each.side} {each.name}: {ratio:.2f} ±{half_width(ratios):.2f}"
            was = before.get((work.title, each.side, each.name))
            if was is None:
                grown.append((math.inf, f"{what}, not recorded"))
            elif ratio > was * GREW:
                grown.append((ratio / was, f"{what}, recorded {was:.2f} (+{ratio / was - 1:.0%})"))
    return [told for _, told in sorted(grown, key=lambda each: -each[0])]
