"""From a settled plan to a bundle on disk."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from divprune_edge.errors import DivpruneError
from divprune_edge.export.assemble import build_assemble
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.language import build_language_model
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.selector import signal_inputs, write_selector
from divprune_edge.export.vision import build_vision_encoder
from divprune_edge.export.writer import (
    Progress,
    check_disk,
    check_output,
    hash_files,
    staged,
    tool_versions,
    write_graph,
    write_manifest,
)
from divprune_edge.manifest import (
    UNPRUNED,
    AssembleInfo,
    CutInfo,
    FileInfo,
    GraphInfo,
    LanguageCost,
    LanguageInfo,
    Manifest,
    Prompt,
    ScheduleInfo,
    SegmentInfo,
    Source,
    Verification,
    VisionInfo,
)
from divprune_edge.models.cost import decoder_parts
from divprune_edge.models.schedules import Schedule
from divprune_edge.models.tiles import row_width, tiles_of

VISION_FILE = "vision_encoder.onnx"
ASSEMBLE_FILE = "assemble.onnx"
LANGUAGE_FILE = "language_model.onnx"

Verify = Callable[[ExportPlan, Path], Verification]


class VerificationFailed(DivpruneError):
    """The graphs do not do what PyTorch does; the bundle was not written."""


class Reporter(Protocol):
    """Told what the export is doing."""

    def stage(self, title: str, weights: int = 0) -> AbstractContextManager[Progress]:
        """Return a context for one stage of ``weights`` steps; it gives the callback that counts them."""
        ...


def export_bundle(
    plan: ExportPlan, output: Path, *, force: bool, verify: Verify, report: Reporter
) -> Manifest:
    """Write the bundle of ``plan`` to ``output``, whole or not at all.

    Args:
        plan: what to export.
        output: folder of the bundle.
        force: replace a bundle that is there.
        verify: compares the staged graphs with PyTorch, or says why it did not.
        report: shows progress.

    Raises:
        UserError: the output exists, the disk is too small, or weights do not fit the precision.
        VerificationFailed: a check is out of tolerance.
    """
    check_output(output, force)
    check_disk(output, plan.weight_bytes)
    with staged(output, force=force) as folder:
        hashed: dict[str, FileInfo] = {}
        vision = _vision(plan, folder, report, hashed)
        assemble = _assemble(plan, folder, vision)
        selector = write_selector(
            plan.selector,
            plan.candidates,
            plan.keep,
            row_width(plan.spec),
            plan.token_dtype,
            folder,
            signal_inputs(plan.selector, assemble or vision),
            plan.spec.width,
        )
        language = _language(plan, folder, report, hashed)
        prompt = _prompt(plan, folder)
        _copy_licence(plan.checkpoint, folder)
        verification = verify(plan, folder)
        failed = [check for check in verification.checks if not check.passed]
        if failed:
            raise VerificationFailed(
                f"The graphs do not match PyTorch: {failed[0].stage} {failed[0].name} is {failed[0].value:.3g} "
                f"{failed[0].unit} (limit {failed[0].limit}); no bundle was written.",
                code="verification-failed",
            )
        with report.stage("sha256 of every file"):
            files = hash_files(folder, hashed)
        manifest = Manifest(
            family=plan.family.name,
            precision=str(plan.precisions),
            block_size=plan.precisions.block_size if plan.precisions.has_blocks else None,
            calibrated=bool(plan.moments),
            target=plan.target,
            token_dtype=plan.token_dtype,
            numbering=plan.numbering,
            vision_encoder=vision,
            assemble=assemble,
            selectors=(selector,),
            # Where all tokens are to enter, and leave inside, a selector would have nothing to do.
            default_selector=UNPRUNED if plan.all_enter else selector.id,
            language_model=language,
            preprocessing=plan.preprocessing,
            prompt=prompt,
            source=_source(plan.checkpoint),
            verification=verification,
            tools=tool_versions(),
            files=files,
        )
        write_manifest(folder, manifest)
    return manifest


def _vision(plan: ExportPlan, folder: Path, report: Reporter, hashed: dict[str, FileInfo]) -> VisionInfo:
    spec = plan.spec
    model = build_vision_encoder(plan, plan.vision_format(), plan.signals)
    with report.stage(VISION_FILE, len(model.graph.initializers)) as progress:
        graph = write_graph(model, folder, VISION_FILE, progress, hashed)
    return VisionInfo(
        **_fields(graph),
        tokens=spec.tokens,
        width=row_width(spec),
        token_width=spec.width,
        image_height=None if spec.image_size is None else spec.image_size[0],
        image_width=None if spec.image_size is None else spec.image_size[1],
        precision=plan.precisions.vision,
        flops=spec.vision_flops + spec.projector_flops,
        signals=tuple(spec.signal_shapes()),
        uncut=None if spec.encoder_cut is None else spec.encoder_cut.tokens,
        cut=None if spec.encoder_cut is None else (spec.encoder_cut.layer, spec.encoder_cut.keep),
    )


def _assemble(plan: ExportPlan, folder: Path, vision: VisionInfo) -> AssembleInfo | None:
    if plan.spec.rows is None:
        return None
    graph = write_graph(build_assemble(plan, vision), folder, ASSEMBLE_FILE)
    return AssembleInfo(
        **_fields(graph),
        rows=plan.candidates,
        sources=plan.sources,
        tiles=tiles_of(plan.spec),
        frames=plan.spec.rows.frames,
        per=plan.per,
    )


def _language(plan: ExportPlan, folder: Path, report: Reporter, hashed: dict[str, FileInfo]) -> LanguageInfo:
    decoder = plan.spec.decoder
    graphs: list[GraphInfo] = []
    for i, part in enumerate(plan.parts):
        model = build_language_model(
            plan.spec,
            plan.names,
            plan.checkpoint,
            plan.language_dialect(i),
            plan.language_format(),
            plan.token_dtype,
            plan.forbidden,
            part,
        )
        file = LANGUAGE_FILE if plan.schedule is None else segment_file(i)
        with report.stage(file, len(model.graph.initializers)) as progress:
            graphs.append(write_graph(model, folder, file, progress, hashed))
    return LanguageInfo(
        **_fields(graphs[0]),
        precision=plan.precisions.language,
        dialect=plan.dialect.facts.name,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        cache_dtype=plan.language_dtype,
        embedding_rows=plan.embedding_rows,
        vocabulary=plan.vocabulary,
        context=decoder.context,
        cost=_language_cost(plan, folder, graphs),
        capacity=plan.capacity,
        window=decoder.only_window if plan.capacity else None,
        schedule=_schedule(plan.schedule),
        segments=_segments(plan, graphs),
    )


def segment_file(index: int) -> str:
    """Return what a graph of the chain is called."""
    return f"language_model.{index}.onnx"


def _schedule(schedule: Schedule | None) -> ScheduleInfo | None:
    if schedule is None:
        return None
    return ScheduleInfo(
        method=schedule.method,
        visual_tokens=schedule.visual,
        numbering=schedule.numbering,
        since=schedule.since,
        cuts=tuple(CutInfo(before=cut.before, keep=cut.keep) for cut in schedule.cuts),
    )


def _segments(plan: ExportPlan, graphs: Sequence[GraphInfo]) -> tuple[SegmentInfo, ...]:
    if plan.schedule is None:
        return ()
    return tuple(
        SegmentInfo(**_fields(graph), first=part.first, layers=part.layers, capacity=capacity)
        for graph, part, capacity in zip(graphs, plan.parts, plan.capacities, strict=True)
    )


def _language_cost(plan: ExportPlan, folder: Path, graphs: Sequence[GraphInfo]) -> LanguageCost:
    """Return what a step costs; a step looks up a few rows of the embedding, unless the head multiplies with it."""
    flops = decoder_parts(plan.spec.decoder, plan.vocabulary)
    stored = sum((folder / name).stat().st_size for graph in graphs for name in (graph.file, *graph.data))
    format = plan.language_format()
    is_head = plan.names.tied and not plan.has_second_head
    itemsize = np.dtype(format.dtype).itemsize
    embedding = 0 if is_head else plan.embedding_rows * plan.spec.width * itemsize
    return LanguageCost(
        token_flops=flops.token,
        pair_flops=flops.pair,
        logits_flops=flops.logits,
        weight_bytes=stored - embedding,
    )


def _fields(graph: GraphInfo) -> dict[str, object]:
    return {name: getattr(graph, name) for name in GraphInfo.model_fields}


def _prompt(plan: ExportPlan, folder: Path) -> Prompt:
    facts = plan.prompt
    (folder / facts.entry.tokenizer).write_text(facts.tokenizer, encoding="utf-8")
    (folder / facts.entry.chat_template).write_text(facts.template, encoding="utf-8")
    return facts.entry


def _copy_licence(checkpoint: Checkpoint, folder: Path) -> None:
    for path in sorted(checkpoint.folder.glob("LICENSE*")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _source(checkpoint: Checkpoint) -> Source:
    card = checkpoint.files.text("README.md") or ""
    licence = re.search(r"\A---\n(?:.*\n)*?license:\s*['\"]?([\w.-]+)", card)
    return Source(
        model=checkpoint.name,
        revision=checkpoint.revision,
        licence=licence.group(1) if licence else None,
        config_sha256=hashlib.sha256((checkpoint.folder / "config.json").read_bytes()).hexdigest(),
        adapter=checkpoint.adapter_source,
    )
