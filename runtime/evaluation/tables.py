"""Rows of an evaluation as a console table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from divprune_edge.runtime.evaluation.results import Row, Share

NOTE = (
    "Intervals are 95 % Wilson. Times are medians in ms on this machine, from the picture's file to the first token "
    "(TTFT) and to the end of the answer; the encoder gives every signal that any method needs. Coverage is the "
    "largest distance of a dropped token to its nearest kept one, smallest the smallest distance between kept ones, "
    "both 1 - cos, means over pictures."
)


def heads(rows: Sequence[Row], *, by_type: bool = True) -> list[str]:
    """Return the column heads, with or without a column per question type."""
    kinds = _kinds(rows) if by_type else []
    return ["method", "K", "right", "95 %", "macro", *kinds, "TTFT", "total", "coverage", "smallest"]


def cells(rows: Sequence[Row], *, by_type: bool = True) -> list[list[str]]:
    """Return the cells of every row as text."""
    kinds = _kinds(rows) if by_type else []
    table = []
    for row in rows:
        low, high = row.all.interval
        shares = [_percent(row.kinds.get(kind, Share(0, 0)).accuracy) for kind in kinds]
        table.append(
            [
                row.name + ("*" if row.reference else ""),
                str(row.keep),
                _percent(row.all.accuracy),
                f"{_percent(low)}–{_percent(high)}",
                _percent(row.macro),
                *shares,
                f"{row.ttft_ms:.1f}",
                f"{row.total_ms:.1f}",
                f"{row.coverage:.3f}",
                f"{row.smallest:.3f}",
            ]
        )
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table with its note."""
    head = heads(rows)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells(rows)]
    return "\n".join([*lines, "", footnote(rows), ""])


def footnote(rows: Sequence[Row]) -> str:
    """Return what the numbers mean."""
    questions = max(row.all.questions for row in rows)
    star = (
        " * Run as the NumPy reference: its times are not a graph's."
        if any(r.reference for r in rows)
        else ""
    )
    return f"{questions} questions; percent. {NOTE}{star}"


def to_json(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """Return everything as indented JSON."""
    return json.dumps({**facts, "rows": [row.to_dict() for row in rows]}, indent=1, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Return one line per row: shares as fractions, the interval in two columns."""
    kinds = _kinds(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["method", "name", "keep", "questions", "accuracy", "low", "high", "macro", *kinds, *_MEASURES]
    )
    for row in rows:
        shares = [f"{row.kinds[kind].accuracy:.6f}" if kind in row.kinds else "" for kind in kinds]
        measures = (row.ttft_ms, row.total_ms, row.coverage, row.smallest)
        low, high = row.all.interval
        numbers = [f"{value:.6f}" for value in (row.all.accuracy, low, high, row.macro)]
        writer.writerow(
            [
                row.method,
                row.name,
                row.keep,
                row.all.questions,
                *numbers,
                *shares,
                *(f"{value:.6f}" for value in measures),
                int(row.reference),
            ]
        )
    return stream.getvalue()


_MEASURES = ("ttft_ms", "total_ms", "coverage", "smallest", "reference")


def _kinds(rows: Sequence[Row]) -> list[str]:
    """Return the question types in order; none where there is only one."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.kinds))
    return kinds if len(kinds) > 1 else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
