"""``python -m divprune_edge.demo BUNDLE``: three questions about the bundled image, pruned and unpruned."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from divprune_edge.console import run
from divprune_edge.hints import as_typed, quoted

if TYPE_CHECKING:
    from divprune_edge.runtime.pipeline import Answer

app = typer.Typer(add_completion=False)

_LONGEST_ANSWER = 16


@app.command()
def demo(bundle: Annotated[Path, typer.Argument(help="Bundle of the demo checkpoint.")]) -> None:
    """Ask the demo bundle about the bundled image, with its default selector and with every visual token."""
    from divprune_edge.manifest import UNPRUNED
    from divprune_edge.models.demo import PICTURE, PICTURE_FACTS
    from divprune_edge.runtime.pipeline import Pipeline

    questions = json.loads(PICTURE_FACTS.read_text(encoding="utf-8"))["questions"]
    start = time.perf_counter()
    pruned = Pipeline(bundle)
    full = pruned.with_selector(UNPRUNED)
    print(f"\nBundle loaded in {time.perf_counter() - start:.1f} s. The image: {_from_here(PICTURE)}")
    for pipeline in (pruned, full):  # a session's first run is slower than the rest
        pipeline.ask(PICTURE, questions[0]["question"], max_tokens=1)
    for entry in questions:
        print(f"\n{entry['question']}  (expected: {entry['answer']})")
        for pipeline in (full, pruned):
            answer = pipeline.ask(PICTURE, entry["question"], max_tokens=_LONGEST_ANSWER)
            print(_line(answer, full.visual_tokens), flush=True)
    info = as_typed(f"python -m runtime info {quoted(bundle)}")
    print(f"\nThe bundle lies in {_from_here(bundle)}; its graphs: {info}")
    ask = as_typed(f"python -m runtime ask {quoted(bundle)}")
    print(f'Ask more: {ask} --image {quoted(_from_here(PICTURE))} "How many shapes are there?"')


def _from_here(path: Path) -> Path:
    """Return the path as it is written from this folder, if it lies in it."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _line(answer: Answer, candidates: int) -> str:
    ms = answer.timings_ms
    first = sum(ms[stage] for stage in ("preprocess", "vision", "select", "prefill"))
    return (
        f"  {answer.visual_tokens:>4} of {candidates} visual tokens: {answer.answer:<12} "
        f"first token after {first:4.0f} ms (vision {ms['vision']:.0f}, select {ms['select']:.0f}, "
        f"prefill {ms['prefill']:.0f}), total {ms['total']:.0f} ms"
    )


def main() -> NoReturn:
    """Entry point of ``python -m divprune_edge.demo``."""
    run(app, program="python -m divprune_edge.demo")


if __name__ == "__main__":
    main()
