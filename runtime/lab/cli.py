"""``python -m runtime compare-selectors``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from divprune_edge.runtime.options import BundleArgument, ThreadsOption

DEFAULT_QUESTION = "What is in the picture?"


def compare_selectors(
    bundle: BundleArgument,
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="What to ask.", show_default=DEFAULT_QUESTION),
    ] = None,
    *,
    image: Annotated[Path, typer.Option(help="The image.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HTML", help="The page to write.")],
    selectors: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Ids or names with commas between them.", show_default="all"),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Only selectors with this budget.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    backend: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Write a page with what each selector keeps of an image and the answers that follow."""
    from divprune_edge.files import check_place
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.comparison import compare, write_page
    from divprune_edge.runtime.lab.evaluation.options import split_names
    from divprune_edge.runtime.pipeline import Pipeline

    asked = questions or [DEFAULT_QUESTION]
    check_place(output, "-o")
    opened = Bundle.open(bundle)
    pipeline = Pipeline(opened, "none", backend=backend, threads=threads)
    panels = compare(pipeline, image, asked, split_names(selectors), keep, max_tokens)
    write_page(panels, asked, f"{opened.manifest.source.model}: {image.name}", output)
    print(f"{len(panels)} panels written to {output}")
