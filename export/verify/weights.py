"""Every exported weight against the checkpoint's bytes, tensor by tensor, with a reader of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.plan import Plan
from divprune_edge.export.verify.comparison import none_of
from divprune_edge.manifest import Check

TRANSPOSED = ".T"

# Tensors of a checkpoint that no graph needs: buffers, CLIP's pooled output, and a head beside a tied one.
_BUFFERS = re.compile(r"\.(position_ids|inv_freq)$|\.post_layernorm\.(weight|bias)$")


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file without its weights, and a way to read these one at a time."""

    path: Path

    @cached_property
    def graph(self) -> Any:
        """The ``GraphProto``; external data is not loaded."""
        import onnx

        return onnx.load(self.path, load_external_data=False).graph

    @cached_property
    def initializers(self) -> dict[str, Any]:
        """Name -> ``TensorProto``."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one initializer; external ones are mapped, not copied."""
        import onnx

        tensor = self.initializers[name]
        where = {entry.key: entry.value for entry in tensor.external_data}
        if not where:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        file, offset = self.path.parent / where["location"], int(where.get("offset", 0))
        return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))

    def weights(self) -> list[str]:
        """Return the names of the initializers that come from a checkpoint."""
        return [
            name
            for name in self.initializers
            if not (name.startswith("/") or name in ("rope.cos", "rope.sin"))
        ]


class StoredWeights:
    """The checkpoint's tensors as torch reads them."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        index = folder / "model.safetensors.index.json"
        files = {"model.safetensors"}
        if index.is_file() and not (folder / "model.safetensors").is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        handles: list[Any] = [safe_open(folder / file, framework="pt") for file in sorted(files)]
        self._handles: dict[str, Any] = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def read(self, name: str, dtype: str, *, transposed: bool) -> npt.NDArray[Any]:
        """Return a tensor cast to ``dtype`` (to the nearest, ties to even)."""
        import torch

        tensor = self._handles[name].get_tensor(name).to(getattr(torch, dtype))
        return np.asarray((tensor.T if transposed else tensor).contiguous().numpy())


def check_weights(plan: Plan, graphs: list[GraphFile], report: Callable[[str], None]) -> list[Check]:
    """Compare every weight of ``graphs`` with the checkpoint, bit for bit after the cast.

    Also counts what should be there and is not, and what the checkpoint has and no graph took.
    """
    stored = StoredWeights(plan.checkpoint.folder)
    changed: list[str] = []
    used: Counter[str] = Counter()
    for graph in graphs:
        for key in graph.weights():
            report(f"weight {key}")
            name = key.removesuffix(TRANSPOSED)
            used[name] += 1
            if name not in stored:
                changed.append(f"'{key}' is not a weight of the checkpoint")
                continue
            wanted = stored.read(name, plan.dtype, transposed=key.endswith(TRANSPOSED))
            difference = _difference(graph.read(key), wanted)
            if difference:
                changed.append(f"'{name}' {difference}")
    needed = plan.names.parameters(plan.spec, plan.embedding_rows, plan.vocabulary)
    absent = [f"'{name}' is in the graphs {used[name]} times" for name in needed if used[name] != 1]
    ignored = [
        f"'{name}' is in no graph" for name in stored if name not in used and not _dispensable(plan, name)
    ]
    return [
        none_of("weights", "changed", changed, sum(used.values()), "weights"),
        none_of("weights", "missing or twice", absent, len(needed), "weights"),
        none_of("weights", "left out", ignored, len(set(stored)), "tensors"),
    ]


def _difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return f"is {found.dtype} {list(found.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
    # As integers: a NaN equals itself, and zero differs from minus zero.
    integers = f"u{found.dtype.itemsize}"
    different = int(np.count_nonzero(found.view(integers) != wanted.view(integers)))
    return f"differs in {different} of {wanted.size} values" if different else ""


def _dispensable(plan: Plan, name: str) -> bool:
    """Whether a tensor may be left out: a buffer, a tower layer above the feature, or a tied head's copy."""
    if _BUFFERS.search(name):
        return True
    if name.endswith("lm_head.weight"):
        return plan.names.tied
    above = re.match(re.escape(plan.names.vision) + r"encoder\.layers\.(\d+)\.", name)
    return above is not None and int(above.group(1)) >= _tower_depth(plan)


def _tower_depth(plan: Plan) -> int:
    """Tower layers that the feature needs, from the config itself: hidden state i comes after i layers."""
    config = plan.checkpoint.config
    feature = config.get("vision_feature_layer")
    indices = [-2] if feature is None else feature if isinstance(feature, list) else [feature]
    return max(i if i >= 0 else plan.spec.vision.layers + 1 + i for i in indices)
