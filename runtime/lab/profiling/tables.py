"""A profile's tables, as cells for the console and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from divprune_edge.runtime.lab.profiling.report import ProfileReport, VariantReport

MIB = 2**20


@dataclass(frozen=True)
class Table:
    """A title, column heads, and rows of cells; the first column is text, the others are numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(report: ProfileReport) -> list[Table]:
    """Return a table of stages for each variant, and one of whole answers."""
    return [*(_stages(variant) for variant in report.variants), _answers(report)]


def print_report(report: ProfileReport) -> None:
    """Print tables, the lines about savings, and the notes on standard output."""
    print_tables(report.about, tables(report), [saving.sentence for saving in report.savings], report.notes)


def print_tables(
    about: Mapping[str, str], tables: Sequence[Table], sentences: Sequence[str], notes: Sequence[str]
) -> None:
    """Print facts, tables, the sentences that matter most, and notes on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as Drawn

    console = Console(markup=False)
    console.print(
        ", ".join(f"{key} {value}" for key, value in about.items()), highlight=False, soft_wrap=True
    )
    for table in tables:
        drawn = Drawn(box=SIMPLE_HEAD, title=table.title, title_justify="left", pad_edge=False)
        for i, head in enumerate(table.heads):
            drawn.add_column(head, justify="right" if i else "left", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*row)
        # Numbers that are cut say nothing: a terminal that is too narrow wraps lines instead.
        needed = Measurement.get(console, console.options.update(width=1000), drawn).maximum
        Console(markup=False, width=max(needed, console.width)).print(drawn)
    for sentence in sentences:
        console.print(sentence, highlight=False, style="bold", soft_wrap=True)
    for note in notes:
        console.print(note, highlight=False, style="dim", soft_wrap=True)


def _stages(variant: VariantReport) -> Table:
    with_bounds = any(row.bound for row in variant.stages)
    heads = ["ms", "median", "p90", "p99", *(["roofline", "set by", "ratio"] if with_bounds else [])]
    rows = []
    for row in variant.stages:
        cells = [row.stage, *(shown(v) for v in (row.times.median, row.times.p90, row.times.p99))]
        if with_bounds:
            least = (shown(row.bound.ms), row.bound.by) if row.bound else ("–", "–")
            cells += [*least, "–" if row.ratio is None else f"{row.ratio:.1f}×"]
        rows.append(tuple(cells))
    title = f"{variant.title}: {variant.visual_tokens} visual of {variant.prompt_tokens} prompt tokens"
    return Table(title, tuple(heads), tuple(rows))


def _answers(report: ProfileReport) -> Table:
    lengths = list(report.variants[0].totals)
    heads = [
        "median ms",
        "TTFT",
        "cold",
        *(f"{n} tok" for n in lengths if n > 1),
        "tok/s",
        "peak MiB",
    ]
    rows = []
    for variant in report.variants:
        totals = [shown(variant.totals[n].median) for n in lengths if n > 1]
        rate = "–" if variant.tokens_per_second is None else f"{variant.tokens_per_second:.1f}"
        rows.append(
            (
                variant.title,
                shown(variant.first_token.median),
                shown(variant.cold_first_token),
                *totals,
                rate,
                f"{variant.peak_bytes / MIB:.0f}",
            )
        )
    return Table("Answers, from the image's file", tuple(heads), tuple(rows))


def shown(ms: float) -> str:
    """Return milliseconds with about three digits that count."""
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"
