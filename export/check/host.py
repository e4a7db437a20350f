"""What applies to targets that ONNX Runtime serves: it runs every dialect, but not every precision everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from divprune_edge.export.check.findings import Finding
from divprune_edge.manifest import Manifest
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.targets import Target


def host_findings(manifest: Manifest, target: Target) -> list[Finding]:
    """Return what ONNX Runtime has against a bundle on ``target`` (``cpu`` or ``cuda``)."""
    return list(_cuda(manifest) if target.backend == "cuda" else _cpu(manifest))


def _cuda(manifest: Manifest) -> Iterator[Finding]:
    language = manifest.language_model
    kernels = DIALECTS[language.dialect].cuda
    if kernels and language.cache_dtype not in kernels:
        yield Finding(
            language.file,
            "error",
            "dtype",
            "GroupQueryAttention",
            "GroupQueryAttention has no CUDA kernel for float32: export with --precision fp16, or with "
            "--dialect portable",
            count=language.layers,
        )
    for graph in (manifest.vision_encoder, language):
        if graph.precision == "int8":
            yield Finding(
                graph.file,
                "error",
                "dtype",
                "MatMulInteger",
                "MatMulInteger of unsigned activations has no CUDA kernel: export with --precision fp16",
            )
        if graph.precision == "int4":
            yield Finding(
                graph.file,
                "warning",
                "dtype",
                "DequantizeLinear",
                "int4 weights have been run on CPUs only: for CUDA, ONNX Runtime plans a MatMulNBits for each, which "
                "has not run on a GPU",
            )


def _cpu(manifest: Manifest) -> Iterator[Finding]:
    for graph in (manifest.vision_encoder, manifest.language_model):
        if graph.precision == "fp16" or (graph is manifest.language_model and _half(manifest)):
            yield Finding(
                graph.file,
                "warning",
                "dtype",
                "",
                "float16 runs on CPUs, but is for GPUs: int8 is faster and smaller (docs/performance.md)",
            )


def _half(manifest: Manifest) -> bool:
    return manifest.language_model.cache_dtype == "float16"
