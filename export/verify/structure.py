"""Is each weight used where its name says, and is every layer wired like the one that was run?

A model too big for a float32 run is run with its first layers only. That the rest does the same follows from
two facts checked here: a node reads the weights of its own module, and decoder layers differ only in names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.verify.comparison import none_of
from divprune_edge.export.verify.weights import GraphFile, quantised_name
from divprune_edge.manifest import Check

# Operators that read a parameter of their module's child: learned positions are added, not looked up.
_IN_PARENT = ("Add", "Expand")
_LAYER = re.compile(r"^/language_model/layers\.(\d+)/")


def check_structure(
    plan: ExportPlan, encoder: Sequence[GraphFile], chain: Sequence[GraphFile], runs: Sequence[GraphFile]
) -> list[Check]:
    """Check the graphs with weights; ``runs`` are the language graphs that were run, truncated or the same.

    Of a chain's layers some begin or end otherwise than others, so that only what reads which weight is looked at.
    """
    misplaced, readers = [], 0
    for file in (*encoder, *chain):
        for node, weight in _readers(file):
            readers += 1
            if not _belongs(plan, node, weight):
                misplaced.append(f"node '{node.name}' reads '{weight}'")
    read = none_of("structure", "weights misplaced", misplaced, readers, "uses")
    if plan.schedule is not None:
        return [read]
    (language,), (run,) = chain, runs
    layers, depth = plan.spec.decoder.layers, _depth(run)
    shapes = [_layer(language, i) for i in range(layers)]
    alike = [_first_alike(plan, i) for i in range(layers)]
    unlike = [
        f"layer {i} is not wired like layer {alike[i]}"
        for i in range(2, layers)
        if shapes[i] != shapes[alike[i]]
    ]
    unlike += [f"no layer like layer {i} was run" for i in sorted(set(alike)) if depth <= i < layers]
    checks = [
        read,
        none_of("structure", "layers unlike", unlike, layers, "layers"),
    ]
    if run is not language:
        same = _ends(language, layers) == _ends(run, depth)
        same = same and shapes[:depth] == [_layer(run, i) for i in range(depth)]
        findings = [] if same else ["the graph that was run differs from the exported one in more than depth"]
        checks.append(none_of("structure", "unlike what was run", findings, layers, "layers"))
    return checks


def _first_alike(plan: ExportPlan, layer: int) -> int:
    """Return the first decoder layer, the very first apart, that should be wired as this one."""

    def kind(i: int) -> tuple[bool, int | None]:
        # What follows features of the vision tower reads their sum.
        return i <= plan.spec.stacked, plan.spec.decoder.window(i)

    return next((i for i in range(1, layer) if kind(i) == kind(layer)), layer)


def _readers(file: GraphFile) -> Iterable[tuple[Any, str]]:
    weights = set(file.weights())
    for node in file.graph.node:
        for name in node.input:
            if name in weights:
                yield node, name


def _belongs(plan: ExportPlan, node: Any, weight: str) -> bool:
    """Whether ``/language_model/layers.3/mlp/up_proj/MatMul`` may read ``weight``."""
    path = ".".join(node.name.split("/")[1:-1])
    name, _ = quantised_name(weight)
    if name == plan.names.head and path == "lm_head":
        return True
    if name == plan.names.head and not plan.names.tied:
        return False
    module = _module(plan, name)
    return path == module or (node.op_type in _IN_PARENT and path == module.rpartition(".")[0])


def _module(plan: ExportPlan, name: str) -> str:
    """Return the dotted path of the module that owns a weight, with the part's name in the graph in front."""
    part, rest = plan.names.split(name)
    return ".".join(piece for piece in (part, rest.rpartition(".")[0]) if piece)


def _layer(file: GraphFile, index: int) -> list[Any]:
    """Return the nodes of one decoder layer, with its index and the one before taken out of all names."""

    def canonical(name: str) -> str:
        name = _indexed(name, index, "this")
        return _indexed(name, index - 1, "before") if index else name

    nodes = [node for node in file.graph.node if _layer_of(node) == index]
    return [_described(file, node, canonical) for node in nodes]


def _ends(file: GraphFile, layers: int) -> list[Any]:
    """Return the nodes outside the decoder layers, with the last layer's index taken out."""
    nodes = [node for node in file.graph.node if _layer_of(node) is None]
    return [_described(file, node, lambda name: _indexed(name, layers - 1, "last")) for node in nodes]


def _depth(file: GraphFile) -> int:
    return 1 + max((index for node in file.graph.node if (index := _layer_of(node)) is not None), default=-1)


def _layer_of(node: Any) -> int | None:
    found = _LAYER.match(node.name)
    return int(found.group(1)) if found else None


def _indexed(name: str, index: int, word: str) -> str:
    return re.sub(
        rf"\b(layers|deepstack|past_key_values|present|new_key_values)\.{index}(?=[./])", rf"\1.{word}", name
    )


def _described(file: GraphFile, node: Any, canonical: Any) -> tuple[Any, ...]:
    """Everything about a node that counts; a shared constant is its content, whichever layer named it."""

    def source(name: str) -> Any:
        tensor = file.initializers.get(name)
        if tensor is not None and name.startswith("/"):
            return tensor.data_type, tuple(tensor.dims), file.read(name).tobytes()
        return canonical(name)

    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return (
        node.domain,
        node.op_type,
        canonical(node.name),
        tuple(source(name) for name in node.input),
        tuple(canonical(name) for name in node.output),
        tuple(attributes),
    )
