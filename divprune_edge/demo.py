"""``python -m divprune_edge.demo BUNDLE``: three questions about the bundled picture, pruned and unpruned."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from divprune_edge.console import run

app = typer.Typer(add_completion=False)


@app.command()
def demo(bundle: Annotated[Path, typer.Argument(help="Bundle of the demo checkpoint.")]) -> None:
    """Ask the demo bundle about the bundled picture, with its default selector and with every visual token."""
    from rich.console import Console
    from rich.table import Table

    from divprune_edge.manifest import UNPRUNED
    from divprune_edge.models.demo import PICTURE, PICTURE_FACTS
    from divprune_edge.runtime.pipeline import Pipeline

    console = Console(highlight=False, soft_wrap=True)
    facts = json.loads(PICTURE_FACTS.read_text(encoding="utf-8"))
    start = time.perf_counter()
    pruned, full = Pipeline(bundle), Pipeline(bundle, selector=UNPRUNED)
    console.print(f"Loaded the bundle twice (pruned, unpruned) in {time.perf_counter() - start:.1f} s.")
    table = Table(title=f"{PICTURE.name}: answers and milliseconds", title_justify="left")
    for column in ("question", "truth", "visual tokens", "answer"):
        table.add_column(column)
    stages = ("preprocess", "vision", "select", "prefill", "decode", "total")
    for stage in stages:
        table.add_column(stage, justify="right")
    for pipeline in (pruned, full):  # the first run of a session is slower than the rest
        pipeline.ask(PICTURE, facts["questions"][0]["question"], max_tokens=1)
    for entry in facts["questions"]:
        for pipeline in (pruned, full):
            answer = pipeline.ask(PICTURE, entry["question"])
            table.add_row(
                entry["question"] if pipeline is pruned else "",
                entry["answer"] if pipeline is pruned else "",
                f"{answer.visual_tokens} of {full.visual_tokens}",
                answer.answer,
                *(f"{answer.timings_ms[stage]:.1f}" for stage in stages),
            )
    console.print(table)
    console.print(f"The picture: {PICTURE}")
    console.print(f"The bundle:  {bundle.resolve()}")
    console.print(
        f'Ask more:    .venv/bin/python -m runtime ask {bundle} --image {PICTURE.name} "…"', markup=False
    )


def main() -> NoReturn:
    """Entry point of ``python -m divprune_edge.demo``."""
    run(app, program="python -m divprune_edge.demo")


if __name__ == "__main__":
    main()
