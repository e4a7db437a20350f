"""What a selection algorithm is to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.floating[Any]]
Valid = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Reference = Callable[[Tokens, Valid, int], Indices]


class Ops(Protocol):
    """The graph builder as a selector sees it; values are opaque.

    Keeping this narrow is what lets the algorithms live without onnx: the export passes its builder in.
    """

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


@dataclass(frozen=True)
class Selector:
    """One selection algorithm with a static budget.

    ``op_type`` names its node in the custom domain; ``reference(tokens [N, D], valid [N], keep)`` returns
    ascending int64 [K] and is what every other form is tested against; ``body(ops, tokens, valid, keep)``
    writes the same with standard operators on tokens [batch, N, D] and valid [batch, N] and returns ascending
    int64 [batch, K]. ``signals`` are the encoder outputs that it needs beyond the tokens.
    """

    name: str
    op_type: str
    citation: str
    reference: Reference
    body: Callable[[Ops, Any, Any, int, int], Any]
    signals: tuple[str, ...] = ()
