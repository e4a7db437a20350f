"""A profile as one self-contained HTML file with charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.runtime.lab.charts import lines, marked_bars, stacked_bars
from divprune_edge.runtime.lab.html import page
from divprune_edge.runtime.lab.profiling.limit import Interval
from divprune_edge.runtime.lab.profiling.measure import DECODE
from divprune_edge.runtime.lab.profiling.report import ProfileReport
from divprune_edge.runtime.lab.profiling.tables import Table, tables

STYLE = "p.note { font-size: 13px; max-width: 80ch; }"


def profile_page(report: ProfileReport) -> str:
    """Return the page: a sentence, charts, tables, and what was special about this run; docs/profiling.md explains."""
    facts = ", ".join(f"{key} {value}" for key, value in report.about.items())
    body = [
        f"<p>{escape(facts)}</p>",
        f'<p class="verdict">{escape(report.summary)}</p>',
        f'<div class="charts">{"".join(_charts(report))}</div>',
        *(table_html(table) for table in tables(report)),
        notes_html(report.notes),
    ]
    return page(f"Profile of {report.variants[0].bundle}", "\n".join(body), STYLE)


def write_file(text: str, path: Path, option: str) -> None:
    """Write a text file.

    Raises:
        UserError: it cannot be written; the sentence names the option.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror or error}): choose another {option}.",
            code="output-unwritable",
        ) from None


def table_html(table: Table) -> str:
    """Return a heading and a table."""
    head = "".join(f"<th>{escape(text)}</th>" for text in table.heads)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n'
        "</tbody></table></div>"
    )


def notes_html(notes: Sequence[str]) -> str:
    """Return a paragraph per note."""
    return "\n".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _charts(report: ProfileReport) -> list[str]:
    variants = report.variants
    first = {
        variant.title: {row.stage: row.times.median for row in variant.stages if row.stage != DECODE}
        for variant in variants
    }
    charts = [stacked_bars("To the first token, medians", "ms", first)]
    many = len(variants) > 1
    stages = {
        f"{variant.title}: {row.stage}" if many else row.stage: (
            row.times.median,
            None if row.bound is None else row.bound.ms,
        )
        for variant in variants
        for row in variant.stages
    }
    charts.append(marked_bars("Stages, medians, and their rooflines", "ms", "at least", stages))
    if len(variants[0].totals) > 1:
        totals = {
            variant.title: [(float(n), median) for n, median in report.totals_of(variant)]
            for variant in variants
        }
        charts.append(lines("Whole answers", "tokens of the answer, logarithmic", "median ms", totals))
    if len(report.savings) > 1:
        drawn: dict[str, list[Interval | None]] = {
            "at most": [s.limit for s in report.savings],
            "measured": [s.measured for s in report.savings],
        }
        at = [float(s.tokens) for s in report.savings]
        shown = {name: [i for i in found if i is not None] for name, found in drawn.items()}
        factors = {
            name: list(zip(at, [i.median for i in found], strict=True))
            for name, found in shown.items()
            if found
        }
        quartiles = {name: [(i.low, i.high) for i in found] for name, found in shown.items()}
        charts.append(
            lines(
                "What pruning saves end to end, medians and quartiles over rounds",
                "tokens of the answer, logarithmic",
                "times as fast",
                factors,
                quartiles,
            )
        )
    return charts
