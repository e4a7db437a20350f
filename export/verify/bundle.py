"""The whole verification of a staged bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from divprune_edge.errors import UserError
from divprune_edge.export.merged import MergedCheckpoint
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.seen import see
from divprune_edge.export.verify.adapter import PeftAdapter
from divprune_edge.export.verify.comparison import TOLERANCES
from divprune_edge.export.verify.encoder_cut import check_cut, cut_alike
from divprune_edge.export.verify.graphs import open_graph, open_language
from divprune_edge.export.verify.language import check_language, check_rope, cost_of_precision
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.export.verify.schedule import check_scores
from divprune_edge.export.verify.selection import check_selection, verify_selector
from divprune_edge.export.verify.signals import check_assembled_signals, check_signals
from divprune_edge.export.verify.structure import check_structure
from divprune_edge.export.verify.vision import check_vision, run_signals, sample_inputs
from divprune_edge.export.verify.weights import GraphFile, check_weights
from divprune_edge.manifest import Check, Verification
from divprune_edge.models.families.family import HEAD
from divprune_edge.models.tiles import row_width

Report = Callable[[str], None]

TRUNCATED_LAYERS = 4
"""Decoder layers that are run where the whole model does not fit into memory."""

# Two float32 copies of the weights at once: transformers' and ONNX Runtime's.
_BYTES_PER_PARAMETER = 8


def verify_bundle(
    plan: ExportPlan, folder: Path, report: Report, *, memory: int | None = None
) -> Verification:
    """Compare the graphs in ``folder`` with transformers in float32.

    Args:
        plan: what was exported.
        folder: holds ``vision_encoder.onnx``, ``language_model.onnx`` and ``selectors/NAME-K.onnx``, and
            ``assemble.onnx`` where images have tiles.
        report: told what is being compared.
        memory: bytes that may be used; None asks the system. Where they do not hold the model in float32
            twice, a copy with fewer decoder layers is run; weights and wiring are compared in all of them.

    Returns:
        Every check, passed or not.

    Raises:
        UserError: there is not even memory for the truncated copy.
    """
    vision = GraphFile(folder / "vision_encoder.onnx")
    chain = [GraphFile(file) for file in _language_files(plan, folder)]
    assemble = [] if plan.spec.rows is None else [GraphFile(folder / "assemble.onnx")]
    layers = affordable_layers(plan, available_memory() if memory is None else memory)
    source = plan.checkpoint
    adapter = (
        PeftAdapter(source.adapter.folder, plan.family) if isinstance(source, MergedCheckpoint) else None
    )
    checks: list[Check] = check_weights(plan, [vision, *assemble, *chain], report, adapter)
    with _runnable(plan, chain, layers, report) as runs:
        checks += check_structure(plan, [vision, *assemble], chain, runs)
        report("loading the reference")
        reference = plan.family.reference
        oracle = Oracle(reference, plan.checkpoint.folder, layers, adapter)
        report("visual tokens")
        images = sample_inputs(plan)
        encoder = open_graph(vision.path)
        rows = open_graph(assemble[0].path) if assemble else None
        seen = [see(plan, encoder, rows, image, plan.signals) for image in images]
        unquantised = None
        if vision.is_quantised():
            with cut_alike(plan.spec, oracle, seen):
                unquantised = oracle.visual_tokens(images)
        _replace(plan, oracle, [vision, *runs], report)
        tolerance = TOLERANCES[plan.precisions.vision]
        with cut_alike(plan.spec, oracle, seen) as regrets:
            checks += check_vision(seen, oracle, images, tolerance, unquantised)
        checks += check_cut(regrets, tolerance)
        report("selection")
        # Found by glob: the file's name is the export's business, that there is one is ours.
        (selector,) = (folder / "selectors").glob("*.onnx")
        checks += verify_selector(
            plan.selector,
            plan.candidates,
            plan.keep,
            row_width(plan.spec),
            plan.token_dtype,
            selector,
            plan.spec.width,
        )
        signals = run_signals(vision.path, images, plan.signals)
        if signals:
            pixels = np.concatenate([image.pixels for image in images])
            with cut_alike(plan.spec, oracle, seen):
                expected = reference.signals(plan.spec, oracle, pixels)
            checks += check_signals(signals, expected, tolerance)
            if rows is not None:
                checks += check_assembled_signals(signals, seen, images, plan.spec.tokens)
        found, kept = check_selection(
            plan.selector,
            selector,
            np.concatenate([one.tokens for one in seen]),
            plan.keep,
            {name: np.concatenate([one.signals[name] for one in seen]) for name in plan.signals},
            np.concatenate([one.groups.valid for one in seen]),
            plan.spec.width,
        )
        checks += found
        checks.append(check_rope(chain[0], oracle, plan.spec.decoder.context, plan.language_dtype))
        tolerance = TOLERANCES[plan.precisions.language]
        language = open_language(
            [run.path for run in runs], plan.dialect.facts.name, plan.spec.decoder.only_window
        )
        checks += check_language(plan, language, oracle, kept, tolerance, report)
        if layers is None:
            checks += check_scores(plan, language, oracle, kept, tolerance, report)
        if any(run.is_quantised() for run in runs):
            report("what the precision costs")
            whole = Oracle(reference, plan.checkpoint.folder, layers, adapter)
            checks += cost_of_precision(plan, language, whole, kept)
    return Verification(status="verified", language_layers=layers, checks=tuple(checks))


def affordable_layers(plan: ExportPlan, memory: int | None) -> int | None:
    """Return None if the whole model can be run within ``memory`` bytes, else how many decoder layers can.

    Raises:
        UserError: not one of each kind.
    """
    depth = plan.spec.decoder.layers
    if memory is None or bytes_needed(plan, depth) <= memory:
        return None
    # One that follows features of the vision tower, and one that does not.
    least = plan.spec.stacked + 2 if plan.spec.stacked else 2
    most = min(max(TRUNCATED_LAYERS, least), depth - 1)
    layers = next((n for n in range(most, least - 1, -1) if bytes_needed(plan, n) <= memory), 0)
    if not layers:
        raise UserError(
            f"Verification needs at least {bytes_needed(plan, min(least, depth)) / 2**30:.1f} GiB of free memory, but "
            f"{memory / 2**30:.1f} GiB are free: free some, or export with --no-verify.",
            code="memory-too-small",
        )
    return layers


def bytes_needed(plan: ExportPlan, layers: int) -> int:
    """Return the memory that a run with ``layers`` decoder layers takes."""
    shapes = plan.names.parameters(
        plan.spec.with_decoder(plan.spec.decoder.truncated(layers)), plan.embedding_rows, plan.vocabulary
    )
    return _BYTES_PER_PARAMETER * sum(int(np.prod(shape)) for shape in shapes.values())


def available_memory() -> int | None:
    """Return the bytes that the system can give without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _language_files(plan: ExportPlan, folder: Path) -> list[Path]:
    if plan.schedule is None:
        return [folder / "language_model.onnx"]
    return [folder / f"language_model.{i}.onnx" for i in range(len(plan.parts))]


