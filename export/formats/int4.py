"""Four bits in blocks, weights only: what ONNX Runtime fuses and TensorRT reads as weight-only quantisation.

::

    W^T int4 [in, out], scales [in / block, out] ─► DequantizeLinear(block) ─┐
    x ───────────────────────────────────────────────────────────────────────┴► MatMul ─►

ONNX Runtime turns the pair into one MatMulNBits kernel when it loads the graph. The output head has eight bits:
it is read once per token, and errors in it go straight into the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.gptq import quantise_for
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.quantise import INT4, INT8, Levels, quantise

if TYPE_CHECKING:
    from divprune_edge.export.weights import Weights

Moments = Mapping[str, npt.NDArray[np.float64]]
"""Full name of a weight [out, in] -> the sum of x x^T over its layer's inputs x, [in, in]."""

_SCALE_BYTES = 4


@dataclass(frozen=True)
class Int4:
    """Blocks of ``block_size`` values along a row share a float32 scale; no zero point.

    Weights whose layer has ``moments`` (see ``export.calibrate``) are rounded by GPTQ, the rest to the nearest.
    """

    block_size: int
    moments: Moments = field(default_factory=dict)
    dtype: str = "float32"
    opset: int = 21
    domains: tuple[str, ...] = ()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Rows must divide into blocks."""
        if shape[1] % self.block_size:
            raise UserError(
                f"Rows of '{name}' have {shape[1]} values, which blocks of {self.block_size} do not divide: choose "
                "another --block-size, or int8 for that graph."
            )

    def stored_bytes(self, shape: tuple[int, ...], *, head: bool = False) -> int:
        """Half a byte for each value, a whole one in the head, and the scales."""
        values = shape[0] * shape[1]
        return values // (1 if head else 2) + values // self.block_size * _SCALE_BYTES

    def linear(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """Multiply with four bits."""
        return self._multiply(g, x, weights, name, "int4", INT4)

    def head(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """Multiply with eight bits."""
        return self._multiply(g, x, weights, name, "int8", INT8)

    def _multiply(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, dtype: str, levels: Levels
    ) -> ir.Value:
        moments = self.moments.get(weights.full_name(name))
        quantiser = quantise if moments is None else partial(quantise_for, moments=moments)
        values, scales = weights.quantised(g, name, dtype, self.block_size, levels, quantiser)
        matrix = g.op("DequantizeLinear", values, scales, axis=0, block_size=self.block_size)
        return g.op("MatMul", x, matrix)
