"""One page that lays the selectors of a bundle side by side: what they keep of an image, and what is answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.lab.drawing import draw_selection
from divprune_edge.runtime.lab.inspection import Selection, inspect_selection
from divprune_edge.runtime.lab.scheduled import title_of
from divprune_edge.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from PIL import Image

    from divprune_edge.processing.sources import ImageSource


@dataclass(frozen=True)
class Panel:
    """One selector: what it kept, and the answers to the questions."""

    title: str
    selection: Selection
    answers: tuple[Answer, ...]


def compare(
    pipeline: Pipeline,
    image: ImageSource,
    questions: Sequence[str],
    names: Sequence[str] | None = None,
    keep: int | None = None,
    max_tokens: int = 64,
) -> list[Panel]:
    """Ask about an image without pruning, then with the selectors of the bundle.

    Args:
        pipeline: any pipeline over the bundle; its graphs are shared.
        image: the image.
        questions: what to ask each.
        names: ids or algorithms; None takes every selector.
        keep: only selectors with this budget.
        max_tokens: longest answer.

    Raises:
        UserError: the bundle has no such selector, or the image cannot be used.
    """
    entries = pipeline.bundle.manifest.selectors
    chosen = list(names) if names is not None else [e.id for e in entries if keep in (None, e.keep)]
    if not chosen:
        raise UserError(
            f"The bundle has no selector that keeps {keep} tokens: it has {_ids(pipeline)}.",
            code="selector-not-in-bundle",
        )
    panels, unpruned = [], title_of(None, pipeline.bundle.manifest)
    for name in [UNPRUNED, *chosen]:
        one = pipeline.with_selector(name, keep if name in {e.name for e in entries} else None)
        answers = tuple(one.ask(image, question, max_tokens=max_tokens) for question in questions)
        selection = inspect_selection(one, image)
        title = unpruned if selection.selector == UNPRUNED else selection.selector
        panels.append(Panel(title, selection, answers))
    return panels


def _ids(pipeline: Pipeline) -> str:
    return ", ".join(entry.id for entry in pipeline.bundle.manifest.selectors)


def write_page(panels: Sequence[Panel], questions: Sequence[str], title: str, path: Path) -> None:
    """Write one self-contained HTML file: no script, nothing fetched.

    Raises:
        UserError: the file cannot be written.
    """
    full = panels[0]
    cards = "\n".join(_card(panel, questions, full) for panel in panels)
    page = _PAGE.format(title=escape(title), cards=cards)
    try:
        write_whole(path, page)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror or error}): choose another -o.",
            code="output-unwritable",
        ) from None


def _card(panel: Panel, questions: Sequence[str], full: Panel) -> str:
    selection = panel.selection
    name = panel.title
    facts = [selection.kept]
    if selection.selector != UNPRUNED:
        facts += [f"coverage radius {selection.coverage:.3f}", f"smallest distance {selection.smallest:.3f}"]
    said = "".join(f"<span>{fact}</span>" for fact in facts)
    rows = []
    for question, answer, whole in zip(questions, panel.answers, full.answers, strict=True):
        mark = (
            ""
            if answer.answer == whole.answer
            else ' class="differs" title="differs from the unpruned answer"'
        )
        first = sum(answer.timings_ms[s] for s in ("preprocess", "vision", "select", "prefill"))
        rows.append(
            f"<dt>{escape(question)}</dt><dd{mark}>{escape(answer.answer) or '(nothing)'}"
            f"<small>first token after {first:.0f} ms</small></dd>"
        )
    image = _data_url(draw_selection(selection, caption=False))
    return (
        f'<article><h2>{escape(name)}</h2><img alt="{escape(selection.caption)}" src="{image}">'
        f"<p>{said}</p><dl>{''.join(rows)}</dl></article>"
    )


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    # PNG takes a second and a megabyte per noisy photograph; without subsampling, JPEG keeps the frames' colours.
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; --paper: #fafafa; --card: #fff; --ink: #18181b; --soft: #63636b; --line: #e2e2e6;
  --warn: #b4451f; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #111113; --card: #1b1b1f; --ink: #ececef; --soft: #a0a0aa;
  --line: #303036; --warn: #ff9d73; }} }}
body {{ margin: 2rem auto; max-width: 1400px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
  background: var(--paper); color: var(--ink); }}
h1 {{ font-size: 1.4rem; margin: 0; }} h2 {{ font-size: 1.05rem; margin: 0 0 .5rem; }}
p {{ color: var(--soft); margin: .4rem 0; }} article p span {{ display: block; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; margin-top: 1.2rem; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; }}
img {{ width: 100%; height: auto; border-radius: 6px; display: block; }}
dl {{ margin: .6rem 0 0; }} dt {{ color: var(--soft); font-size: .9rem; margin-top: .5rem; }}
dd {{ margin: 0; font-weight: 600; }} dd small {{ display: block; font-weight: 400; color: var(--soft); }}
dd.differs {{ color: var(--warn); }}
</style></head><body>
<h1>{title}</h1>
<p>Dropped patches are dimmed; frames run from yellow (picked first) to violet (picked last). Answers that differ from
the unpruned one are coloured.</p>
<main>
{cards}
</main></body></html>
"""