@contextmanager
def _runnable(
    plan: ExportPlan, chain: Sequence[GraphFile], layers: int | None, report: Report
) -> Iterator[Sequence[GraphFile]]:
    """Give the language graphs themselves, or one with only ``layers`` decoder layers in a temporary folder."""
    if layers is None:
        yield chain
        return
    from divprune_edge.export.language import build_language_model
    from divprune_edge.export.writer import write_graph

    with tempfile.TemporaryDirectory(prefix=".truncated.", dir=chain[0].path.parent) as partial:
        model = build_language_model(
            plan.spec.with_decoder(plan.spec.decoder.truncated(layers)),
            plan.names,
            plan.checkpoint,
            plan.language_dialect(),
            plan.language_format(),
            plan.token_dtype,
            plan.forbidden,
        )
        write_graph(model, Path(partial), "truncated.onnx", report)
        yield [GraphFile(Path(partial) / "truncated.onnx")]


def _replace(plan: ExportPlan, oracle: Oracle, graphs: list[GraphFile], report: Report) -> None:
    """Give the reference the weights that the graphs have, where these are quantised.

    How far they are from the checkpoint's is a check of its own, against a bound that follows from the format.
    So the graphs are held to what they should compute, not to what a lossy format may cost.
    """
    for graph in graphs:
        for name, weight, _ in graph.dequantised():
            report(f"weight {name}")
            part, path = (HEAD, "weight") if name == plan.names.head else plan.names.split(name)
            oracle.replace(part, path, np.ascontiguousarray(weight))
