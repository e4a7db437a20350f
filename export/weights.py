"""Weights on their way from a checkpoint into a graph: lazy, one tensor in memory at a time, matrices in a format."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune_edge.export.arrays import cast_weight, check_weight, transpose
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.export.quantise import Levels, quantise

TRANSPOSED = ".T"
"""Suffix of an initializer that holds a linear layer's weight transposed, [in, out]."""
SCALE = ".scale"
"""Suffix of a quantised weight's scales; the values have their type's name in the same place."""


Quantiser = Callable[[npt.NDArray[Any], int, Levels], tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]]
"""``(weight [out, in], group, levels) -> (int8 [out, in], scales [out, in / group])``."""


class Weights:
    """Hands weights of one part of the checkpoint to a graph builder.

    Initializers carry the checkpoint's own tensor names, so an exported weight can be traced back and compared.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str, format: Format) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix
        self.format = format

    @property
    def dtype(self) -> str:
        """Element type of activations, and of weights that are no matrices of linear layers."""
        return self.format.dtype

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the stored shape of a weight."""
        return self._checkpoint.tensors[self._prefix + name].shape

    def full_name(self, name: str) -> str:
        """Return a weight's name in the checkpoint."""
        return self._prefix + name

    def plain(self, g: GraphBuilder, name: str) -> ir.Value:
        """Add the weight as it is stored, cast to the graph's type."""
        return self._add(g, self._prefix + name, self.shape(name), np.ascontiguousarray)

    def transposed(self, g: GraphBuilder, name: str) -> ir.Value:
        """Add a linear layer's weight [out, in] as [in, out], the layout that MatMul reads."""
        out, inner = self.shape(name)
        return self._add(g, self._prefix + name, (inner, out), transpose, suffix=TRANSPOSED)

    def quantised(
        self,
        g: GraphBuilder,
        name: str,
        dtype: str,
        group: int | None,
        levels: Levels,
        quantiser: Quantiser = quantise,
    ) -> tuple[ir.Value, ir.Value]:
        """Add a linear layer's weight [out, in] in few bits, transposed.

        Args:
            g: the graph.
            name: of the weight.
            dtype: ``int8`` or ``int4``.
            group: values of a row that share a scale; None takes the whole row.
            levels: integers to round to.
            quantiser: rounds the weight.

        Returns:
            Values [in, out] and scales of the levels' type: [in / group, out], or [out] where a row has one.
        """
        full, (out, inner) = self._prefix + name, self.shape(name)
        key, scale_key = f"{full}{TRANSPOSED}.{dtype}", f"{full}{TRANSPOSED}{SCALE}"
        known = g.find_initializer(key), g.find_initializer(scale_key)
        if known[0] is not None and known[1] is not None:
            return known[0], known[1]

        def compute() -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
            weight = check_weight(full, self._checkpoint.read(full))
            values, steps = quantiser(weight, group or inner, levels)
            return values, cast_weight(full, steps, levels.scales)

        loaded = _Quantised(compute, DTYPES[dtype].numpy(), flat=group is None)
        scales = (out,) if group is None else (inner // group, out)
        return (
            _lazy(g, key, dtype, (inner, out), loaded.values),
            _lazy(g, scale_key, levels.scales, scales, loaded.scales),
        )

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

        def load() -> npt.NDArray[Any]:
            return arrange(cast_weight(name, self._checkpoint.read(name), self.dtype))

        return _lazy(g, key, self.dtype, shape, load)


class Format(Protocol):
    """How the weight matrices of one graph are stored and multiplied. An instance serves one graph."""

    @property
    def dtype(self) -> str:
        """Element type of activations, and of the weights that are no matrices."""
        ...

    @property
    def opset(self) -> int:
        """The oldest opset that has its operators in the form used here."""
        ...

    @property
    def domains(self) -> tuple[str, ...]:
        """Operator domains beyond the standard one."""
        ...

    @property
    def quantises_head(self) -> bool:
        """Whether the output head is in few bits: then a tied one is a matrix of its own beside the embedding."""
        ...

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that the matrix ``name`` [out, in] can be stored so.

        Raises:
            UserError: it cannot; the sentence says why and what to choose.
        """
        ...

    def stored_bytes(self, shape: tuple[int, ...], *, head: bool = False) -> int:
        """Return the bytes that a matrix [out, in] takes in the bundle; the output head may be stored otherwise."""
        ...

    def linear(
        self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False
    ) -> ir.Value:
        """Return ``x [..., in] @ W^T`` for the matrix ``name`` [out, in], without the bias.

        ``gated`` says that x comes from a function like GELU: hardly any of it is negative, and none of it much.
        """
        ...

    def head(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
        """Return logits [batch, vocabulary] of hidden states [batch, in] for the matrix ``name``."""
        ...


class _Quantised:
    """Values and scales of one weight: computed once for both, whichever of two threads comes first."""

    def __init__(
        self,
        compute: Callable[[], tuple[npt.NDArray[np.int8], npt.NDArray[Any]]],
        dtype: Any,
        *,
        flat: bool,
    ) -> None:
        self._compute = compute
        self._dtype = dtype
        self._flat = flat
        self._lock = Lock()
        self._parts: dict[str, npt.NDArray[Any]] = {}

    def values(self) -> npt.NDArray[Any]:
        """Return [in, out]."""
        return transpose(self._take("values")).astype(self._dtype, copy=False)

    def scales(self) -> npt.NDArray[Any]:
        """Return [groups, out], or [out]."""
        scales = self._take("scales")
        return scales[:, 0] if self._flat else transpose(scales)

    def _take(self, part: str) -> npt.NDArray[Any]:
        """Return one part and forget it; the other waits for its turn."""
        with self._lock:
            if part not in self._parts:
                values, scales = self._compute()
                self._parts = {"values": values, "scales": scales}
            return self._parts.pop(part)


def _lazy(
    g: GraphBuilder, key: str, dtype: str, shape: tuple[int, ...], load: Callable[[], npt.NDArray[Any]]
) -> ir.Value:
    """Add an initializer that is computed when it is written; small ones at once, inside the graph file."""

    def tensor() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(load()), name=key)

    if int(np.prod(shape)) <= _INLINE:
        return g.initializer(key, tensor())
    return g.initializer(key, ir.LazyTensor(tensor, DTYPES[dtype], ir.Shape(shape), name=key))


# Small initializers stay inside the graph file: external ones would break shape inference.
_INLINE = 64
