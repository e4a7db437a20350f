"""How TensorRT-RTX makes the kernels of an engine that was built ahead of time, on the card that runs it."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from divprune_edge.runtime.bundle import cache_folder


def finish_on_the_card(tensorrt: Any, engine: Any, allocation: Any, key: str, *, varying: bool) -> Any:
    """Return the ``IRuntimeConfig`` with which to make a context.

    Kernels for the shapes at hand are made before they are first used, so that a CUDA graph of a decode step holds them
    and not the slower ones that serve all shapes; but for prefill, where every length of a prompt is another shape, in
    the background. TensorRT-RTX captures nothing itself: the step that we capture has copies in it, too. What was made
    is kept in this user's cache folder: it is code, which no bundle may bring along.

    Args:
        tensorrt: the module.
        engine: an ``ICudaEngine``.
        allocation: where the activations lie.
        key: a digest of the engine.
        varying: the shapes of the context change often.
    """
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(allocation)
    strategies = tensorrt.DynamicShapesKernelSpecializationStrategy
    runtime_config.dynamic_shapes_kernel_specialization_strategy = (
        strategies.LAZY if varying else strategies.EAGER
    )
    runtime_config.cuda_graph_strategy = tensorrt.CudaGraphStrategy.DISABLED
    path = _kernels(key, varying)
    if path is not None:
        runtime_cache = runtime_config.create_runtime_cache()
        with suppress(OSError):
            runtime_cache.deserialize(path.read_bytes())
        runtime_config.set_runtime_cache(runtime_cache)
        weakref.finalize(engine, _keep, runtime_cache, path)
    return runtime_config


def _kernels(key: str, varying: bool) -> Path | None:
    """Return where the kernels of an engine are kept; None where this user has no home."""
    try:
        return cache_folder() / "kernels" / f"{key}{'-varying' if varying else ''}.bin"
    except RuntimeError:
        return None


def _keep(runtime_cache: Any, path: Path) -> None:
    """Write what was made; a cache that cannot be written only costs the next start its time."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            temporary.write_bytes(bytes(runtime_cache.serialize()))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
