"""``python -m runtime triton``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from divprune_edge.runtime.options import BundleArgument


def triton_command(
    bundle: BundleArgument,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the repository; a new one.")],
    name: Annotated[
        str | None, typer.Option(help="Of the model that answers.", show_default="the bundle's folder")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="The graphs run on a GPU.")] = False,
    instances: Annotated[int, typer.Option(help="Questions answered at a time.", min=1, max=64)] = 1,
    bundle_at: Annotated[
        str | None,
        typer.Option(
            help="Where Triton finds the bundle, such as a mounted folder.", show_default="where it is"
        ),
    ] = None,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server: the graphs, and a model that answers over them."""
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.triton.repository import write_repository

    opened = Bundle.open(bundle)
    models = write_repository(
        opened, output, name or opened.path.resolve().name, gpu=gpu, instances=instances, place=bundle_at
    )
    *graphs, asked = models
    print(
        f"Model repository: {output}. '{asked}' answers questions over {', '.join(graphs)} (docs/serving.md).",
        file=sys.stderr,
    )
