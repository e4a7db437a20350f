"""Precisions: the ways to store and multiply a graph's matrices, as facts.

``export.formats`` writes them; what else depends on one asks its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from divprune_edge.manifest import Precision

Real = Literal["float32", "float16"]


@dataclass(frozen=True)
class PrecisionFacts:
    """One precision.

    Attributes:
        name: as in the manifest.
        bits: of a value of a matrix.
        activations: element type of what matrices are multiplied with, and of the weights that are none.
        on_gpus: the same in graphs for TensorRT and for CUDA.
        rate: which of a target's rates matrices are multiplied at.
        product: the operator that multiplies them.
        in_blocks: values of a row share a scale in blocks, which calibration can round.
        refusals: backend -> why it does not run the product of such matrices.
    """

    name: Precision
    bits: int
    activations: Real
    on_gpus: Real
    rate: str
    product: str = "MatMul"
    in_blocks: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)

    def stored_bytes(self, matrices: int, others: int, block: int) -> int:
        """Return the bytes of so many weights in a graph for GPUs, with the scales of blocks."""
        size = np.dtype(self.on_gpus).itemsize
        scales = matrices // block * size if self.in_blocks else 0
        return matrices * self.bits // 8 + scales + others * size


_PARSER = "TensorRT's parser has no MatMulInteger"

_ALL = (
    # TF32 is switched off in every backend.
    PrecisionFacts("fp32", 32, "float32", "float32", rate="fp32"),
    PrecisionFacts("fp16", 16, "float16", "float16", rate="fp16"),
    PrecisionFacts(
        "int8",
        8,
        "float32",
        "float32",
        rate="int8",
        product="MatMulInteger",
        refusals=MappingProxyType(
            {
                "cuda": "ONNX Runtime has no CUDA kernel for MatMulInteger of unsigned activations",
                "tensorrt": _PARSER,
                "tensorrt-rtx": _PARSER,
            }
        ),
    ),
    # Weights of 4 bits are multiplied with activations of 16.
    PrecisionFacts("int4", 4, "float32", "float16", rate="fp16", in_blocks=True),
)
PRECISIONS: Mapping[str, PrecisionFacts] = MappingProxyType({one.name: one for one in _ALL})
