"""``python -m export``: checkpoints into bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from divprune_edge.commands import CommandGroup, application
from divprune_edge.console import run


class _Commands(CommandGroup):
    """Options alone, as in ``python -m export --model DIR``, are those of ``llava``, which takes every family."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name the command where none is."""
        return super().resolve_command(ctx, ["llava", *args] if args[0].startswith("-") else args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave options to the command that they are of."""
        ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)


app = application(
    {
        "llava": f"{__name__}:llava",
        "selector": f"{__name__}:selector_command",
        "selectors": f"{__name__}:selectors",
        "check": f"{__name__}:check",
        "package": f"{__name__}:package_command",
        "cost": f"{__name__}:cost",
        "fit": f"{__name__}:fit_command",
    },
    help="Turn a checkpoint into a bundle of ONNX graphs.\n\nOptions alone, as in 'python -m export --model DIR', are "
    "those of 'llava', which takes every family.",
    group=_Commands,
)

Prune = Annotated[
    str | None,
    typer.Option(metavar="RATIO", help="Share of visual tokens to drop, such as 0.9.", show_default="0.9"),
]
Keep = Annotated[
    int | None, typer.Option(metavar="K", help="Number of visual tokens to keep, instead of --prune.")
]
SelectorName = Annotated[str, typer.Option(help="Selection algorithm.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
VerifyFlag = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Compare with PyTorch (default: where torch is installed)."),
]


def llava(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_HUB_ID",
            help="Checkpoint: a folder, owner/name[@revision] or its page's address; the bundled demo if not given.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of the hub id.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="DIR", help="LoRA adapter (peft's) to merge into the weights."),
    ] = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Leave out an adapter that lies beside the weights.")
    ] = False,
    prune: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO",
            help="Share of visual tokens to drop, such as 0.9.",
            show_default="0.9; 0 with --schedule",
        ),
    ] = None,
    keep: Keep = None,
    selector: SelectorName = "divprune",
    signals: Annotated[
        str,
        typer.Option(
            metavar="all|none|NAMES",
            help="Outputs of the vision encoder for selectors to be added later, beyond what --selector needs.",
        ),
    ] = "none",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Device to export for, such as agx-orin-64gb, h100 or cpu: settles dialect and precision.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="fp32, fp16 (for GPUs), int8 or int4, for both graphs or by graph, as in language=int4.",
            show_default="fp32, or the target's",
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            metavar="32|64|128",
            help="Values that share a scale in int4.",
            show_default="32; for TensorRT the largest that divides",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images to round int4 weights by (GPTQ), a few dozen."),
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="portable (standard operators), onnxruntime (its fused ones; faster there), or for TensorRT static "
            "(10.15 and newer) or decomposed.",
            show_default="portable, or the target's",
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS",
            help="Size of the KV cache in dialects static and decomposed: prompt and answer together.",
            show_default="K + 448, at most the context",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the bundle.", show_default="bundles/NAME-SELECTOR-K[-SCHEDULE]"
        ),
    ] = None,
    package: Annotated[
        bool,
        typer.Option(
            "--package", help="Pack the bundle with all that a Jetson needs into DIR-TARGET.tar as well."
        ),
    ] = False,
    per_tile: Annotated[
        bool,
        typer.Option(
            "--per-tile",
            help="Select from each tile of an image by itself, K of each, not from all of them at once.",
        ),
    ] = False,
    per_frame: Annotated[
        bool, typer.Option("--per-frame", help="Select from each frame of a clip by itself, K of each.")
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Take clips as well, of which at most N frames are looked at.",
            show_default="images alone",
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="compact|original",
            help="Number what is left of a prompt's images anew, or keep the positions that it would have unpruned.",
            show_default="original for Qwen-VL, else compact",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Most pixels of an image or a frame of a clip, for models that take images of any size.",
            show_default="the checkpoint's, at most 2048 visual tokens",
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="WxH,…",
            help="Sizes that their images are resized to, each to the nearest, such as 448x448,672x448.",
            show_default="their own; for TensorRT a few that follow from --max-pixels",
        ),
    ] = None,
    encoder_cut: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER:KEEP",
            help="Leave only KEEP patches, the most diverse, inside the vision encoder, behind its first LAYER layers.",
            show_default="none leaves there",
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Let the language model say the next id of greedy decoding itself, so that its logits stay where it "
            "runs.",
        ),
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="Prune inside the language model, such as pyramiddrop, or as a file of 'fit' says: visual tokens "
            "leave before some of its layers.",
            show_default="none",
        ),
    ] = None,
    force: Force = False,
    verify: VerifyFlag = None,
) -> None:
    """Export a checkpoint of the LLaVA line or Qwen-VL: vision encoder, selector and language model."""
    from divprune_edge.errors import UserError
    from divprune_edge.export.hub import open_checkpoint
    from divprune_edge.export.merged import with_adapter
    from divprune_edge.export.planned import export_planned
    from divprune_edge.export.planning import parse_numbering, parse_per, plan_export
    from divprune_edge.export.reporter import HUB_EXAMPLE, ConsoleReporter, demo_notice
    from divprune_edge.export.targets import settle

    _one_budget(prune, keep)
    dialect, precision = settle(target, dialect, precision)
    report = ConsoleReporter()
    if model is None and revision is not None:
        raise UserError(
            f"--revision {revision} has no --model to be a revision of: name the hub id (owner/name).",
            code="revision-without-model",
        )
    if model is None:
        from divprune_edge.export.checkpoint import Checkpoint
        from divprune_edge.manifest import DEMO
        from divprune_edge.models.demo import CHECKPOINT

        # A file is for the model that it was made for, so that a real one needs another.
        named = "FILE.json" if schedule is not None and schedule.endswith(".json") else schedule
        given = {"--prune": prune, "--keep": keep, "--schedule": named}
        asked = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        demo_notice(f"python -m export llava --model {HUB_EXAMPLE} {asked or '--prune 0.9'}")
        checkpoint = Checkpoint(CHECKPOINT, name=DEMO)
    else:
        checkpoint = open_checkpoint(model, revision)
    with with_adapter(checkpoint, adapter, ignore=no_adapter) as checkpoint:
        plan = plan_export(
            checkpoint,
            selector=selector,
            keep=keep,
            prune=prune,
            precision=precision,
            block_size=block_size,
            dialect=dialect,
            capacity=capacity,
            signals=signals,
            target=target,
            per=parse_per(tile=per_tile, frame=per_frame),
            numbering=parse_numbering(positions),
            max_pixels=max_pixels,
            frames=frames,
            resolution=resolution,
            encoder_cut=encoder_cut,
            greedy=greedy,
            schedule=schedule,
        )
        short = checkpoint.name.rsplit("/", maxsplit=1)[-1]
        inside = "" if plan.schedule is None else f"-{plan.schedule.method}"
        selected = "" if plan.all_enter else f"-{plan.selector.name}-{plan.keep}"
        folder = output or Path("bundles") / f"{short}{selected}{inside}"
        if package:
            from divprune_edge.export.package.command import check_before_export

            check_before_export(target, folder, plan.weight_bytes, force=force)
        export_planned(
            plan,
            folder,
            report,
            force=force,
            verify=verify,
            adapter=adapter is not None,
            calibrate=calibrate,
        )
    if package:
        from divprune_edge.export.package.command import package_bundle

        package_bundle(folder, target, None, force=force, report=report)


def selector_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an existing bundle.")],
    selector: SelectorName = "divprune",
    prune: Prune = None,
    keep: Keep = None,
    force: Force = False,
    verify: VerifyFlag = None,
) -> None:
    """Add a selector to a bundle; the weights are not touched."""
    from divprune_edge.export.add_selector import add_selector
    from divprune_edge.export.reporter import show_selector, show_selectors
    from divprune_edge.export.verification import can_check_selectors

    _one_budget(prune, keep)
    manifest, entry, checks = add_selector(
        bundle, selector, keep=keep, prune=prune, force=force, verify=can_check_selectors(verify)
    )
    show_selector(bundle, manifest, entry, checks)
    show_selectors(manifest)


def selectors(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an existing bundle.")],
    names: Annotated[
        str,
        typer.Option(
            "--selectors", "--names", metavar="all|NAMES", help="Selectors, with commas between them."
        ),
    ] = "all",
    budgets: Annotated[
        str, typer.Option("--keep", metavar="K,K,…", help="Numbers of visual tokens to keep.")
    ] = "144,58,29",
    force: Force = False,
    verify: VerifyFlag = None,
) -> None:
    """Add several selectors at several budgets.

    Those that are there already stay; those that the bundle's vision encoder cannot serve are left out.
    """
    from divprune_edge.export.add_selector import add_selectors, left_out
    from divprune_edge.export.reporter import show_left_out, show_selector, show_selectors
    from divprune_edge.export.verification import can_check_selectors

    manifest = None
    for now, entry, checks in add_selectors(
        bundle, names, budgets, force=force, verify=can_check_selectors(verify)
    ):
        show_selector(bundle, now, entry, checks)
        manifest = now
    show_selectors(manifest)
    show_left_out(left_out(bundle, names))


def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an existing bundle.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device to check for.", show_default="the bundle's"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Prompt and answer together, for the memory forecast.",
            show_default="all that there is room for",
        ),
    ] = None,
    build: Annotated[
        bool,
        typer.Option(help="Let TensorRT-RTX build what it parses, where it is installed (no GPU is needed)."),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a bundle against a device: operators, TensorRT's own parser and builder, and memory.

    Exit code 1 if anything is refused.
    """
    from divprune_edge.export.check.bundle import check_bundle
    from divprune_edge.export.check.printing import report_json, show_report
    from divprune_edge.export.targets import target_of

    report = check_bundle(bundle, target_of(bundle, target), context, build=build)
    if json:
        typer.echo(report_json(report))
    else:
        show_report(report)
    if not report.clean:
        raise typer.Exit(1)


def package_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an existing bundle.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The Jetson to install it on.", show_default="the bundle's"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The archive.", show_default="BUNDLE-TARGET.tar"),
    ] = None,
    force: Force = False,
) -> None:
    """Pack a bundle, the runtime and the plugin's sources into one archive that installs itself on a Jetson."""
    from divprune_edge.export.package.command import package_bundle
    from divprune_edge.export.reporter import ConsoleReporter

    package_bundle(bundle, target, output, force=force, report=ConsoleReporter())


