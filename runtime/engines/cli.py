"""``python -m runtime build``."""

from __future__ import annotations

from typing import Annotated

import typer

from divprune_edge.runtime.options import BundleArgument


def build_command(
    bundle: BundleArgument,
    *,
    selector: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Ids or names with commas between them; 'all', and 'none' to keep every visual token.",
            show_default="the bundle's",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Build for this device: an RTX card ahead of time on any machine, any other on the device itself.",
            show_default="the bundle's",
        ),
    ] = None,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Longest piece of a prompt fed at once.",
            show_default="the visual tokens and 192 more",
        ),
    ] = None,
    slots: Annotated[int, typer.Option(metavar="N", help="Most sequences that are decoded together.")] = 1,
    images: Annotated[int, typer.Option(metavar="N", help="Most images of a prompt.")] = 1,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="MIB", min=1, help="Most memory for one kernel.", show_default="TensorRT's"),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="How long to look for fast kernels.", show_default="TensorRT's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build anew what is there already.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what TensorRT says.")] = False,
    verify_hashes: Annotated[
        str,
        typer.Option(help="'auto' hashes new or touched files, 'always' hashes all of them.", metavar="WHEN"),
    ] = "auto",
) -> None:
    """Build the TensorRT engines of a bundle: on the device that will run them, or for RTX cards anywhere."""
    from divprune_edge.models.tensorrt import EDITIONS
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.engines.builder import Options, build_engines
    from divprune_edge.runtime.engines.fingerprint import sm_names
    from divprune_edge.runtime.engines.progress import ConsoleReport

    opened = Bundle.open(bundle, verify_hashes)  # type: ignore[arg-type]
    options = Options(
        selector,
        target,
        max_prompt,
        None if workspace is None else workspace << 20,
        optimization_level,
        force,
        verbose,
        slots,
        images,
    )
    with ConsoleReport() as report:
        built = build_engines(opened, options, report)
    facts = built.info.facts
    limits = facts.limits
    print(f"{built.folder}")
    library = f"{EDITIONS[facts.edition].title} {facts.tensorrt}"
    print(", ".join([sm_names(facts.sms), library, *([f"CUDA {facts.cuda}"] if facts.cuda else [])]))
    each = "" if limits.images == 1 else f" ({limits.images} images)"
    together = "" if limits.slots == 1 else f"; {limits.slots} sequences decoded together"
    print(
        f"prompts of up to {limits.max_prompt} tokens at once, up to {limits.kept[-1]} of them visual{each}{together}"
    )
