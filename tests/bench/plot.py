"""The plot: a bar for each ratio, on a logarithmic scale; what ends left of 1 is faster."""

import math
import statistics
from collections.abc import Iterator, Sequence
from html import escape

from bench.measuring import BARE, OURS, PEER, Work

LEFT, WIDTH, ROW, GAP, TOP = 390, 470, 15, 9, 46
FROM, TO = 0.1, 100.0
COLOURS = {PEER: "#b0b7c3", OURS: "#2563eb"}


def svg(works: Sequence[Work]) -> str:
    """All that is compared with a bare client."""
    bars: list[str] = []
    height = TOP
    for work in works:
        if work.base is None or work.base.side != BARE or work.unit == "ms":
            continue
        rows = list(_rows(work))
        middle = height + len(rows) * ROW / 2 + 4
        bars.append(_text(LEFT - 12, middle, work.title, "end"))
        for side, name, ratio in rows:
            start, end = sorted((_x(1.0), _x(ratio)))
            bars.append(
                f'<rect x="{start:.1f}" y="{height + 2}" width="{max(end - start, 1):.1f}" '
                f'height="{ROW - 4}" fill="{COLOURS[side]}"/>'
            )
            after = max(end, _x(1.0)) + 5
            bars.append(_text(after, height + ROW - 4, f"{ratio:.2f} {name}", "start", 10))
            height += ROW
        height += GAP
    lines = [_line(value, height) for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)]
    total = LEFT + WIDTH + 130
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height + 10}"',
            '  font-family="sans-serif" font-size="12">',
            f'<rect width="{total}" height="{height + 10}" fill="white"/>',
            _text(LEFT, 18, "time per event, as ratio to the bare client (logarithmic)", "start"),
            *_legend(total),
            *lines,
            *bars,
            "</svg>\n",
        ]
    )


def _rows(work: Work) -> Iterator[tuple[str, str, float]]:
    base = work.base
    for each in work.contenders:
        if each.side in COLOURS and base is not None:
            yield each.side, each.name, statistics.median(each.ratios(base))


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, FROM), TO) / FROM) / math.log(TO / FROM)
    return LEFT + share * WIDTH


def _line(value: float, height: float) -> str:
    colour = "#111827" if value == 1 else "#e5e7eb"
    x = _x(value)
    line = f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height}" stroke="{colour}"/>'
    return line + _text(x, TOP - 10, f"{value:g}", "middle", 10)


def _legend(total: float) -> Iterator[str]:
    for number, (side, colour) in enumerate(COLOURS.items()):
        x = total - 190 + number * 95
        yield f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 15, 18, side, "start")


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="#111827">{escape(text)}</text>'
