"""A chart of what `bench.schedules` measured: accuracy against the KV cache and the time to first token, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from divprune_edge.runtime.lab.charts import COLORS, WIDTH, Axis, svg

HEIGHT, _TOP, _BOTTOM, _LEFT, _GAP = 400, 66, 52, 56, 44
_COLORS = {
    "unpruned": "#18181b",
    "divprune alone": COLORS[0],
    "schedule alone": COLORS[4],
    "both": COLORS[2],
    "fitted alone": COLORS[3],
}
_CONTROLS = ("random", "uniform")
_SHIFTS = {"divprune alone": -8, "both": 8, "fitted alone": 16}
"""Pixels between kinds that have the same cache."""

Row = dict[str, Any]


def chart(rows: Sequence[Row]) -> str:
    """Return the SVG: a panel for each cost, relative to the unpruned model; hollow points chose by nothing.

    In the first panel kinds stand beside each other, which means nothing.
    """
    title = "Pruning before the language model, inside it, and both: right answers in percent"
    half = (WIDTH - _LEFT - _GAP - 16) / 2
    lows, highs = zip(*(row["interval"] for row in rows), strict=True)
    y = Axis(100 * min(lows) - 1, 100 * max(highs) + 1, HEIGHT - _BOTTOM, _TOP)
    parts = [f'<text class="title" x="16" y="24">{escape(title)}</text>', _legend()]
    costs: dict[str, Callable[[Row], float]] = {
        "KV cache of visual tokens, share": lambda row: float(row["cache_rows"]),
        "time to first token, share": lambda row: float(row["ttft_share"]),
    }
    for i, (name, cost) in enumerate(costs.items()):
        start = _LEFT + i * (half + _GAP)
        whole = cost(rows[0])
        x = Axis(0.0, max(cost(row) for row in rows) / whole * 1.04, start, start + half)
        parts.append(_frame(x, y, name, numbered=i == 0))
        for row in sorted(rows, key=lambda row: row["method"] in _CONTROLS):
            shift = 0 if i else _SHIFTS.get(row["kind"], 0)
            parts.append(_point(row, x.at(cost(row) / whole) + shift, y))
    return svg(title, HEIGHT, parts)


def _legend() -> str:
    parts, left = [], 16.0
    for name, color in _COLORS.items():
        parts.append(f'<circle cx="{left + 5}" cy="44" r="5" fill="{color}"/>')
        parts.append(f'<text class="tick" x="{left + 16}" y="48">{escape(name)}</text>')
        left += 34 + 6.6 * len(name)
    parts.append(f'<circle cx="{left + 5}" cy="44" r="4" fill="#fff" stroke="#52525b" stroke-width="1.6"/>')
    parts.append(f'<text class="tick" x="{left + 16}" y="48">random, uniform</text>')
    return "".join(parts)


def _frame(x: Axis, y: Axis, name: str, *, numbered: bool) -> str:
    parts = []
    for value in y.ticks():
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.stop:.1f}" y1="{at}" y2="{at}"/>')
        if numbered:
            place = f'x="{x.start - 8:.1f}" y="{y.at(value) + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="tick" {place}>{value:g}</text>')
    for value in x.ticks():
        place = f'x="{x.at(value):.1f}" y="{y.start + 18:.1f}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{value:g}</text>')
    middle = (x.start + x.stop) / 2
    parts.append(
        f'<text class="tick" x="{middle:.1f}" y="{y.start + 38:.1f}" text-anchor="middle">{escape(name)}</text>'
    )
    return "".join(parts)


def _point(row: Row, left: float, y: Axis) -> str:
    color, top = _COLORS[row["kind"]], y.at(100 * row["right"] / row["questions"])
    low, high = (y.at(100 * end) for end in row["interval"])
    fill = "#fff" if row["method"] in _CONTROLS else color
    layers = "/".join(map(str, row["visual_tokens"]))
    told = f"{row['kind']}, {row['method']} ({layers}): {100 * row['right'] / row['questions']:.1f} %"
    return (
        f"<g><title>{escape(told)}</title>"
        f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{color}" opacity=".25"/>'
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{fill}" stroke="{color}" stroke-width="1.6"/></g>'
    )
