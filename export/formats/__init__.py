"""Ways to store and multiply the weight matrices of linear layers: one file each, chosen in one place."""

from __future__ import annotations

from divprune_edge.export.formats.int4 import Int4, Moments
from divprune_edge.export.formats.int8 import Int8
from divprune_edge.export.formats.plain import Plain
from divprune_edge.export.precision import activation_type
from divprune_edge.export.weights import Format
from divprune_edge.manifest import Precision

__all__ = ["Format", "Moments", "find_format"]


def find_format(
    precision: Precision,
    block_size: int,
    *,
    fused: bool = False,
    half: bool = False,
    moments: Moments | None = None,
) -> Format:
    """Return a format for one graph; it may remember what it has built.

    Args:
        precision: of the graph's matrices.
        block_size: of int4 weights.
        fused: whether ONNX Runtime's own operators may be used.
        half: whether int4 weights meet float16 activations.
        moments: what calibration saw; int4 weights of these layers are rounded by GPTQ.
    """
    if precision == "int8":
        return Int8(fused=fused)
    if precision == "int4":
        return Int4(block_size, moments or {}, activation_type(precision, half=half))
    return Plain(activation_type(precision))
