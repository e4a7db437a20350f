"""A bar chart of the times to first token, as SVG written by hand: no plotting library needed."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

_STAGES = (("vision", "#4c78a8"), ("select", "#e45756"), ("prefill", "#f58518"))
_WIDTH, _BAR, _GAP, _TOP = 520, 18, 8, 54
# Of bold letters, a little more than on average.
_LETTER = 7.2


def chart(summary: dict[str, Any]) -> str:
    """Return the SVG: one bar per pipeline and budget, its stages side by side, the fastest on top."""
    rows = sorted((row for row in summary["rows"] if row["ttft"] is not None), key=lambda row: row["ttft"])
    labels = [f"{row['label']}, {row['visual']} visual tokens" for row in rows]
    left = round(20 + _LETTER * max(map(len, labels)))
    longest = max(sum(row[stage] for stage, _ in _STAGES) for row in rows)
    height = _TOP + len(rows) * (_BAR + _GAP) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + _WIDTH + 110}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="20" font-size="14">Time to first token, ms ({escape(summary["processor"])}, '
        f"{summary['threads']} threads)</text>",
    ]
    for i, (stage, colour) in enumerate(_STAGES):
        x = 12 + 90 * i
        parts.append(f'<rect x="{x}" y="30" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="40">{stage}</text>')
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y, x = _TOP + i * (_BAR + _GAP), float(left)
        weight = ' font-weight="bold"' if row["ours"] else ""
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end"{weight}>{escape(label)}</text>')
        for stage, colour in _STAGES:
            width = row[stage] / longest * _WIDTH
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            x += width
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 13}">{row["ttft"]:,.0f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
