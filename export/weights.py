"""Weights on their way from a checkpoint into a graph: lazy, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.export.precision import cast_weight, transpose

TRANSPOSED = ".T"
"""Suffix of an initializer that holds a linear layer's weight transposed, [in, out]."""


class Weights:
    """Hands weights of one part of the checkpoint to a graph builder.

    Initializers carry the checkpoint's own tensor names, so an exported weight can be traced back and compared.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str, dtype: str) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix
        self.dtype = dtype

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the stored shape of a weight."""
        return self._checkpoint.tensors[self._prefix + name].shape

    def plain(self, g: GraphBuilder, name: str) -> ir.Value:
        """Add the weight as it is stored, cast to the graph's type."""
        return self._add(g, self._prefix + name, self.shape(name), np.ascontiguousarray)

    def transposed(self, g: GraphBuilder, name: str) -> ir.Value:
        """Add a linear layer's weight [out, in] as [in, out], the layout that MatMul reads."""
        out, inner = self.shape(name)
        return self._add(g, self._prefix + name, (inner, out), transpose, suffix=TRANSPOSED)

    def _add(
        self,
        g: GraphBuilder,
        name: str,
        shape: tuple[int, ...],
        arrange: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        suffix: str = "",
    ) -> ir.Value:
        key = name + suffix
        known = g.find_initializer(key)
        if known is not None:
            return known

        def load() -> ir.TensorProtocol:
            return ir.Tensor(arrange(cast_weight(name, self._checkpoint.read(name), self.dtype)), name=key)

        if int(np.prod(shape)) <= _INLINE:
            return g.initializer(key, load())
        return g.initializer(key, ir.LazyTensor(load, DTYPES[self.dtype], ir.Shape(shape), name=key))


# Small initializers stay inside the graph file: external ones would break shape inference.
_INLINE = 64
