"""Weights as arrays, gigabytes of them: casts, the check that all is finite, and the transpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError


def cast_weight(name: str, weight: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return ``weight`` as ``dtype``, rounded to nearest even.

    Raises:
        UserError: a value that is not finite, before or after the cast (float16 ends at 65504).
    """
    if dtype == "float32" and weight.dtype.name in _HALVES:
        return widen(check_weight(name, weight))
    with np.errstate(over="ignore"):
        result = weight.astype(np.dtype(dtype), copy=False)
    if not _is_finite(result):
        wide = weight.astype(np.float32)
        if np.isfinite(wide).all():
            raise UserError(
                f"Weight '{name}' does not fit {dtype}: its largest value is {float(np.abs(wide).max()):.3g}; "
                "export with --precision fp32.",
                code="weights-overflow",
            )
        raise _damaged(name)
    return result


def check_weight(name: str, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``weight`` as it is.

    Raises:
        UserError: a value that is not finite.
    """
    if not _is_finite(weight):
        raise _damaged(name)
    return weight


def widen(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return finite numbers as a new float32 array.

    float16 and bfloat16 by shifting their bits, in pieces: NumPy's own casts take seven times as long. The exponent of
    float16 counts from 15, that of float32 from 127; the product with 2^112 makes up for it, for subnormals as well.
    """
    if values.dtype.name not in _HALVES:
        return values.astype(np.float32)
    result = np.empty(values.shape, np.float32)
    half, bits = np.ascontiguousarray(values).reshape(-1).view(np.int16), result.reshape(-1).view(np.int32)
    is_float16 = values.dtype == np.float16
    for start in range(0, half.size, _PIECE):
        piece = bits[start : start + _PIECE]
        piece[:] = half[start : start + _PIECE]
        if is_float16:
            piece <<= 13
            piece &= _SIGN_AND_VALUE
            wide = piece.view(np.float32)
            wide *= _REBIAS
        else:
            piece <<= 16
    return result


def _damaged(name: str) -> UserError:
    return UserError(
        f"Weight '{name}' holds values that are not finite: the checkpoint is damaged.",
        code="weights-not-finite",
    )


def _is_finite(values: npt.NDArray[Any]) -> bool:
    """``np.isfinite(values).all()`` by the exponents' bits, which are all ones where it is not.

    In pieces: what they take stays in the caches, where a second array of a weight's size would be fetched from the
    system page by page.
    """
    kind, mask = _EXPONENTS[values.dtype.name]
    bits = np.ascontiguousarray(values).reshape(-1).view(kind)
    buffer = np.empty(min(bits.size, _PIECE), kind)
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE]
        masked = np.bitwise_and(piece, mask, out=buffer[: piece.size])
        if masked.max() == mask:
            return False
    return True


_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F80_0000),
}
_PIECE = 2**17
_HALVES = ("float16", "bfloat16")
# After the shift by 13, a float16's sign is bit 31 and 28, its value bits 0 to 27.
_SIGN_AND_VALUE = np.int32(-(2**31) | (2**28 - 2**13))
_REBIAS = np.float32(2.0**112)


def transpose(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return [b, a] contiguous of ``matrix`` [a, b], in strips: five times NumPy's own speed for big matrices."""
    rows, columns = matrix.shape
    result = np.empty((columns, rows), matrix.dtype)
    for start in range(0, rows, _STRIP):
        result[:, start : start + _STRIP] = matrix[start : start + _STRIP].T
    return result


# A strip's rows, read side by side, fill whole cache lines of the result.
_STRIP = 16
