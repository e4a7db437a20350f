"""From TensorRT's layer names back to the model's modules.

Nodes are named after their module path (``/language_model/layers.3/mlp/down_proj/MatMul``). TensorRT fuses them and
joins the names with `` + ``, wraps pointwise ones as ``PWN(…)``, names a whole compiled region after its first and last
node (``{ForeignNode[a...b]}``), and its own kernels ``__myl_…``, whose nodes are in the layer's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from divprune_edge.runtime.lab.trtexec.records import LayerInfo, LayerTime

OWN = "(TensorRT's own)"
"""The group of layers that tell no node."""
COPIES = "(copies and reformatting)"
_COPY = re.compile(r"^(Reformatting CopyNode|reformat|copied|\S*\s*copy\b)", re.IGNORECASE)
_PATH = re.compile(r"/[A-Za-z0-9_][\w.\-]*(?:/[A-Za-z0-9_][\w.\-]*)*")
_SUFFIX = re.compile(r"_myl\d+_\d+$")
_INDEX = re.compile(r"\.\d+(?=/|$)")


@dataclass(frozen=True)
class Group:
    """The layers of one module, or of the same module in every block (``layers.*``): how many, and their time."""

    module: str
    layers: int
    ms: float


def module_of(name: str, info: LayerInfo | None = None) -> str:
    """Return the module path that a layer belongs to: its node's, or what the paths of its nodes have in common."""
    if _COPY.match(name):
        return COPIES
    nodes = _nodes(name) or (_nodes(" ".join(info.onnx_nodes)) if info else [])
    if not nodes:
        return OWN
    common = _common([node.split("/")[1:-1] for node in nodes])
    return "/" + "/".join(common)


def group_layers(layers: Sequence[LayerTime], infos: Mapping[str, LayerInfo]) -> list[Group]:
    """Return groups by module, blocks taken together, the slowest first. Times are sums of medians in milliseconds."""
    counts: dict[str, int] = {}
    times: dict[str, float] = {}
    for layer in layers:
        module = _INDEX.sub(".*", module_of(layer.name, infos.get(layer.name)))
        counts[module] = counts.get(module, 0) + 1
        times[module] = times.get(module, 0.0) + layer.median
    groups = [Group(module, counts[module], times[module]) for module in counts]
    return sorted(groups, key=lambda group: (-group.ms, group.module))


def _nodes(text: str) -> list[str]:
    return [_SUFFIX.sub("", path) for path in _PATH.findall(text.replace("...", " "))]


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    together = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in together]
