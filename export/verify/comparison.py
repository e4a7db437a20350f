"""How far two arrays may be apart, and the line of the table that says how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import Check, Precision

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Tolerance:
    """Bounds on outputs: ``error`` is max|difference| / max(1, max|reference|), ``cosine`` is 1 - cosine."""

    error: float
    cosine: float


TOLERANCES: dict[Precision, Tolerance] = {
    # Two float32 evaluations that only sum in another order agree to about 1e-5 after 32 layers.
    "fp32": Tolerance(error=1e-4, cosine=1e-6),
    # Every weight and activation is rounded to 11 bits (relative 4.9e-4); over some tens of layers this adds
    # up to about 1e-2 of the largest logit, a wrong weight or constant to far more.
    "fp16": Tolerance(error=3e-2, cosine=1e-3),
    # The reference has the graph's own weights, taken back to float32, so what is left is the rounding of
    # activations to 8 bits: half a step of 1/127 of a row's peak at every layer's input. Errors of many values
    # add up like a random walk, and a peak some times above the mean makes the steps coarse for the rest.
    # The worst of 51 steps measured on the demo checkpoint is 0.11; a wrong wiring gives errors of the order of one.
    "int8": Tolerance(error=0.25, cosine=3e-2),
    # As above: ONNX Runtime's kernel rounds activations to 8 bits too, in blocks, which are finer than rows.
    "int4": Tolerance(error=0.1, cosine=1e-2),
}


def relative_error(found: Floats, wanted: Floats) -> float:
    """Return ``max|found - wanted| / max(1, max|wanted|)`` in float64; infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return float("inf")
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(difference / max(1.0, float(np.abs(wanted).max())))


def cosine_error(found: Floats, wanted: Floats) -> float:
    """Return the largest ``1 - cosine`` between rows (last axis); infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return float("inf")
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float((1 - np.sum(a * b, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)).max())


def at_most(stage: str, name: str, value: float, limit: float, *, unit: str = "", detail: str = "") -> Check:
    """Return the check ``value <= limit``; not-a-number does not pass."""
    return Check(
        stage=stage,
        name=name,
        value=value,
        limit=limit,
        unit=unit,
        passed=bool(value <= limit),
        detail=detail,
    )


def for_the_record(stage: str, name: str, value: float, *, unit: str, detail: str = "") -> Check:
    """Return a line without a limit: what a precision costs is the user's decision, not a mistake."""
    return Check(stage=stage, name=name, value=value, limit=None, unit=unit, passed=True, detail=detail)


def none_of(stage: str, name: str, findings: list[str], examined: int, what: str) -> Check:
    """Return the check that nothing was found among ``examined`` things; the first finding is the detail."""
    detail = findings[0] if findings else f"{examined} {what} compared"
    return at_most(stage, name, len(findings), 0, unit=f"of {examined}", detail=detail)
