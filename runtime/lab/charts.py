"""What charts are made of: axes, colours, and SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 180, 44, 48
_BAR, _GAP = 26, 14
_NUMBERS, _LEAST = 16, 3

# Told apart with normal and with red-green-blind sight (after Okabe and Ito); baselines are grey.
COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
    "#8c6bb1",
    "#b2912f",
    "#3b7d4f",
    "#a6506b",
)


@dataclass(frozen=True)
class Axis:
    """One direction of a chart: data from ``low`` to ``high`` on pixels ``start`` to ``stop``, maybe in logarithms."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Return round values within the axis."""
        if self.log:
            steps = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 3, 5, 7)]
            return [s for s in steps if self.low <= s <= self.high]
        raw = (self.high - self.low) / wanted
        unit = 10 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def svg(title: str, height: float, parts: Sequence[str]) -> str:
    """Return a whole SVG of :data:`WIDTH` by ``height`` on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{_STYLE}<rect class="paper" width="{WIDTH}" height="{height:g}"/>'
        f"{''.join(parts)}</svg>"
    )


def stacked_bars(title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """Return an SVG of horizontal bars: label -> series -> value, with a legend; the total stands behind each bar.

    Values are not negative; labels are cut to what there is room for. Below a bar of several series stand its numbers,
    and what is above nothing has a mark of :data:`_LEAST` pixels at least: nothing vanishes for being small.
    """
    series = list(dict.fromkeys(name for bar in bars.values() for name in bar))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(series)}
    left = min(300, 20 + 7 * max(len(label) for label in bars))
    most = max(sum(bar.values()) for bar in bars.values()) or 1.0
    x = Axis(0.0, most, left, WIDTH - 90)
    many = len(series) > 1
    top = 64 if many else _TOP
    parts = [f'<text class="title" x="16" y="24">{escape(title)}</text>']
    if many:
        parts.append(_legend_row(colors))
    step = _BAR + _GAP + (_NUMBERS if many else 0)
    for i, (label, bar) in enumerate(bars.items()):
        y, at = top + i * step, x.start
        cut = label if len(label) <= 40 else f"…{label[-39:]}"
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 18}" text-anchor="end">{escape(cut)}'
            f"<title>{escape(label)}</title></text>"
        )
        for name, value in bar.items():
            wide = max(x.at(value) - x.start, _LEAST if value > 0 else 0)
            parts.append(
                f'<rect x="{at:.1f}" y="{y}" width="{wide:.1f}" height="{_BAR}" fill="{colors[name]}">'
                f"<title>{escape(f'{label}, {name}: {value:.4g} {unit}')}</title></rect>"
            )
            at += wide
        parts.append(
            f'<text class="tick" x="{at + 6:.1f}" y="{y + 18}">{sum(bar.values()):.4g} {escape(unit)}</text>'
        )
        if many:
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in bar.items())
            parts.append(f'<text class="tick" x="{left}" y="{y + _BAR + 14}">{escape(numbers)}</text>')
    return svg(title, top + len(bars) * step + 6, parts)


def marked_bars(title: str, unit: str, mark: str, bars: Mapping[str, tuple[float, float | None]]) -> str:
    """Return an SVG of horizontal bars: label -> value, and where the line called ``mark`` crosses it, if anywhere."""
    left = min(300, 20 + 7 * max(len(label) for label in bars))
    most = max(max(value, line or 0.0) for value, line in bars.values()) or 1.0
    x = Axis(0.0, most, left, WIDTH - 170)
    parts = [f'<text class="title" x="16" y="24">{escape(title)}</text>']
    for i, (label, (value, line)) in enumerate(bars.items()):
        y = _TOP + i * (_BAR + _GAP)
        end = max(x.at(value), x.start + (_LEAST if value > 0 else 0))
        said = f"{value:.3g} {unit}"
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 18}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{x.start:.1f}" y="{y}" width="{end - x.start:.1f}" height="{_BAR}" fill="{COLORS[0]}">'
            f"<title>{escape(f'{label}: {said}')}</title></rect>"
        )
        if line is not None:
            said, at = f"{said}, {mark} {line:.3g}", x.at(line)
            end = max(end, at)
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 3}" y2="{y + _BAR + 3}" stroke="{COLORS[1]}" '
                'stroke-width="3"/>'
            )
        parts.append(f'<text class="tick" x="{end + 6:.1f}" y="{y + 18}">{escape(said)}</text>')
    return svg(title, _TOP + len(bars) * (_BAR + _GAP) + 6, parts)


def lines(
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    intervals: Mapping[str, Sequence[tuple[float, float]]] = MappingProxyType({}),
) -> str:
    """Return an SVG of lines with points: name -> (x, y), x in logarithms and above 0, y from 0.

    ``intervals`` are name -> (low, high) of each point, for those that have any; they are drawn as bars.
    """
    height = 360
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    ys += [high for pairs in intervals.values() for _, high in pairs]
    x = Axis(min(xs) / 1.2, max(xs) * 1.2, _LEFT + 10, WIDTH - _RIGHT, log=True)
    y = Axis(0.0, (max(ys) or 1.0) * 1.08, height - _BOTTOM, _TOP)
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(series)}
    parts = [f'<text class="title" x="16" y="24">{escape(title)}</text>', _grid(x, y, sorted(set(xs)))]
    for name, points in series.items():
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colors[name]}" stroke-width="2"/>')
        for (a, _), (low, high) in zip(points, intervals.get(name, ()), strict=False):
            # Beside each other where two series have the same x.
            at = x.at(a) + 3 * (2 * list(series).index(name) - len(series) + 1)
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y.at(low):.1f}" y2="{y.at(high):.1f}" stroke="{colors[name]}" '
                f'stroke-width="3" opacity=".45"><title>{escape(f"{name}: {low:.4g} to {high:.4g}")}</title></line>'
            )
        for a, b in points:
            parts.append(
                f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4" fill="{colors[name]}">'
                f"<title>{escape(f'{name}: {b:.4g} at {a:g}')}</title></circle>"
            )
    for i, (name, color) in enumerate(colors.items()):
        top, side = _TOP + 12 + 20 * i, WIDTH - _RIGHT + 18
        parts.append(f'<circle cx="{side}" cy="{top}" r="5" fill="{color}"/>')
        parts.append(f'<text class="tick" x="{side + 12}" y="{top + 4}">{escape(name)}</text>')
    middle = (x.start + x.stop) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text class="tick" transform="translate(14 {(y.start + y.stop) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    return svg(title, height, parts)


def _grid(x: Axis, y: Axis, columns: Sequence[float]) -> str:
    parts = []
    for value in y.ticks():
        at = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 8}" y="{y.at(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in columns:
        parts.append(
            f'<text class="tick" x="{x.at(value):.1f}" y="{y.start + 18}" text-anchor="middle">{value:g}</text>'
        )
    return "".join(parts)


def _legend_row(colors: Mapping[str, str]) -> str:
    parts, left = [], 16.0
    for name, color in colors.items():
        parts.append(f'<rect x="{left}" y="38" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text class="tick" x="{left + 18}" y="48">{escape(name)}</text>')
        left += 34 + 7 * len(name)
    return "".join(parts)


_STYLE = (
    "<style>.paper{fill:#fff}.grid{stroke:#e4e4e8}.title{font:600 15px system-ui,sans-serif;fill:#18181b}"
    ".tick{font:12px system-ui,sans-serif;fill:#52525b}.pareto{fill:none;stroke:#18181b;stroke-width:1.5;"
    "stroke-dasharray:5 4;opacity:.7}.ring{fill:none;stroke:#18181b;stroke-width:1.2}</style>"
)
