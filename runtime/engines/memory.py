"""What building and running engines takes, compared with what there is, before it is taken.

Estimates from the sizes of the files, not measured yet; what TensorRT takes beside that depends on its tactics and is
not predicted here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo, Manifest
from divprune_edge.models.dialects import DIALECTS, row_bytes
from divprune_edge.runtime.engines.facts import DeviceFacts
from divprune_edge.runtime.engines.store import PlanInfo

_MIB = 1 << 20
_SPARE = 64 * _MIB


def graph_bytes(manifest: Manifest, file: str, data: Iterable[str]) -> int:
    """Return the size of a graph with its external data."""
    return sum(manifest.files[name].size for name in (file, *data))


def cache_bytes(info: LanguageInfo, longest: int) -> int:
    """Return the size of the KV caches at full length, and of the new rows that wait to be appended.

    Args:
        info: the language model.
        longest: tokens of a prefill, at most.
    """
    row = row_bytes(info.kv_heads, info.head_dim, np.dtype(info.cache_dtype).itemsize)
    return DIALECTS[info.dialect].cache_bytes(info.groups, row, info.context, longest)


def check_disk(folder: Path, graphs: Iterable[int]) -> None:
    """Check that plans for graphs of these sizes fit on the disk: a plan holds the weights once.

    Raises:
        UserError: they do not; the sentence has the numbers.
    """
    needed = sum(graphs) + _SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The engines take about {mib(needed)} MiB on the disk of '{folder}', which has {mib(free)} MiB free: "
            "make room there.",
            code="disk-too-full",
        )


def forget(files: Iterable[Path]) -> None:
    """Let the system drop its copies of files that were read.

    On a Jetson they lie in the GPU's memory, CUDA does not count them as free, and TensorRT passes over kernels that
    want more than it finds free.
    """
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_build_memory(graphs: Iterable[int], workspace: int | None, device: DeviceFacts) -> None:
    """Check that the largest graph can be built.

    TensorRT holds its weights as read, as laid out for the GPU, and as written into the plan: the second on the
    GPU, the others on the host.

    Raises:
        UserError: there is too little memory; the sentence has the numbers.
    """
    weights = max(graphs)
    on_device, on_host = weights + (workspace or 0), 2 * weights
    if device.shared_memory:
        on_host += on_device
    for needed, there, where, remedy in (
        (on_device, device.free_memory, "on the GPU", "close other programs that use it"),
        (on_host, device.host_memory, "with swap", "close other programs, add swap"),
    ):
        # A system that does not tell how much there is, is not held to it.
        if there and there < needed:
            raise UserError(
                f"Building the largest engine takes at least {mib(needed)} MiB {where}, but there are {mib(there)} "
                f"MiB: {remedy}, or export with a smaller --precision.",
                code="memory-too-small",
            )


def check_run_memory(
    plans: Iterable[PlanInfo], info: LanguageInfo, longest: int, device: DeviceFacts
) -> None:
    """Check that engines can be opened side by side: their weights, the activations, and the KV cache.

    Raises:
        UserError: there is too little memory; the sentence has the numbers.
    """
    listed = list(plans)
    weights = sum(plan.size for plan in listed)
    activations = sum(max(plan.device_memory, default=0) for plan in listed)
    cache = cache_bytes(info, longest)
    needed = weights + activations + cache
    if device.free_memory < needed:
        raise UserError(
            f"The engines take {mib(needed)} MiB (weights {mib(weights)}, activations {mib(activations)}, KV cache "
            f"{mib(cache)}), but the GPU has {mib(device.free_memory)} MiB free: close other programs, or export "
            "with a smaller --precision or --capacity and build again with 'python -m runtime build'.",
            code="gpu-memory-too-small",
        )


def mib(size: int) -> int:
    """Return a size in MiB, rounded up."""
    return -(-size // _MIB)
