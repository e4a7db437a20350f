"""The graph builder as models see it; the export passes its own in, and values are opaque.

Keeping this narrow is what lets algorithms and encoders live without onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Ops(Protocol):
    """What a selector is written with."""

    def op(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        """Add a standard operator with one output and return that output."""
        ...

    def ops(self, op_type: str, *inputs: Any, outputs: int, **attributes: Any) -> Sequence[Any]:
        """Add a standard operator with several outputs and return them."""
        ...

    def constant(self, value: Any, dtype: str = "int64") -> Any:
        """Add a small constant and return it."""
        ...

    def cast(self, value: Any, dtype: str) -> Any:
        """Convert the element type."""
        ...

    def loop(
        self,
        trips: int,
        carried: Sequence[Any],
        body: Callable[[Ops, Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]],
    ) -> tuple[list[Any], list[Any]]:
        """Repeat ``body`` a constant number of times.

        ``body`` gets a builder for the subgraph and the carried values and returns (next carried values,
        values to stack). Returns (final carried values, stacked values with a new first axis of ``trips``).
        """
        ...


class Builder(Ops, Protocol):
    """What an encoder is written with."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Put everything built inside under ``name`` in the module path."""
        ...


class Layers(Protocol):
    """The layers of one part of a checkpoint; names are relative to it, as its weights'."""

    @property
    def dtype(self) -> str:
        """Element type of activations."""
        ...

    def weight(self, name: str) -> Any:
        """Return a weight as it is stored, in the graph's type."""
        ...

    def linear(self, x: Any, name: str, *, gated: bool = False) -> Any:
        """Return ``x [..., in] @ W^T (+ b)``; ``gated`` says that x comes from one of ``models.activations.GATES``."""
        ...

    def layer_norm(self, x: Any, name: str, eps: float) -> Any:
        """Return LayerNorm over the last axis."""
        ...

    def rms_norm(self, x: Any, name: str, eps: float) -> Any:
        """Return RMSNorm over the last axis."""
        ...

    def activation(self, x: Any, name: str) -> Any:
        """Return the activation ``name`` (canonical, see ``models.activations``) of ``x``."""
        ...

    @property
    def fuses_attention(self) -> bool:
        """Whether attention is one operator here; otherwise an encoder writes it out."""
        ...

    def attention(self, q: Any, k: Any, v: Any, heads: int, bias: Any | None = None) -> Any:
        """Return ``softmax(q kᵀ / √d + bias) v`` of [batch, n, heads · d] each, in that shape, by that operator.

        ``bias`` is [batch or 1, heads or 1, n, n].
        """
        ...