def cost(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="A well-known checkpoint, such as llava-1.5-7b or llava-interleave-qwen-0.5b, or a folder.",
        ),
    ] = "llava-1.5-7b",
    prune: Prune = None,
    keep: Keep = None,
    text_tokens: Annotated[int, typer.Option(help="Length of the prompt without the image.")] = 60,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Tokens that leave inside the language model; all enter it if no budget is given.",
        ),
    ] = None,
) -> None:
    """Count what a budget saves: operations and KV cache, end to end and by the conventions of the literature."""
    from divprune_edge.export.cost import show_cost

    _one_budget(prune, keep)
    show_cost(model, keep=keep, prune=prune, text_tokens=text_tokens, schedule=schedule)


def fit_command(
    images: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Images to look at, a few dozen like those that it will be asked about."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE|CHECKPOINT",
            help="A checkpoint (folder or hub id), or a bundle of one; the bundled demo if not given.",
            show_default=False,
        ),
    ] = None,
    target_flops: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the operations on visual tokens that is left, such as 0.4."
        ),
    ] = 0.5,
    cuts: Annotated[int, typer.Option(help="Most cuts, each of which makes one graph more.")] = 4,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions, one on each line.", show_default="eight of our own"),
    ] = None,
    selector: SelectorName = "divprune",
    prune: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO",
            help="Share of visual tokens to drop before the language model.",
            show_default="0",
        ),
    ] = None,
    keep: Keep = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="DIR", help="LoRA adapter (peft's) to merge into the weights."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The schedule.", show_default="NAME-fitprune-SHARE.json"),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Export with it as well: a BUNDLE as it was exported, a CHECKPOINT as 'llava' does where nothing else "
            "is said.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Fit a schedule (FitPrune) to a checkpoint's attention to a few dozen images.

    What was measured is kept until it is done: after an interruption the same command goes on.
    """
    from divprune_edge.export.fit_command import show_fit

    _one_budget(prune, keep)
    show_fit(
        model,
        images,
        questions=questions,
        target=target_flops,
        cuts=cuts,
        selector=selector,
        keep=keep,
        prune=prune,
        adapter=adapter,
        output=output,
        export=export,
        force=force,
    )


def _one_budget(prune: str | None, keep: int | None) -> None:
    if prune is not None and keep is not None:
        from divprune_edge.errors import UserError

        raise UserError(
            f"--prune {prune} and --keep {keep} were both given: leave one of the two out.",
            code="options-exclusive",
        )


def main() -> NoReturn:
    """Entry point of ``python -m export``."""
    run(app, program="python -m export")
