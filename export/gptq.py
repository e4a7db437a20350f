"""Error-compensated rounding (GPTQ): each column's error is spread over the columns that are still to come.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv 2210.17323. With H = X^T X over the layer's inputs on a few prompts, minimising
the error of the layer's output rather than of its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.quantise import Levels, dequantise, quantise, steps

# Added to the diagonal, as a share of its mean (section 3.3, step 3): few prompts leave H singular.
DAMPING = 0.01


def quantise_for(
    weight: npt.NDArray[Any], group: int, levels: Levels, moments: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 [out, in] and scales float32 [out, in / group] of a weight [out, in].

    Args:
        weight: the matrix.
        group: values of a row that share a scale.
        levels: integers to round to.
        moments: H, [in, in]: the sum of x x^T over the layer's inputs.

    Rounding to the nearest is kept where it is the better of the two for these inputs.
    """
    out, inner = weight.shape
    h = moments.astype(np.float64)
    unused = np.diag(h) == 0
    h[unused, unused] = 1
    h[np.diag_indices(inner)] += DAMPING * np.mean(np.diag(h))
    # Row j of the upper Cholesky factor of the inverse says how an error in column j is made up for.
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    rest = weight.astype(np.float64)
    values = np.empty((out, inner), np.int8)
    scales = np.empty((out, inner // group), np.float32)
    for start in range(0, inner, group):
        end = start + group
        # The scale of a group is that of the weights as they are when its turn comes.
        scale = steps(rest[:, start:end].astype(np.float32), levels)
        scales[:, start // group] = scale
        errors = np.empty((out, group))
        for j in range(start, end):
            rounded = np.clip(np.rint(rest[:, j] / scale), levels.low, levels.high)
            values[:, j] = rounded
            error = (rest[:, j] - rounded * scale) / factor[j, j]
            rest[:, j:end] -= np.outer(error, factor[j, j:end])
            errors[:, j - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    nearest = quantise(weight, group, levels)
    if _loss(weight, nearest, moments) < _loss(weight, (values, scales), moments):
        return nearest
    return values, scales


def _loss(
    weight: npt.NDArray[Any],
    quantised: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]],
    moments: npt.NDArray[np.floating[Any]],
) -> float:
    """Squared error of the layer's output over the inputs that ``moments`` were summed over."""
    difference = dequantise(*quantised) - weight.astype(np.float32)
    return float(np.einsum("oi,ij,oj->", difference, moments, difference, optimize=True))
