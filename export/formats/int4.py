"""Four bits in blocks, weights only: what ONNX Runtime fuses and TensorRT reads as weight-only quantisation.

::

    W^T int4 [in, out], scales [in / block, out] ─► DequantizeLinear(block) ─┐
    x ───────────────────────────────────────────────────────────────────────┴► MatMul ─►

ONNX Runtime turns the pair into one MatMulNBits kernel when it loads the graph. The output head has eight bits:
it is read once per token, and errors in it go straight into the logits. For TensorRT and for CUDA, activations and
scales are float16, and so is the head: TensorRT has blocks for four bits only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.formats.plain import Plain
from divprune_edge.export.gptq import quantise_for
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.precision import BLOCK_SIZES, TENSORRT_BLOCK_SIZES
from divprune_edge.export.quantise import INT4, INT4_HALF, INT8, Levels, quantise
from divprune_edge.export.weights import Weights

Moments = Mapping[str, npt.NDArray[np.float64]]
"""Full name of a weight [out, in] -> the sum of x x^T over its layer's inputs x, [in, in]."""


@dataclass(frozen=True)
class Int4:
    """Blocks of ``block_size`` values along a row share a scale of type ``dtype``; no zero point.

    Weights whose layer has ``moments`` (see ``export.calibrate``) are rounded by GPTQ, the rest to the nearest.
    ``dtype`` is float16 in graphs for TensorRT and for CUDA, and float32 in others.
    """

    block_size: int
    moments: Moments = field(default_factory=dict)
    dtype: str = "float32"
    opset: int = 21
    domains: tuple[str, ...] = ()

    @property
    def quantises_head(self) -> bool:
        """See :class:`divprune_edge.export.weights.Format`."""
        return self.dtype == "float32"

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Rows must divide into blocks."""
        if shape[1] % self.block_size:
            offered = BLOCK_SIZES if self.dtype == "float32" else TENSORRT_BLOCK_SIZES
            fitting = [f"--block-size {size}" for size in offered if not shape[1] % size]
            wider = "int8" if self.dtype == "float32" else "fp16"
            raise UserError(
                f"Rows of '{name}' have {shape[1]} values, which blocks of {self.block_size} do not divide: choose "
                f"{' or '.join([*fitting, wider])} for that graph.",
                code="block-size-unfit",
            )

    def stored_bytes(self, shape: tuple[int, ...], *, head: bool = False) -> int:
        """Half a byte for each value, and the scales; a head has a whole byte, or no scales."""
        if head and not self.quantises_head:
            return self._plain.stored_bytes(shape)
        values = shape[0] * shape[1]
        return values // (1 if head else 2) + values // self.block_size * np.dtype(self.dtype).itemsize

    def linear(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False
    ) -> ir.Value:
        """Multiply with four bits."""
        levels = INT4 if self.dtype == "float32" else INT4_HALF
        return self._multiply(g, x, weights, name, "int4", levels)

    def head(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """Multiply with eight bits, or in float16."""
        if not self.quantises_head:
            return self._plain.head(g, x, weights, name)
        return self._multiply(g, x, weights, name, "int8", INT8)

    @property
    def _plain(self) -> Plain:
        return Plain(self.dtype)

    def _multiply(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, dtype: str, levels: Levels
    ) -> ir.Value:
        moments = self.moments.get(weights.full_name(name))
        quantiser = quantise if moments is None else partial(quantise_for, moments=moments)
        values, scales = weights.quantised(g, name, dtype, self.block_size, levels, quantiser)
        matrix = g.op("DequantizeLinear", values, scales, axis=0, block_size=self.block_size)
        return g.op("MatMul", x, matrix)
