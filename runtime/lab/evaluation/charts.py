"""Charts of a sweep as SVG: accuracy against a cost, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.lab.charts import COLORS, WIDTH, Axis, svg
from divprune_edge.runtime.lab.evaluation.sweep import Cost, Entry, pareto_front

HEIGHT = 460
_APART = 6
# So many different costs at most get a tick each, where they are; more of them get round numbers.
_FEW = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 180, 40, 48

_BASELINES = {"random": "#8a8a92", "uniform": "#5c5c63", UNPRUNED: "#18181b"}


def scatter(entries: Sequence[Entry], cost: Cost, title: str, unit: str) -> str:
    """Return an SVG: accuracy in percent against ``cost``, one colour per selector; equal costs stand side by side."""
    costs = [cost(entry) for entry in entries]
    x = Axis(min(costs) / 1.3, max(costs) * 1.15, _LEFT, WIDTH - _RIGHT, log=True)
    low = min(entry.row.all.interval[0] for entry in entries) * 100
    high = max(entry.row.all.interval[1] for entry in entries) * 100
    y = Axis(max(0.0, low - 3), min(100.0, high + 3), HEIGHT - _BOTTOM, _TOP)
    colors = series_colors(entries)
    marks = sorted(set(costs)) if len(set(costs)) <= _FEW else x.ticks()
    parts = [_frame(x, y, title, unit, marks), *_bands(x, y, costs)]
    front = pareto_front(entries, cost)
    shifts = {id(entry): shift for entry, shift in zip(entries, _dodge(costs), strict=True)}
    path = " ".join(
        f"{x.at(cost(e)) + shifts[id(e)]:.1f},{y.at(e.row.all.accuracy * 100):.1f}" for e in front
    )
    parts.append(f'<polyline class="pareto" points="{path}"/>')
    for entry in entries:
        parts.append(
            _point(entry, x.at(cost(entry)) + shifts[id(entry)], y, colors[entry.row.name], entry in front)
        )
    unpruned = {entry.unpruned for entry in entries if entry.row.name == UNPRUNED}
    parts.append(_legend(colors, unpruned.pop() if len(unpruned) == 1 else "selector none"))
    return svg(title, HEIGHT, parts)


def _bands(x: Axis, y: Axis, costs: Sequence[float]) -> list[str]:
    """Return a band behind the points of each cost that several share: within it, left and right mean nothing."""
    bands = []
    for cost in dict.fromkeys(costs):
        if (alike := costs.count(cost)) > 1:
            width = _APART * (alike + 1)
            bands.append(
                f'<rect x="{x.at(cost) - width / 2:.1f}" width="{width}" y="{y.stop}" '
                f'height="{y.start - y.stop}" fill="#000" opacity=".04"/>'
            )
    return bands


def _dodge(costs: Sequence[float]) -> list[float]:
    """Return a shift in pixels for every point, so that those of one cost stand side by side."""
    shifts = []
    for i, cost in enumerate(costs):
        alike = [j for j, other in enumerate(costs) if other == cost]
        shifts.append(_APART * (alike.index(i) - (len(alike) - 1) / 2))
    return shifts


def series_colors(entries: Sequence[Entry]) -> dict[str, str]:
    """Return a colour for every selector."""
    colors: dict[str, str] = {}
    for name in dict.fromkeys(entry.row.name for entry in entries):
        free = len([n for n in colors if n not in _BASELINES])
        colors[name] = _BASELINES.get(name) or COLORS[free % len(COLORS)]
    return colors


def _frame(x: Axis, y: Axis, title: str, unit: str, marks: Sequence[float]) -> str:
    parts = [
        f'<text class="title" x="{_LEFT}" y="22">{escape(title)}</text>',
    ]
    for value in y.ticks():
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{y.at(value):.1f}" y2="{y.at(value):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x.start - 8}" y="{y.at(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    last = -100.0
    for value in marks:
        if x.at(value) - last < 34:
            continue
        last = x.at(value)
        parts.append(f'<line class="grid" x1="{last:.1f}" x2="{last:.1f}" y1="{y.start}" y2="{y.stop}"/>')
        parts.append(
            f'<text class="tick" x="{last:.1f}" y="{y.start + 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (x.start + x.stop) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(unit)}</text>'
    )
    parts.append(
        f'<text class="tick" transform="translate(14 {(y.start + y.stop) / 2}) rotate(-90)" text-anchor="middle">'
        "right answers, percent</text>"
    )
    return "".join(parts)


def _point(entry: Entry, left: float, y: Axis, color: str, on_front: bool) -> str:
    low, high = (y.at(100 * value) for value in entry.row.all.interval)
    top = y.at(100 * entry.row.all.accuracy)
    told = f"{entry.label} ({entry.precision}): {100 * entry.row.all.accuracy:.1f} %, {entry.row.tokens:.0f} tokens"
    if entry.row.ttft_ms:  # 0: it was not measured
        told += f", TTFT {entry.row.ttft_ms:.1f} ms"
    shape = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{6 if on_front else 4}" fill="{color}"/>'
    if on_front:
        shape += f'<circle class="ring" cx="{left:.1f}" cy="{top:.1f}" r="8.5"/>'
    return (
        f"<g><title>{escape(told)}</title>"
        f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{color}" '
        f'stroke-width="1.5" opacity=".45"/>{shape}</g>'
    )


def _legend(colors: dict[str, str], unpruned: str) -> str:
    parts, left = [], WIDTH - _RIGHT + 18
    for i, (name, color) in enumerate(colors.items()):
        top = _TOP + 12 + 20 * i
        shown = unpruned if name == UNPRUNED else name
        parts.append(f'<circle cx="{left}" cy="{top}" r="5" fill="{color}"/>')
        parts.append(f'<text class="tick" x="{left + 12}" y="{top + 4}">{escape(shown)}</text>')
    top = _TOP + 12 + 20 * len(colors)
    parts.append(f'<line class="pareto" x1="{left - 7}" x2="{left + 7}" y1="{top}" y2="{top}"/>')
    parts.append(f'<text class="tick" x="{left + 12}" y="{top + 4}">Pareto front</text>')
    parts.append(f'<text class="tick" x="{left - 7}" y="{top + 24}">bars: 95 %</text>')
    return "".join(parts)
