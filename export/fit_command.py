"""``python -m export fit``: what it is asked for, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from divprune_edge.errors import UserError
from divprune_edge.export.again import arguments_of, as_options, of_measurement
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.cost import by_layer
from divprune_edge.export.fit import fit_schedule, read_request
from divprune_edge.export.hub import open_checkpoint
from divprune_edge.export.merged import with_adapter
from divprune_edge.export.planned import export_planned
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import HUB_EXAMPLE, ConsoleReporter, demo_notice
from divprune_edge.export.writer import check_output
from divprune_edge.hints import as_typed, quoted
from divprune_edge.manifest import DEMO, MANIFEST, Manifest, read_manifest
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.strict_json import is_file

_console = Console(markup=False, highlight=False, soft_wrap=True)


def show_fit(
    model: str | None,
    images: Path,
    *,
    questions: Path | None,
    target: float,
    cuts: int,
    selector: str,
    keep: int | None,
    prune: str | None,
    adapter: Path | None,
    output: Path | None,
    export: Path | None,
    force: bool,
) -> None:
    """Fit a schedule, write its file, say what it does, and export with it or say how.

    ``model`` is a checkpoint, or a bundle, whose own default selector prunes before the language model.

    Raises:
        UserError: anything about the request that does not fit.
    """
    request = read_request(images, questions, target, cuts)
    bundle = Path(model) if model is not None and is_file(Path(model) / MANIFEST) else None
    calibrate = None
    if bundle is not None:
        if keep is not None or prune is not None:
            raise UserError(
                f"'{bundle}' has a budget of its own, --keep and --prune are for checkpoints: leave them out.",
                code="options-exclusive",
            )
        manifest = read_manifest(bundle)
        arguments = arguments_of(manifest, str(bundle))
        checkpoint = _checkpoint_of(manifest, bundle)
        source, revision = checkpoint.name, manifest.source.revision
        calibrate = images if manifest.calibrated else None
    else:
        if model is None:
            demo_notice(
                f"python -m export fit {HUB_EXAMPLE} --images {quoted(images)} --target-flops {target:g}"
            )
            checkpoint = Checkpoint(CHECKPOINT, name=DEMO)
        else:
            checkpoint = open_checkpoint(model)
        source, revision = model or DEMO, None
        everything = "0" if keep is None and prune is None else None
        arguments = {"selector": selector, "keep": keep, "prune": prune or everything}
    with with_adapter(checkpoint, adapter) as checkpoint:
        plan = plan_export(checkpoint, **of_measurement(arguments), precision="fp32")
        arguments |= {"keep": plan.keep, "prune": None}
        short = checkpoint.name.rsplit("/", maxsplit=1)[-1]
        file = output or Path(f"{short}-fitprune-{target:g}.json")
        if file.suffix != ".json":
            raise UserError(
                f"--output '{file}' does not end in .json, by which --schedule knows a file.",
                code="output-suffix",
            )
        if file.exists() and not force:
            raise UserError(f"'{file}' exists already: add --force to replace it.", code="output-exists")
        if export is not None:
            check_output(export, force)
        report = ConsoleReporter()
        with _saying_what_is_kept(file):
            found = fit_schedule(plan, request, file, report)
        _console.print(
            f"{file}: {found.share:.1%} of the operations on {plan.visual_tokens} visual tokens, tolerance "
            f"{found.tolerance:.3f}, from {len(request.images)} image{'s' * (len(request.images) > 1)}."
        )
        for line in by_layer(plan.spec, found.schedule, 0):
            _console.print(f"  {line}")
        arguments["schedule"] = quoted(file)
        if export is not None:
            whole = plan_export(checkpoint, **{"precision": "fp32", **arguments, "schedule": str(file)})
            export_planned(
                whole, export, report, force=force, adapter=adapter is not None, calibrate=calibrate
            )
            return
    parts = ["python -m export llava"]
    parts += [f"--model {quoted(source)}"] if source != DEMO else []
    parts += [f"--revision {revision}"] if revision is not None else []
    parts += [f"--adapter {quoted(adapter)}"] if adapter is not None else []
    parts += [as_options(arguments)]
    parts += [f"--calibrate {quoted(calibrate)}"] if calibrate is not None else []
    _console.print(f"Export with it: {as_typed(' '.join(parts))}")


@contextmanager
def _saying_what_is_kept(file: Path) -> Iterator[None]:
    """Say of a fit that ends early that the next one need not begin anew."""
    try:
        yield
    except KeyboardInterrupt:
        _console.print("What was measured is kept: the same command goes on behind the last whole layer.")
        raise
    except UserError as error:
        if error.code == "target-flops-unreachable":
            _console.print(
                f"What was measured is kept: the same command with --output {quoted(file)} and another "
                "--target-flops takes no time."
            )
        raise


def _checkpoint_of(manifest: Manifest, bundle: Path) -> Checkpoint:
    """Return the checkpoint that a bundle was made from.

    Raises:
        UserError: it was a folder, or had an adapter: where these lie is not known.
    """
    source = manifest.source
    if source.model == DEMO and source.adapter is None:
        return Checkpoint(CHECKPOINT, name=DEMO)
    if "/" in source.model and source.adapter is None:
        return open_checkpoint(source.model, source.revision)
    more = f" with the adapter '{source.adapter.name}'" if source.adapter is not None else ""
    raise UserError(
        f"'{bundle}' was made from a folder called '{source.model}'{more}, and does not say where that is: give the "
        "checkpoint's folder in its place, with the bundle's --selector and --keep.",
        code="bundle-source-unknown",
    )
