"""A selector graph: one node of the custom domain, with a model-local function that says what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from divprune_edge.export.graph import FunctionBuilder, GraphBuilder
from divprune_edge.export.writer import write_graph
from divprune_edge.manifest import GraphInfo, SelectorInfo, TensorInfo
from divprune_edge.models.selectors import Selector

DOMAIN = "divprune_edge"
OPSET = 18
PLUGIN_VERSION = "1"
PLUGINS = ("MaxMinDiversity",)
"""Nodes that a TensorRT plugin takes."""


def selector_id(name: str, keep: int) -> str:
    """Return the id of a selector in a bundle, such as ``divprune-58``."""
    return f"{name}-{keep}"


def signal_inputs(selector: Selector, features: GraphInfo) -> list[TensorInfo]:
    """Return the outputs of the graph that it reads which ``selector`` declares, in its order."""
    outputs = {output.name: output for output in features.outputs}
    return [outputs[signal] for signal in selector.signals]


def write_selector(
    selector: Selector,
    candidates: int,
    keep: int,
    width: int,
    dtype: str,
    folder: Path,
    signals: Sequence[TensorInfo] = (),
    token: int | None = None,
) -> SelectorInfo:
    """Write a selector under ``folder/selectors`` and return its entry in the manifest.

    In ``selectors/stripped`` goes the same graph without its function: up to version 10.6 TensorRT takes a
    model-local function before a plugin of that name. Where there is no plugin, or no node (a
    budget of all tokens), it is left out.
    """
    new = selector_id(selector.name, keep)
    graph = write_graph(
        build_selector(selector, candidates, keep, width, dtype, signals=signals, token=token),
        folder,
        f"selectors/{new}.onnx",
    )
    stripped = None
    if keep < candidates and selector.op_type in PLUGINS:
        plain = build_selector(
            selector, candidates, keep, width, dtype, signals=signals, token=token, local_function=False
        )
        stripped = write_graph(plain, folder, f"selectors/stripped/{new}.onnx").file
    return SelectorInfo(
        **graph.model_dump(),
        id=new,
        name=selector.name,
        keep=keep,
        candidates=candidates,
        parameters=dict(selector.parameters),
        stripped=stripped,
        signals=selector.signals,
    )


def build_selector(
    selector: Selector,
    candidates: int,
    keep: int,
    width: int,
    dtype: str,
    *,
    signals: Sequence[TensorInfo] = (),
    token: int | None = None,
    local_function: bool = True,
) -> ir.Model:
    """Return the model ``visual_tokens [batch, N, D], valid [batch, N] -> kept_tokens, kept_indices``.

    ``signals`` are the encoder outputs that the selector declares, in its order; each is one more input. ``token`` is
    how many of the ``width`` values of a row are the token, which alone is looked at; None: all of them.

    ::

        visual_tokens ─┬► MaxMinDiversity(k) ─► kept_tokens [batch, K, D]
        valid ─────────┘                     └► kept_indices int64 [batch, K], ascending

    The node carries the TensorRT plugin's version and namespace: a plugin of that name takes it, every other
    runtime inlines the function. Without ``local_function`` the node needs the plugin. A budget of all tokens is
    the identity and needs no node.
    """
    g = GraphBuilder(f"selector_{selector_id(selector.name, keep)}")
    tokens = g.input("visual_tokens", dtype, ["batch", candidates, width])
    valid = g.input("valid", "bool", ["batch", candidates])
    extra = [g.input(info.name, info.dtype, ["batch", *info.shape[1:]]) for info in signals]
    functions: list[ir.Function] = []
    if keep == candidates:
        kept, indices = tokens, _every_index(g, tokens, candidates)
    else:
        selector.check_grid(candidates)
        functions = [_function(selector, candidates, keep, dtype)] if local_function else []
        rows = tokens
        if token is not None and token < width:
            rows = g.op("Slice", tokens, g.constant([0]), g.constant([token]), g.constant([2]))
        kept, indices = g.ops(
            selector.op_type,
            rows,
            valid,
            *extra,
            domain=DOMAIN,
            outputs=2,
            k=keep,
            plugin_version=PLUGIN_VERSION,
            plugin_namespace="",
        )
        if rows is not tokens:
            kept = g.op("GatherND", tokens, g.op("Unsqueeze", indices, g.constant([2])), batch_dims=1)
    g.output(kept, "kept_tokens", dtype, ["batch", keep, width])
    g.output(indices, "kept_indices", "int64", ["batch", keep])
    return g.model(OPSET, functions=functions, domains=[DOMAIN] if keep < candidates else [])


def _every_index(g: GraphBuilder, tokens: ir.Value, candidates: int) -> ir.Value:
    shape = g.op("Concat", g.op("Shape", tokens, start=0, end=1), g.constant([candidates]), axis=0)
    return g.op("Expand", g.constant(np.arange(candidates)), shape)


def _function(selector: Selector, candidates: int, keep: int, dtype: str) -> ir.Function:
    """The body, specialised to N and K; the node's attributes are declared so that it accepts them."""
    f = FunctionBuilder(selector.op_type)
    tokens, valid = f.declare("visual_tokens"), f.declare("valid")
    signals = {name: f.declare(name) for name in selector.signals}
    indices = selector.body(f, tokens, valid, candidates, keep, **signals)
    if selector.merge is None:
        kept = f.op("GatherND", tokens, f.op("Unsqueeze", indices, f.constant([2])), batch_dims=1)
    else:
        kept = f.cast(selector.merge.body(f, tokens, valid, candidates, keep, indices, **signals), dtype)
    f.deliver(kept, "kept_tokens")
    f.deliver(f.op("Identity", indices), "kept_indices")
    attributes = [
        ir.Attr("k", ir.AttributeType.INT, keep),
        ir.Attr("plugin_version", ir.AttributeType.STRING, PLUGIN_VERSION),
        ir.Attr("plugin_namespace", ir.AttributeType.STRING, ""),
    ]
    return f.function(DOMAIN, OPSET, attributes)


def build_selection_check(write: Callable[[Any, Any, Any], Any], candidates: int) -> ir.Model:
    """Return a model ``distances [batch, N, N], valid [batch, N] -> picks``, to test a rule by itself.

    Two implementations that compute distances differently may differ in the last bit; on a shared distance
    matrix their picks must be the same.
    """
    g = GraphBuilder("selection_check")
    distances = g.input("distances", "float32", ["batch", candidates, candidates])
    valid = g.input("valid", "bool", ["batch", candidates])
    g.output(write(g, distances, valid), "picks", "int64", ["batch", "keep"])
    return g.model(OPSET)
