"""Every exported weight against the checkpoint's bytes, tensor by tensor, with a reader of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.verify.adapter import PeftAdapter
from divprune_edge.export.verify.comparison import none_of
from divprune_edge.manifest import Check
from divprune_edge.models.files import CheckpointFiles

TRANSPOSED = ".T"
SCALE = ".scale"

# A value in few bits may be half a step from where it was, and a step is the group's peak divided by the number
# of positive levels: 7.5 of int4, 64 of int8 (127.5 in an output head). Beyond that it is another value; the
# margin is for the float32 division.
_STEPS = {".int4": 7.5, ".int8": 64.0}
_MARGIN = 1.001

# GPTQ moves single values by more than half a step for the sake of the layer's output. Over a row that stays
# below two steps; another row, or one of another layer, is several steps away.
_ROW_STEPS = 2.0

_BUFFERS = re.compile(r"\.(position_ids|inv_freq)$")


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
        file, offset = self.path.parent / where["location"], int(where.get("offset", 0))
        shape = tuple(tensor.dims)
        if tensor.data_type == onnx.TensorProto.INT4:
            packed = np.memmap(file, np.uint8, "r", offset, (-(-int(np.prod(shape)) // 2),))
            return _unpacked(packed)[: int(np.prod(shape))].reshape(shape)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(file, dtype, "r", offset, shape)

    def is_quantised(self) -> bool:
        """Whether any weight is in few bits."""
        return any(quantised_name(key)[1] for key in self.weights())

    def dequantised(self) -> Iterator[tuple[str, npt.NDArray[np.float32], str]]:
        """Yield (name in the checkpoint, float32 [out, in], suffix of its type) of every quantised weight."""
        for key in self.weights():
            name, suffix = quantised_name(key)
            if suffix in _STEPS:
                values = self.read(key).astype(np.float32).T
                scales = self.read(f"{name}{TRANSPOSED}{SCALE}").astype(np.float32)
                scales = scales.T.reshape(len(values), -1, 1)
                yield name, (values.reshape(*scales.shape[:2], -1) * scales).reshape(values.shape), suffix

    def weights(self) -> list[str]:
        """Return the names of the initializers that come from a checkpoint."""
        return [
            name
            for name in self.initializers
            if not (name.startswith("/") or name in ("rope.cos", "rope.sin"))
        ]


def quantised_name(key: str) -> tuple[str, str]:
    """Split an initializer's name into the weight's own and the suffix of a quantised part, if it is one."""
    found = re.fullmatch(rf"(.*){re.escape(TRANSPOSED)}(\.int[48]|{re.escape(SCALE)})", key)
    return (found.group(1), found.group(2)) if found else (key.removesuffix(TRANSPOSED), "")


def _unpacked(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the int4 values of bytes, the lower half first."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8)


class StoredWeights:
    """The checkpoint's tensors as torch reads them, and peft merges them where there is an adapter."""

    def __init__(self, folder: Path, adapter: PeftAdapter | None = None) -> None:
        self.adapter = adapter
        from safetensors import safe_open

        index = folder / "model.safetensors.index.json"
        files = {"model.safetensors"}
        if index.is_file() and not (folder / "model.safetensors").is_file():
            files = set(
                CheckpointFiles(folder).required_json(index.name, "lists the shards")["weight_map"].values()
            )
        handles: list[Any] = [safe_open(folder / file, framework="pt") for file in sorted(files)]
        self._handles: dict[str, Any] = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this weight."""
        return self.adapter is not None and name in self.adapter

    def read(self, name: str, dtype: str, *, transposed: bool) -> npt.NDArray[Any]:
        """Return a tensor cast to ``dtype`` (to the nearest, ties to even)."""
        import torch

        tensor = self._handles[name].get_tensor(name)
        if self.is_merged(name) and self.adapter is not None:
            tensor = self.adapter.merged(name, tensor.float())
        tensor = tensor.to(getattr(torch, dtype))
        return np.asarray((tensor.T if transposed else tensor).contiguous().numpy())


def check_weights(
    plan: ExportPlan,
    graphs: list[GraphFile],
    report: Callable[[str], None],
    adapter: PeftAdapter | None = None,
) -> list[Check]:
    """Compare every weight of ``graphs`` with the checkpoint, merged by peft where there is an ``adapter``.

    Floating-point weights must be equal bit for bit after the cast (merged ones to the rounding of a product in
    float32, whose order is the library's), quantised ones within half a step. Also
    counts what should be there and is not, and what the checkpoint has and no graph took.
    """
    stored = StoredWeights(plan.checkpoint.folder, adapter)
    changed: list[str] = []
    used: Counter[str] = Counter()
    for graph in graphs:
        for key in graph.weights():
            name, suffix = quantised_name(key)
            if name not in stored:
                changed.append(f"'{key}' is not a weight of the checkpoint")
            if suffix:
                continue
            report(f"weight {key}")
            used[name] += 1
            if name in stored:
                wanted = stored.read(name, _dtype(plan, name), transposed=key.endswith(TRANSPOSED))
                compare = _rounding_difference if stored.is_merged(name) else _difference
                difference = compare(graph.read(key), wanted)
                if difference:
                    changed.append(f"'{name}' {difference}")
        for name, found, suffix in graph.dequantised():
            report(f"weight {name}")
            used[name] += 1
            if name in stored:
                wanted = stored.read(name, "float32", transposed=False)
                measure = _row_distance if name in plan.moments and suffix == ".int4" else _distance
                difference = measure(found, wanted, suffix, plan, name)
                if difference:
                    changed.append(f"'{name}' {difference}")
    needed = plan.names.parameters(plan.spec, plan.embedding_rows, plan.vocabulary)
    absent = [
        f"'{name}' is in the graphs {used[name]} times"
        for name in needed
        if used[name] not in _uses(plan, name)
    ]
    ignored = [
        f"'{name}' is in no graph" for name in stored if name not in used and not _dispensable(plan, name)
    ]
    return [
        none_of("weights", "changed", changed, sum(used.values()), "weights"),
        none_of("weights", "missing or twice", absent, len(needed), "weights"),
        none_of("weights", "left out", ignored, len(set(stored)), "tensors"),
    ]


def _dtype(plan: ExportPlan, name: str) -> str:
    return plan.token_dtype if plan.names.in_encoder(name) else plan.language_dtype


def _uses(plan: ExportPlan, name: str) -> tuple[int, ...]:
    """A tied head may be a matrix of its own beside the embedding; a norm may be at both sides of a schedule's cut."""
    if name == plan.names.head and plan.has_second_head:
        return (2,)
    return (1, 2) if plan.schedule is not None and name.endswith(".input_layernorm.weight") else (1,)


def _distance(
    found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], suffix: str, plan: ExportPlan, name: str
) -> str:
    """Say how many values are more than half a step from the checkpoint's, whatever scale the graph has."""
    if found.shape != wanted.shape:
        return f"is {list(found.shape)}, expected {list(wanted.shape)}"
    group = plan.precisions.block_size if suffix == ".int4" else wanted.shape[1]
    groups = wanted.reshape(len(wanted), -1, group)
    step = np.abs(groups).max(axis=-1, keepdims=True) / _STEPS[suffix]
    if (
        _dtype(plan, name) == "float16"
    ):  # a scale is the next number of that type, which may be a subnormal one
        step = step + np.maximum(step * 2.0**-10, 2.0**-24)
    limit = step / 2 * _MARGIN
    far = np.abs(found.reshape(groups.shape) - groups) > limit
    return f"has {int(far.sum())} of {far.size} values more than half a step away" if far.any() else ""


