"""``python -m export fit``: what it is asked for, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from divprune_edge.errors import UserError
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.cost import by_layer
from divprune_edge.export.fit import fit_schedule, read_request
from divprune_edge.export.hub import open_checkpoint
from divprune_edge.export.merged import with_adapter
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import HUB_EXAMPLE, ConsoleReporter, demo_notice
from divprune_edge.hints import as_typed, quoted
from divprune_edge.manifest import DEMO, MANIFEST, UNPRUNED, Manifest, read_manifest
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
    force: bool,
) -> None:
    """Fit a schedule, write its file, and say what it does and how to export with it.

    ``model`` is a checkpoint, or a bundle, whose own default selector prunes before the language model.

    Raises:
        UserError: anything about the request that does not fit.
    """
    request = read_request(images, questions, target, cuts)
    settings: dict[str, Any] = {}
    bundle = Path(model) if model is not None and is_file(Path(model) / MANIFEST) else None
    if bundle is not None:
        if keep is not None or prune is not None:
            raise UserError(
                f"'{bundle}' has a budget of its own, --keep and --prune are for checkpoints: leave them out.",
                code="options-exclusive",
            )
        manifest = read_manifest(bundle)
        checkpoint = _checkpoint_of(manifest, bundle)
        selector, keep = _selection(manifest)
        settings = _settings(manifest)
    elif model is None:
        demo_notice(f"python -m export fit {HUB_EXAMPLE} --images {quoted(images)} --target-flops {target:g}")
        checkpoint = Checkpoint(CHECKPOINT, name=DEMO)
    else:
        checkpoint = open_checkpoint(model)
    if keep is None and prune is None:
        prune = "0"
    with with_adapter(checkpoint, adapter) as checkpoint:
        plan = plan_export(
            checkpoint, selector=selector, keep=keep, prune=prune, precision="fp32", **settings
        )
        short = checkpoint.name.rsplit("/", maxsplit=1)[-1]
        file = output or Path(f"{short}-fitprune-{target:g}.json")
        if file.suffix != ".json":
            raise UserError(
                f"--output '{file}' does not end in .json, by which --schedule knows a file.",
                code="output-suffix",
            )
        if file.exists() and not force:
            raise UserError(f"'{file}' exists already: add --force to replace it.", code="output-exists")
        with _saying_what_is_kept(file):
            found = fit_schedule(plan, request, file, ConsoleReporter())
        _console.print(
            f"{file}: {found.share:.1%} of the operations on {plan.visual_tokens} visual tokens, tolerance "
            f"{found.tolerance:.3f}, from {len(request.images)} image{'s' * (len(request.images) > 1)}."
        )
        for line in by_layer(plan.spec, found.schedule, 0):
            _console.print(f"  {line}")
        source = "" if checkpoint.name == DEMO else f" --model {quoted(model or '')}"
        budget = f"--selector {plan.selector.name} --keep {plan.keep}"
    if bundle is not None:
        source = "" if checkpoint.name == DEMO else f" --model {quoted(checkpoint.name)}"
    if adapter is not None:
        source += f" --adapter {quoted(adapter)}"
    command = f"python -m export llava{source} {budget} --schedule {quoted(file)}"
    _console.print(f"Export with it: {as_typed(command)}")


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


def _selection(manifest: Manifest) -> tuple[str, int]:
    """Return the selector and budget of a bundle's default."""
    if manifest.default_selector == UNPRUNED:
        return "divprune", manifest.candidates
    (entry,) = (one for one in manifest.selectors if one.id == manifest.default_selector)
    return entry.name, entry.keep


def _settings(manifest: Manifest) -> dict[str, Any]:
    """Return how else the bundle's images become visual tokens, as arguments of an export."""
    patches, clips = manifest.preprocessing.patches, manifest.preprocessing.clips
    settings: dict[str, Any] = {"numbering": manifest.numbering}
    if manifest.assemble is not None:
        settings["per"] = manifest.assemble.per
    if clips is not None:
        settings["frames"] = clips.frames
    if patches is not None and patches.sizes:
        settings["resolution"] = ",".join(f"{width}x{height}" for height, width in patches.sizes)
    elif patches is not None:
        settings["max_pixels"] = patches.max_pixels
    return settings


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
