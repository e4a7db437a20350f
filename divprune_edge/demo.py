"""``python -m divprune_edge.demo BUNDLE``: questions about the bundled image and clip, pruned and unpruned."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from divprune_edge.console import run
from divprune_edge.hints import as_typed, quoted

if TYPE_CHECKING:
    from divprune_edge.runtime.answer import Answer
    from divprune_edge.runtime.pipeline import Pipeline

app = typer.Typer(add_completion=False)

_LONGEST_ANSWER = 16


@app.command()
def demo(bundle: Annotated[Path, typer.Argument(help="Bundle of a demo checkpoint.")]) -> None:
    """Ask it about the bundled image and, where it takes any, the bundled clip: with every token, and pruned."""
    from divprune_edge.manifest import UNPRUNED
    from divprune_edge.models.demo import CLIP, CLIP_FACTS, IMAGE, IMAGE_FACTS
    from divprune_edge.runtime.pipeline import Pipeline

    start = time.perf_counter()
    pruned = Pipeline(bundle)
    both = pruned.with_selector(UNPRUNED), pruned
    print(f"\nBundle loaded in {time.perf_counter() - start:.1f} s. The image: {_from_here(IMAGE)}")
    _ask(both, IMAGE_FACTS, {"image": IMAGE})
    if pruned.bundle.manifest.preprocessing.clips is not None:
        print(f"\nThe clip, a folder of frames: {_from_here(CLIP)}")
        _ask(both, CLIP_FACTS, {"image": None, "video": CLIP})
    info = as_typed(f"python -m runtime info {quoted(bundle)}")
    print(f"\nThe bundle lies in {_from_here(bundle)}; its graphs: {info}")
    ask = as_typed(f"python -m runtime ask {quoted(bundle)}")
    print(f'Ask more: {ask} --image {quoted(_from_here(IMAGE))} "How many shapes are there?"')


def _ask(pipelines: Sequence[Pipeline], facts: Path, media: dict[str, Any]) -> None:
    """Ask the questions of a file of facts, with every visual token and pruned."""
    questions = json.loads(facts.read_text(encoding="utf-8"))["questions"]
    for pipeline in pipelines:  # a session's first run is slower than the rest
        pipeline.ask(question=questions[0]["question"], max_tokens=1, **media)
    for entry in questions:
        print(f"\n{entry['question']}  (expected: {entry['answer']})")
        seen = 0
        for pipeline in pipelines:
            answer = pipeline.ask(question=entry["question"], max_tokens=_LONGEST_ANSWER, **media)
            seen = max(seen, answer.visual_tokens)
            print(_line(answer, seen), flush=True)


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