def _row_distance(
    found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], suffix: str, plan: ExportPlan, name: str
) -> str:
    """Say how many rows of a calibrated weight are far from the checkpoint's, in the mean over their values."""
    if found.shape != wanted.shape:
        return f"is {list(found.shape)}, expected {list(wanted.shape)}"
    groups = wanted.reshape(len(wanted), -1, plan.precisions.block_size)
    step = np.abs(groups).max(axis=-1) / _STEPS[suffix]
    limit = _ROW_STEPS * np.sqrt(np.mean(step**2, axis=-1))
    far = np.sqrt(np.mean((found - wanted) ** 2, axis=-1)) > limit
    return f"has {int(far.sum())} of {far.size} rows more than {_ROW_STEPS:g} steps away" if far.any() else ""


def _difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return f"is {found.dtype} {list(found.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
    # As integers: a NaN equals itself, and zero differs from minus zero.
    integers = f"u{found.dtype.itemsize}"
    different = int(np.count_nonzero(found.view(integers) != wanted.view(integers)))
    return f"differs in {different} of {wanted.size} values" if different else ""


def _rounding_difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    """Say how many values differ by more than the last bit of their type and 2^-20 of the largest."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return f"is {found.dtype} {list(found.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
    f, w = found.astype(np.float32), wanted.astype(np.float32)
    last = np.finfo(np.float16).eps if found.dtype == np.float16 else np.finfo(np.float32).eps
    far = ~(np.abs(f - w) <= np.abs(w) * last + np.abs(w).max(initial=0) * 2.0**-20)
    return f"differs in {int(far.sum())} of {far.size} values" if far.any() else ""


def _dispensable(plan: ExportPlan, name: str) -> bool:
    """Whether a tensor may be left out: a buffer, what the family says is unused, or a tied head's copy."""
    if _BUFFERS.search(name):
        return True
    if name.endswith("lm_head.weight"):
        return plan.names.tied
    return plan.family.reference.unused(plan.spec, plan.checkpoint.config, *plan.names.split(name))
