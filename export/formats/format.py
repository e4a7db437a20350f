"""What a format of weight matrices is to the layers around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder

if TYPE_CHECKING:
    from divprune_edge.export.weights import Weights


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
