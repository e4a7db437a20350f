"""Floating point that also puts out what each linear layer reads: how calibration sees the activations."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.formats.plain import Plain
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights

OUTPUT = "input_of:"


class Recording(Plain):
    """As :class:`Plain` in float32; ``readers`` says which weights read each output ``input_of:…``."""

    def __init__(self) -> None:
        super().__init__("float32")
        self._readers: dict[str, list[str]] = {}
        self._taps: list[tuple[ir.Value, str]] = []

    @property
    def readers(self) -> dict[str, list[str]]:
        """Output name -> full names of the weights that multiply it."""
        return self._readers

    def linear(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False
    ) -> ir.Value:
        """Multiply, and remember the input; q, k and v share one."""
        full = weights.full_name(name)
        known = next((output for value, output in self._taps if value is x), None)
        if known is None:
            known = OUTPUT + full
            inner = weights.shape(name)[1]
            g.output(g.op("Identity", x), known, "float32", ["batch", "seq", inner])
            self._taps.append((x, known))
        self._readers.setdefault(known, []).append(full)
        return super().linear(g, x, weights, name)
