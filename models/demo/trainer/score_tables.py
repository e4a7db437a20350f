"""Measurements as Markdown tables."""

from __future__ import annotations

from typing import Any


def tables(result: dict[str, Any]) -> str:
    """The tables of `evaluate.measure`'s result."""
    parts = [_types(result), _selectors(result), _grid(result)]
    return "\n".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{_percent(bounds[0])}–{_percent(bounds[1])}"


def _types(result: dict[str, Any]) -> str:
    lines = [
        f"{result['pictures']} held-out pictures, {result['questions']} questions, all 576 visual tokens, percent.",
        "",
        "| type | questions | accuracy | 95 % interval | chance | no image | shuffled image |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in result["types"].items():
        cells = [_percent(row[key]) for key in ("chance", "no_image", "shuffled_image")]
        accuracy = f"{_percent(row['accuracy'])} | {_interval(row['interval'])}"
        lines.append(f"| {kind} | {row['questions']} | {accuracy} | " + " | ".join(cells) + " |")
    macro = result["macro"]
    cells = [_percent(macro[key]) for key in ("chance", "no_image", "shuffled_image")]
    accuracy = f"**{_percent(macro['accuracy'])}** | "
    lines.append(f"| **macro** | {result['questions']} | {accuracy} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _selectors(result: dict[str, Any]) -> str:
    types = list(result["types"])
    head = ["selector", "kept", "macro", "all questions", "95 % interval", *types]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in result["selectors"]:
        cells = [row["selector"], str(row["budget"]), _percent(row["macro"]), _percent(row["micro"])]
        cells += [_interval(row["interval"]), *(_percent(row["types"][kind]) for kind in types)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _grid(result: dict[str, Any], columns: int = 3) -> str:
    """Budget, accuracy over all questions and correct endings, several budgets per line."""
    rows = result["grid"]
    height = -(-len(rows) // columns)
    head = "| " + " | ".join(["K", "accuracy", "endings"] * columns) + " |"
    lines = [head, "|" + "---|" * (3 * columns)]
    for line in range(height):
        cells = []
        for column in range(columns):
            place = column * height + line
            if place < len(rows):
                row = rows[place]
                cells += [str(row["budget"]), _percent(row["micro"]), _percent(row["endings"])]
            else:
                cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
