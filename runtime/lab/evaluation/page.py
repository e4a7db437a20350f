"""The page of a sweep: two charts and the table, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from divprune_edge.runtime.lab.evaluation import tables
from divprune_edge.runtime.lab.evaluation.charts import scatter
from divprune_edge.runtime.lab.evaluation.sweep import (
    Entry,
    pareto_front,
    time_to_first_token,
    visual_tokens,
)
from divprune_edge.runtime.lab.html import page

TOKENS_TITLE = "Accuracy against visual tokens"
LATENCY_TITLE = "Accuracy against time to first token"


def tokens_chart(entries: Sequence[Entry]) -> str:
    """Return the SVG of accuracy against K."""
    return scatter(entries, visual_tokens, TOKENS_TITLE, "visual tokens kept, logarithmic")


def latency_chart(entries: Sequence[Entry]) -> str:
    """Return the SVG of accuracy against TTFT; references stand for no graph and are left out."""
    return scatter(
        _graphs(entries), time_to_first_token, LATENCY_TITLE, "median time to first token in ms, logarithmic"
    )


def _graphs(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.row.reference]


def sweep_page(entries: Sequence[Entry], about: dict[str, Any], verdict: str | None) -> str:
    """Return the whole page."""
    rows = [entry.row for entry in entries]
    fronts = {id(entry) for entry in pareto_front(entries, visual_tokens)}
    fronts |= {id(entry) for entry in pareto_front(_graphs(entries), time_to_first_token)}
    head = "".join(f"<th>{escape(text)}</th>" for text in tables.heads(rows))
    body = []
    for entry, line in zip(entries, tables.cells(rows), strict=True):
        mark = ' class="front"' if id(entry) in fronts else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in line)
        body.append(f"<tr{mark}>{cells}</tr>")
    facts = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items())
    filled = _BODY.format(
        facts=escape(facts),
        verdict=f"<p class='verdict'>{escape(verdict)}</p>" if verdict else "",
        charts=tokens_chart(entries) + latency_chart(entries),
        head=head,
        body="\n".join(body),
        note=escape(tables.footnote(rows)),
    )
    return page(f"Selectors on {about.get('model', 'a bundle')}", filled, _STYLE)


_BODY = """<p>{facts}</p>
{verdict}
<div class="charts">{charts}</div>
<p>Shaded rows are on a Pareto front of one of the charts. Neighbours whose intervals overlap may well be equal.</p>
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<p>{note}</p>"""
_STYLE = """th, td { padding: .25rem .45rem; font-size: .85rem; }
tr.front td { background: color-mix(in srgb, currentColor 7%, transparent); }
tr.front td:first-child { font-weight: 600; }"""
