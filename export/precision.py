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
    """Return ``weight`` as ``dtype``, contiguous.

    Raises:
        UserError: a value that is not finite, before or after the cast (float16 ends at 65504).
    """
    target = np.dtype(dtype)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(weight.astype(target, copy=False))
    if not np.isfinite(result.max(initial=0)) or not np.isfinite(result.min(initial=0)):
        if np.isfinite(weight.astype(np.float32)).all():
            raise UserError(
                f"Weight '{name}' does not fit {dtype}: its largest value is "
                f"{float(np.abs(weight.astype(np.float32)).max()):.3g}; export with --precision fp32."
            )
        raise UserError(f"Weight '{name}' holds values that are not finite: the checkpoint is damaged.")
    return result
