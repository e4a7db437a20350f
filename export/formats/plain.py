"""Floating point: weights in the type of the activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights


@dataclass(frozen=True)
class Plain:
    """``x ─► MatMul(W^T [in, out]) ─►``."""

    dtype: str
    opset: int = 13
    domains: tuple[str, ...] = ()
    quantises_head: bool = False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Every shape will do."""

    def stored_bytes(self, shape: tuple[int, ...], *, head: bool = False) -> int:
        """See :class:`divprune_edge.export.weights.Format`, also for what follows."""
        return int(np.prod(shape)) * np.dtype(self.dtype).itemsize

    def linear(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False
    ) -> ir.Value:
        """Multiply with the transposed weight, the layout that MatMul reads."""
        return g.op("MatMul", x, weights.transposed(g, name))

    def head(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """Multiply with the weight as stored, so that a tied head and the embedding are one initializer."""
        return g.op("Gemm", x, weights.plain(g, name), transB=1)
