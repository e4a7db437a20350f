"""Rows of an evaluation as a console table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from divprune_edge.runtime.lab.evaluation.results import Row, Share
from divprune_edge.runtime.lab.evaluation.task_results import TaskRow

AnyRow = Row | TaskRow
"""Right answers among questions, or what a task of lmms-eval reports; a table holds one kind."""

NOTE = (
    "Times are medians in ms on this machine, from the image's file to the first token "
    "(TTFT) and to the end of the answer; the encoder gives every signal that any method needs. Coverage is the "
    "largest distance of a dropped token to its nearest kept one, smallest the smallest distance between kept ones, "
    "both 1 - cos; these and K are means over images."
)


def heads(rows: Sequence[AnyRow], *, by_type: bool = True) -> list[str]:
    """Return the column heads, with or without a column per question type."""
    return [
        "method",
        *_variant_head(rows),
        "K",
        *_score_heads(rows, by_type),
        "TTFT",
        "total",
        "coverage",
        "smallest",
    ]


def cells(rows: Sequence[AnyRow], *, by_type: bool = True) -> list[list[str]]:
    """Return the cells of every row as text."""
    return [
        [
            row.name + ("*" if row.reference else ""),
            *([row.variant or ""] if _variant_head(rows) else []),
            f"{row.tokens:.0f}",
            *_scores(row, rows, by_type),
            f"{row.ttft_ms:.1f}",
            f"{row.total_ms:.1f}",
            f"{row.coverage:.3f}",
            f"{row.smallest:.3f}",
        ]
        for row in rows
    ]


def _score_heads(rows: Sequence[AnyRow], by_type: bool) -> list[str]:
    names = _names(rows)
    return names or ["right", "95 %", "macro", *(_kinds(rows) if by_type else [])]


def _scores(row: AnyRow, rows: Sequence[AnyRow], by_type: bool) -> list[str]:
    if isinstance(row, TaskRow):
        return [str(row.scores.get(name, "")) for name in _names(rows)]
    low, high = row.all.interval
    shares = [row.kinds.get(kind, Share(0, 0)).accuracy for kind in (_kinds(rows) if by_type else [])]
    return [
        _percent(row.all.accuracy),
        f"{_percent(low)}–{_percent(high)}",
        _percent(row.macro),
        *map(_percent, shares),
    ]


def markdown(rows: Sequence[AnyRow]) -> str:
    """Return a Markdown table with its note."""
    head = heads(rows)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells(rows)]
    return "\n".join([*lines, "", footnote(rows), ""])


def footnote(rows: Sequence[AnyRow]) -> str:
    """Return what the numbers mean."""
    star = (
        " * Run as the NumPy reference: its times are not a graph's."
        if any(r.reference for r in rows)
        else ""
    )
    asked = max(row.questions if isinstance(row, TaskRow) else row.all.questions for row in rows)
    scores = (
        "scores as the task reports them, with one standard error where lmms-eval gives one."
        if _names(rows)
        else "percent. Intervals are 95 % Wilson."
    )
    return f"{asked} questions; {scores} {NOTE}{star}"


def to_json(rows: Sequence[AnyRow], facts: dict[str, Any]) -> str:
    """Return everything as indented JSON."""
    return json.dumps({**facts, "rows": [row.to_dict() for row in rows]}, indent=1, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[AnyRow]) -> str:
    """Return one line per row: shares as fractions with their interval, or a task's scores with their errors."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = _names(rows)
    middle = (
        [part for name in columns for part in (name, f"{name} error")]
        if columns
        else ["accuracy", "low", "high", "macro", *_kinds(rows)]
    )
    writer.writerow(["method", *_variant_head(rows), "name", "keep", "questions", *middle, *_MEASURES])
    for row in rows:
        measures = (row.ttft_ms, row.total_ms, row.coverage, row.smallest)
        asked, numbers = _numbers(row, rows)
        writer.writerow(
            [
                row.method,
                *([row.variant or ""] if _variant_head(rows) else []),
                row.name,
                row.keep,
                asked,
                *("" if value is None else f"{value:.6f}" for value in numbers),
                *(f"{value:.6f}" for value in measures),
                int(row.reference),
            ]
        )
    return stream.getvalue()


def _numbers(row: AnyRow, rows: Sequence[AnyRow]) -> tuple[int, list[float | None]]:
    if isinstance(row, TaskRow):
        found = [row.scores.get(name) for name in _names(rows)]
        return row.questions, [
            value for score in found for value in ((score.value, score.error) if score else (None, None))
        ]
    shares = [row.kinds[kind].accuracy if kind in row.kinds else None for kind in _kinds(rows)]
    return row.all.questions, [row.all.accuracy, *row.all.interval, row.macro, *shares]


_MEASURES = ("ttft_ms", "total_ms", "coverage", "smallest", "reference")


def _variant_head(rows: Sequence[AnyRow]) -> list[str]:
    """Return the head of the column that tells bundles apart; none where there is one bundle."""
    return ["bundle"] if any(row.variant for row in rows) else []


def _names(rows: Sequence[AnyRow]) -> list[str]:
    """Return the names of a task's scores; none where rows are shares of right answers."""
    return list(dict.fromkeys(name for row in rows if isinstance(row, TaskRow) for name in row.scores))


def _kinds(rows: Sequence[AnyRow]) -> list[str]:
    """Return the question types in order; none where there is only one."""
    kinds = list(dict.fromkeys(kind for row in rows if isinstance(row, Row) for kind in row.kinds))
    return kinds if len(kinds) > 1 else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
