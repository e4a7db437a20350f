"""Backends: what runs the graphs. A new one: a file, its name in ``BACKENDS``, a branch of :func:`open_backend`."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from divprune_edge.errors import UserError, did_you_mean, either
from divprune_edge.runtime.backends.backend import Backend, Encoded
from divprune_edge.runtime.backends.session import CacheRows, DeviceTensor, Given, LanguageSession, Prediction
from divprune_edge.runtime.bundle import Bundle

BACKENDS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
MOST_THREADS = 1024
"""More than any machine's cores; ONNX Runtime starts as many as it is told, and is busy with them for minutes."""

__all__ = [
    "BACKENDS",
    "Backend",
    "CacheRows",
    "DeviceTensor",
    "Encoded",
    "Given",
    "LanguageSession",
    "Prediction",
    "open_backend",
]


def open_backend(bundle: Bundle, name: str = "cpu", threads: int | None = None) -> Backend:
    """Return the backend called ``name`` for ``bundle``.

    Args:
        bundle: the opened bundle.
        name: ``cpu`` or ``cuda`` (both ONNX Runtime), ``tensorrt``, or ``tensorrt-rtx``.
        threads: CPU threads of one operator; None leaves it to the backend, and the last two have none.

    Raises:
        UserError: no such backend, or it cannot be used on this machine.
    """
    if name not in BACKENDS:
        raise UserError(
            f"There is no backend '{name}'{did_you_mean(name, BACKENDS)}: use {either(BACKENDS)}.",
            code="backend-unknown",
        )
    if threads is not None and threads < 1:
        raise UserError(
            f"{threads} threads were asked for, expected at least 1.", code="threads-out-of-range"
        )
    if threads is not None and threads > MOST_THREADS:
        raise UserError(
            f"{threads} threads were asked for, expected at most {MOST_THREADS}.", code="threads-out-of-range"
        )
    if name not in ("cpu", "cuda"):
        return _open_tensorrt(bundle, name, threads)
    if find_spec("onnxruntime") is None:
        package = "onnxruntime" if name == "cpu" else "onnxruntime-gpu[cuda,cudnn]"
        raise UserError(
            f"Backend '{name}' needs ONNX Runtime, which is not installed: 'python -m pip install {package}'.",
            code="onnxruntime-missing",
        )
    from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, name, threads)


def _open_tensorrt(bundle: Bundle, name: str, threads: int | None) -> Backend:
    if threads is not None:
        raise UserError(
            f"{threads} threads were asked for, but backend '{name}' computes on the GPU: leave --threads out.",
            code="threads-with-backend",
        )
    from divprune_edge.models.tensorrt import EDITIONS
    from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
    from divprune_edge.runtime.engines.cuda import CudaDevice
    from divprune_edge.runtime.engines.opening import open_engines
    from divprune_edge.runtime.engines.target import check_backend, check_dialect

    edition = EDITIONS[name]
    check_dialect(bundle.manifest, bundle.path)
    check_backend(bundle.manifest, bundle.path, edition)
    engines = partial(open_engines, bundle, edition=edition)
    return TensorRtBackend(bundle, CudaDevice(edition), engines, edition.name)
