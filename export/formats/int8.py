"""Eight bits on both sides: a scale per output channel, and one per row of activations, found as they come.

::

    x ─► ReduceMax, ReduceMin ─► step [..., 1]: the largest value becomes 255, or the smallest 0
    x / step ─► QuantizeLinear(1, zero) ─► uint8 ─► MatMulInteger(W^T int8) ─► · step ─► · scale ─►

The zero is a constant of the layer: 128 in the middle, or near the bottom for what a gate such as GELU has left
hardly any negative values in, which then gets steps about half as wide.

Where the graph is for ONNX Runtime alone, its MatMulIntegerToFloat does the product, the conversion and the
scale of the channel in one pass; the standard operators pass three times over what is wider than their input.

One scale per row, not per tensor: a single token with large values does not blur all the others, and a token's
result does not depend on what else is in the batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune_edge.export.graph import ONNX_RUNTIME, GraphBuilder
from divprune_edge.export.quantise import INT8_PAIRS
from divprune_edge.export.weights import Weights

_LEVELS = 255
_MIDDLE = 128
_BOTTOM = 24
_TINY = float(np.finfo(np.float32).tiny)


class Int8:
    """Layers that read the same activations (q, k and v; gate and up) share their quantised form."""

    dtype = "float32"
    opset = 13
    quantises_head = True

    def __init__(self, *, fused: bool = False) -> None:
        self._fused = fused
        self.domains = (ONNX_RUNTIME,) if fused else ()
        self._rows: tuple[ir.Value, int, ir.Value, ir.Value] | None = None

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Every shape will do."""

    def stored_bytes(self, shape: tuple[int, ...], *, head: bool = False) -> int:
        """See :class:`divprune_edge.export.weights.Format`, also for what follows."""
        return shape[0] * shape[1] + 4 * shape[0]

    def linear(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False
    ) -> ir.Value:
        """Multiply in integers and scale back."""
        middle = _BOTTOM if gated else _MIDDLE
        rows, steps = self._quantise(g, x, middle)
        values, scales = weights.quantised(g, name, "int8", None, INT8_PAIRS)
        zero = g.constant(middle, "uint8")
        if self._fused:
            one = g.constant(1.0, "float32")
            y = g.op("MatMulIntegerToFloat", rows, values, one, scales, zero, domain=ONNX_RUNTIME)
            return g.op("Mul", y, steps)
        y = g.op("MatMulInteger", rows, values, zero)
        return g.op("Mul", g.op("Mul", g.cast(y, "float32"), steps), scales)

    def head(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """As any other layer."""
        return self.linear(g, x, weights, name)

    def _quantise(self, g: GraphBuilder, x: ir.Value, zero: int) -> tuple[ir.Value, ir.Value]:
        """Return uint8 rows around ``zero``, and what a value of one was [..., 1]."""
        if self._rows is None or self._rows[0] is not x or self._rows[1] != zero:
            last = g.constant([-1])
            above = g.op(
                "Mul", g.op("ReduceMax", x, last, keepdims=1), g.constant(1 / (_LEVELS - zero), "float32")
            )
            below = g.op("Mul", g.op("ReduceMin", x, last, keepdims=1), g.constant(-1 / zero, "float32"))
            # A row of zeros, such as padding's embedding, must not become 0 / 0.
            steps = g.op("Max", above, below, g.constant(_TINY, "float32"))
            one = g.constant(1.0, "float32")
            rows = g.op("QuantizeLinear", g.op("Div", x, steps), one, g.constant(zero, "uint8"))
            self._rows = (x, zero, rows, steps)
        return self._rows[2], self._rows[3]
