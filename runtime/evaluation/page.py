"""The page of a sweep: two charts and the table, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from divprune_edge.runtime.evaluation import tables
from divprune_edge.runtime.evaluation.charts import scatter
from divprune_edge.runtime.evaluation.sweep import (
    Entry,
    pareto_front,
    time_to_first_token,
    visual_tokens,
)

TOKENS_TITLE = "Accuracy against visual tokens"
LATENCY_TITLE = "Accuracy against time to first token"


def tokens_chart(entries: Sequence[Entry]) -> str:
    """Return the SVG of accuracy against K."""
    return scatter(entries, visual_tokens, TOKENS_TITLE, "visual tokens kept, logarithmic")


def latency_chart(entries: Sequence[Entry]) -> str:
    """Return the SVG of accuracy against TTFT; references stand for no graph and are left out."""
    graphs = [entry for entry in entries if not entry.row.reference]
    return scatter(
        graphs, time_to_first_token, LATENCY_TITLE, "median time to first token in ms, logarithmic"
    )


def sweep_page(entries: Sequence[Entry], about: dict[str, Any], verdict: str | None) -> str:
    """Return the whole page."""
    rows = [entry.row for entry in entries]
    fronts = {id(e) for cost in (visual_tokens, time_to_first_token) for e in pareto_front(entries, cost)}
    head = "".join(f"<th>{escape(text)}</th>" for text in ["precision", *tables.heads(rows)])
    body = []
    for entry, line in zip(entries, tables.cells(rows), strict=True):
        mark = ' class="front"' if id(entry) in fronts else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in [entry.precision, *line])
        body.append(f"<tr{mark}>{cells}</tr>")
    facts = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items())
    return _PAGE.format(
        title=escape(f"Selectors on {about.get('model', 'a bundle')}"),
        facts=escape(facts),
        verdict=f"<p class='verdict'>{escape(verdict)}</p>" if verdict else "",
        charts=tokens_chart(entries) + latency_chart(entries),
        head=head,
        body="\n".join(body),
        note=escape(tables.footnote(rows)),
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>
body {{ margin: 2rem auto; max-width: 1240px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #18181b;
  background: #fafafa; }}
h1 {{ font-size: 1.4rem; margin: 0 0 .3rem; }} p {{ color: #52525b; margin: .3rem 0; }}
.verdict {{ color: #18181b; font-weight: 600; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; margin: 1rem 0; }}
svg {{ width: 100%; border: 1px solid #e4e4e8; border-radius: 10px; background: #fff; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e8; white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }} tr.front td {{ font-weight: 600; background: #f1f1f4; }}
</style></head><body>
<h1>{title}</h1>
<p>{facts}</p>
{verdict}
<div class="charts">{charts}</div>
<p>Shaded rows are on a Pareto front of one of the charts. Neighbours whose intervals overlap may well be equal.</p>
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<p>{note}</p>
</body></html>
"""
