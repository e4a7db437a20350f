"""A profile as one self-contained HTML file with charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.runtime.lab.charts import lines, stacked_bars
from divprune_edge.runtime.lab.html import page
from divprune_edge.runtime.lab.profiling.measure import DECODE
from divprune_edge.runtime.lab.profiling.report import ProfileReport
from divprune_edge.runtime.lab.profiling.tables import Table, tables

STYLE = "p.note { font-size: 13px; max-width: 80ch; }"


def profile_page(report: ProfileReport) -> str:
    """Return the page: what pruning saves, charts, tables, notes."""
    facts = ", ".join(f"{key} {value}" for key, value in report.about.items())
    body = [
        f"<p>{escape(facts)}</p>",
        *(f'<p class="verdict">{escape(saving.sentence)}</p>' for saving in report.savings),
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
    bounds = {
        f"{variant.title}: {row.stage}": {
            "roofline": row.bound.ms,
            "beyond it": row.times.median - row.bound.ms,
        }
        for variant in variants
        for row in variant.stages
        if row.bound is not None and row.times.median >= row.bound.ms
    }
    if bounds:
        charts.append(stacked_bars("Stages and their rooflines", "ms", bounds))
    if len(variants[0].totals) > 1:
        totals = {
            variant.title: [(n, total.median) for n, total in variant.totals.items()] for variant in variants
        }
        charts.append(lines("Whole answers", "tokens of the answer, logarithmic", "median ms", totals))
    if len(report.savings) > 1:
        factors = {"measured": [(float(s.tokens), s.measured) for s in report.savings]}
        limits = [(float(s.tokens), s.limit) for s in report.savings if s.limit is not None]
        if limits:
            factors["at most"] = limits
        charts.append(
            lines(
                "What pruning saves end to end", "tokens of the answer, logarithmic", "times as fast", factors
            )
        )
    return charts
