"""A bundle against a target: each graph against the operator list, and the memory forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from divprune_edge.errors import UserError
from divprune_edge.export.check.asked import RtxAnswers, ask_tensorrt, is_installed
from divprune_edge.export.check.findings import Finding, errors, grouped
from divprune_edge.export.check.graph import GraphView, read_graph
from divprune_edge.export.check.host import host_findings
from divprune_edge.export.check.lint import lint_graph
from divprune_edge.export.check.liveness import Activations, live_activations, size_of
from divprune_edge.export.check.rtx import INSTALL, answer_findings, rtx_findings, unknown_findings
from divprune_edge.export.check.tables import OperatorTable, table_for
from divprune_edge.export.selector import PLUGINS
from divprune_edge.manifest import (
    RESTORE,
    GraphInfo,
    LanguageInfo,
    Manifest,
    SelectorInfo,
    TensorInfo,
    VisionInfo,
    read_manifest,
)
from divprune_edge.models.budget import least_capacity
from divprune_edge.models.dialects import DIALECTS, FOR_TENSORRT, row_bytes
from divprune_edge.models.memory import Elements, Forecast, Need, forecast, refusal, tile_buffers
from divprune_edge.models.selectors import find_selector
from divprune_edge.models.targets import Target
from divprune_edge.models.tensorrt import needs_stripped
from divprune_edge.processing.patches import held_dimensions, most_dimensions

PLUGIN_TOKENS = 32768
PLUGIN_WIDTHS = range(8, 65536 + 1, 8)
"""What ``plugins/csrc`` refuses otherwise, when an engine is built (docs/plugin.md)."""


@dataclass(frozen=True)
class GraphReport:
    """One file that was looked at. ``plugin`` says that a node of it is left to the TensorRT plugin."""

    file: str
    nodes: int
    opset: int
    plugin: bool = False


@dataclass(frozen=True)
class CheckReport:
    """What the check of a bundle found.

    Attributes:
        bundle: its folder.
        target: the device.
        dialect: of the bundle's language model.
        provenance: which operator list, None for a target without TensorRT.
        attributes: which checkers of attributes, None for a target without TensorRT.
        graphs: what was looked at.
        findings: what is against it.
        forecast: memory, None where the target has none of its own.
        stored: bytes of all weights as the files have them.
        widest: the language graph's activations at their widest point.
        refused: the sentence for what does not fit, None where it does.
        asked: what TensorRT-RTX itself said; None where it was not asked.
        unasked: why it was not asked; None where it was.
    """

    bundle: Path
    target: Target
    dialect: str
    provenance: str | None
    attributes: str | None
    graphs: tuple[GraphReport, ...]
    findings: tuple[Finding, ...]
    forecast: Forecast | None
    stored: int
    widest: Activations
    refused: str | None
    asked: RtxAnswers | None
    unasked: str | None

    @property
    def clean(self) -> bool:
        """Whether neither list nor TensorRT-RTX refuses anything, and the memory suffices."""
        return not errors(self.findings) and self.refused is None


def check_bundle(
    bundle: Path, target: Target, context: int | None = None, *, build: bool = True
) -> CheckReport:
    """Check a bundle for a target.

    Args:
        bundle: its folder.
        target: the device.
        context: tokens of prompt and answer; None takes all that there is room for.
        build: let TensorRT-RTX build what it parsed, where it is installed.

    Raises:
        UserError: no bundle, a graph that cannot be read, or a context that there is no room for.
    """
    manifest = read_manifest(bundle)
    info = manifest.language_model
    dialect = DIALECTS[info.dialect]
    tokens = _tokens(info, context)
    views = {
        graph.file: read_graph(_existing(bundle, graph.file), _dims(manifest, graph, tokens))
        for graph in (*manifest.seeing, *info.graphs)
    }
    vision, chain = views[manifest.vision_encoder.file], [views[graph.file] for graph in info.graphs]
    graphs: list[GraphReport] = []
    findings: list[Finding] = []
    listed = target.edition is not None and target.edition.listed
    table = table_for(target.tensorrt) if target.tensorrt and listed else None
    if table is None:
        findings += host_findings(manifest, target) if target.tensorrt is None else rtx_findings(manifest)
        # TensorRT-RTX takes no plugin.
        selectors = [selector.file for selector in manifest.selectors] if target.tensorrt else []
        looked = views | {file: read_graph(_existing(bundle, file)) for file in selectors}
        graphs += [GraphReport(file, _count(view), view.opsets.get("", 0)) for file, view in looked.items()]
    else:
        for file, view in views.items():
            plain = read_graph(bundle / file)
            graphs.append(GraphReport(file, _count(view), view.opsets.get("", 0)))
            findings += lint_graph(plain, table, file=file)
        for selector in manifest.selectors:
            graph, found = _selector(bundle, manifest.vision_encoder, selector, table)
            graphs.append(graph)
            findings += found
    asked = unasked = None
    if target.tensorrt is None or info.dialect not in FOR_TENSORRT:
        unasked = f"dialect {info.dialect} on {target.title} is not for TensorRT"
    elif is_installed():
        asked = ask_tensorrt(bundle, target, build=build)
        findings += answer_findings(asked)
    else:
        unasked = f"its parser and builder need no GPU, but are not installed: {INSTALL}"
        findings += unknown_findings(target)
    activations = {file: live_activations(view) for file, view in views.items()}
    row = row_bytes(info.kv_heads, info.head_dim, np.dtype(info.cache_dtype).itemsize)
    need = Need(
        vision=_held(vision),
        language=sum(map(_held, chain)),
        cache=dialect.cache_bytes(info.groups, row, tokens),
        # Of a chain one graph runs after the other, in the same memory.
        activations=sum(activations[graph.file].peak for graph in manifest.seeing)
        + max(activations[graph.file].peak for graph in info.graphs)
        + _selectors_peak(bundle, manifest)
        + _tile_buffers(manifest)
        + dialect.rows_beside(tokens) * info.layers * row,
        rows=info.capacity or tokens,
    )
    known = forecast(target, need)
    least = least_capacity(manifest_keep(manifest), info.context) if info.capacity else need.rows
    refused = None
    if known is not None and not known.fits:
        refused = refusal(known, elements_of(vision, chain), least)
    return CheckReport(
        bundle=bundle,
        target=target,
        dialect=info.dialect,
        provenance=None if table is None else table.provenance,
        attributes=None if table is None else table.checkers.provenance,
        graphs=tuple(graphs),
        findings=tuple(grouped(findings)),
        forecast=known,
        stored=sum(_stored(view) for view in views.values()),
        widest=max((activations[graph.file] for graph in info.graphs), key=lambda one: one.peak),
        refused=refused,
        asked=asked,
        unasked=unasked,
    )


def manifest_keep(manifest: Manifest) -> int:
    """Return the largest number of visual tokens that a selector of the bundle hands on."""
    return max((manifest.visual_tokens(s) for s in manifest.selectors), default=manifest.visual_tokens(None))


def elements_of(vision: GraphView, chain: Sequence[GraphView]) -> Elements:
    """Count weights: a matrix is what a MatMul multiplies with, by itself or taken from few bits."""
    matrices = 0
    scales: set[str] = set()
    seen: set[str] = set()
    for node in (node for view in chain for node in view.everything()):
        used = (
            node.input(1) if node.op == "MatMul" else node.input(0) if node.op == "DequantizeLinear" else None
        )
        if used is not None and used.stored and used.name not in seen and used.rank == 2:
            seen.add(used.name)
            matrices += _elements(used.shape)
        if node.op == "DequantizeLinear":
            scales |= {tensor.name for tensor in node.inputs[1:] if tensor is not None}
    weights = ((n, w) for view in chain for n, w in view.weights.items())
    rest = sum(_elements(w.shape) for n, w in weights if n not in seen and n not in scales)
    return Elements(sum(_elements(w.shape) for w in vision.weights.values()), matrices, rest)


def _elements(shape: tuple[int | None, ...] | None) -> int:
    total = 1
    for dim in shape or ():
        total *= dim or 0
    return total


def _selector(
    bundle: Path, vision: VisionInfo, info: SelectorInfo, table: OperatorTable
) -> tuple[GraphReport, list[Finding]]:
    """Look at the variant of a selector that this TensorRT needs."""
    file = info.file
    plugin = info.stripped is not None
    if info.stripped is not None and needs_stripped(table.tensorrt):
        file = info.stripped
    view = read_graph(_existing(bundle, file))
    found = [] if plugin and file == info.file else lint_graph(view, table, file=file, plugins=PLUGINS)
    if plugin and (vision.looked_at not in PLUGIN_WIDTHS or info.candidates > PLUGIN_TOKENS):
        message = (
            f"the plugin takes up to {PLUGIN_TOKENS} tokens whose width is a multiple of {PLUGIN_WIDTHS.step}, up to "
            f"{PLUGIN_WIDTHS[-1]}, but there are {info.candidates} of width {vision.looked_at}"
        )
        found.append(Finding(file, "error", "plugin", find_selector(info.name).op_type, message))
    return GraphReport(file, _count(view), view.opsets.get("", 0), plugin), found


def _tokens(info: LanguageInfo, context: int | None) -> int:
    if context is None:
        return info.positions
    if not 1 <= context <= info.positions:
        hint = f" (export with --capacity {context})" if info.positions < context <= info.context else ""
        raise UserError(
            f"--context {context} is out of range: the bundle's language model has room for {info.positions} tokens"
            f"{hint}.",
            code="context-out-of-range",
        )
    return context


def _dims(manifest: Manifest, graph: GraphInfo, tokens: int) -> dict[str, int]:
    """Numbers for a graph's symbolic dimensions: one image, one sequence, a prefill of all tokens at once."""
    rows, facts = manifest.assemble, manifest.preprocessing
    whole = rows is not None and graph is rows
    info = manifest.language_model
    if graph in info.graphs:
        tokens = info.groups[info.graphs.index(graph)].rows(tokens)
    return {
        "batch": 1,
        "tiles": rows.tiles if rows is not None and whole else manifest.tiles_at_once,
        "frames": manifest.tiles_at_once,
        "groups": manifest.groups,
        **(held_dimensions(facts) if whole else most_dimensions(facts.patches)),
        "seq": tokens,
        "visual": manifest_keep(manifest),
        "past": 0,
        "total": tokens,
        "capacity": tokens,
        "keys": tokens,
        "scored": manifest_keep(manifest),
        **{f"{name}_rows": tokens for name in ("asked", "text", "visual", "all")},
    }


