"""What applies to targets that ONNX Runtime serves: it runs every dialect, but not every precision everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from divprune_edge.export.check.findings import Finding
from divprune_edge.manifest import Manifest
from divprune_edge.models.dialects import DIALECTS, option
from divprune_edge.models.precisions import PRECISIONS
from divprune_edge.models.targets import Target


def host_findings(manifest: Manifest, target: Target) -> list[Finding]:
    """Return what ONNX Runtime has against a bundle on ``target`` (``cpu`` or ``cuda``)."""
    return list(_cuda(manifest) if target.backend == "cuda" else _cpu(manifest))


def refused_precisions(manifest: Manifest, backend: str) -> Iterator[Finding]:
    """Yield a finding for each graph whose matrices a backend does not multiply."""
    for graph in (manifest.vision_encoder, manifest.language_model):
        facts = PRECISIONS[graph.precision]
        if backend in facts.refusals:
            message = f"{facts.refusals[backend]}: export with --precision fp16"
            yield Finding(graph.file, "error", "dtype", facts.product, message)


def _cuda(manifest: Manifest) -> Iterator[Finding]:
    language = manifest.language_model
    kernels = DIALECTS[language.dialect].cuda
    if kernels and language.cache_dtype not in kernels:
        yield Finding(
            language.file,
            "error",
            "dtype",
            "GroupQueryAttention",
            f"GroupQueryAttention has no CUDA kernel for {language.cache_dtype}: export with --precision fp16, or with "
            f"{option(lambda one: language.cache_dtype in one.cuda)}",
            count=language.layers,
        )
    yield from refused_precisions(manifest, "cuda")
    for graph in (manifest.vision_encoder, language):
        if PRECISIONS[graph.precision].in_blocks:
            yield Finding(
                graph.file,
                "warning",
                "dtype",
                "DequantizeLinear",
                f"{graph.precision} weights have been run on CPUs only: for CUDA, ONNX Runtime plans a MatMulNBits for "
                "each, which has not run on a GPU",
            )


def _cpu(manifest: Manifest) -> Iterator[Finding]:
    for graph in (manifest.vision_encoder, manifest.language_model):
        half = graph is manifest.language_model and manifest.language_model.cache_dtype == "float16"
        if half or PRECISIONS[graph.precision].activations == "float16":
            yield Finding(
                graph.file,
                "warning",
                "dtype",
                "",
                "float16 runs on CPUs, but is for GPUs: int8 is faster and smaller (docs/performance.md)",
            )