def _existing(bundle: Path, file: str) -> Path:
    if not (bundle / file).is_file():
        raise UserError(
            f"'{bundle}' has no '{file}', which its manifest names: {RESTORE}.",
            code="bundle-file-missing",
        )
    return bundle / file


def _count(view: GraphView) -> int:
    return sum(1 for _ in view.everything())


def _stored(view: GraphView) -> int:
    return sum(size_of(weight) or 0 for weight in view.weights.values())


def _held(view: GraphView) -> int:
    """Return the bytes of a graph's weights as TensorRT would hold them: what is looked up and multiplied, twice."""
    looked_up = {n.inputs[0].name for n in view.everything() if n.op == "Gather" and n.inputs[0] is not None}
    multiplied = {
        tensor.name
        for node in view.everything()
        if node.op in ("Gemm", "MatMul")
        for tensor in node.inputs
        if tensor is not None
    }
    twice = sum(size_of(view.weights[name]) or 0 for name in looked_up & multiplied if name in view.weights)
    return _stored(view) + twice


def _tile_buffers(manifest: Manifest) -> int:
    """Return what an image's tiles are held in between encoder and selector; nothing where it is one."""
    rows, facts = manifest.assemble, manifest.preprocessing
    if rows is None:
        return 0
    given, at_once = manifest.vision_encoder.outputs, manifest.tiles_at_once
    made = [tensor for tensor in rows.inputs if tensor.name in ("rows", "weights")]
    return tile_buffers(
        _bytes(given, {**most_dimensions(facts.patches), "tiles": at_once}),
        _bytes(given, {**held_dimensions(facts), "tiles": rows.tiles}) if rows.tiles > at_once else 0,
        _bytes([*made, *rows.outputs], {}),
        manifest.groups,
    )


def _bytes(tensors: Iterable[TensorInfo], sizes: Mapping[str, int]) -> int:
    """Return the bytes of tensors with ``sizes`` for their symbolic dimensions, one for others."""
    return sum(
        prod(sizes.get(size, 1) if isinstance(size, str) else size for size in tensor.shape)
        * np.dtype(tensor.dtype).itemsize
        for tensor in tensors
    )


def _selectors_peak(bundle: Path, manifest: Manifest) -> int:
    """Return the activations of the default selector."""
    default = [s for s in manifest.selectors if s.id == manifest.default_selector]
    return sum(live_activations(read_graph(_existing(bundle, s.file), {"batch": 1})).peak for s in default)
