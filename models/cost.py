"""The arithmetic of an answer: floating-point operations of prefill for a spec and a number of tokens.

"Real" FLOPs: two per multiply-accumulate, gated MLP and grouped-query attention counted as they are, the
quadratic term of attention not halved for causality. Conventions in papers differ; always say which.
"""

from __future__ import annotations

from divprune_edge.models.clip import ClipVisionSpec
from divprune_edge.models.decoder import DecoderSpec


def decoder_flops(spec: DecoderSpec, tokens: int, vocabulary: int) -> int:
    """Return the FLOPs of prefilling ``tokens`` tokens, logits of one position included.

    ``2 L (2 n h (q + kv) + 2 n^2 q + 3 n h m) + 2 h V`` with q and kv the widths of all heads.
    """
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    projections = 2 * tokens * spec.hidden * (q + kv)
    attention = 2 * tokens * tokens * q
    mlp = 3 * tokens * spec.hidden * spec.intermediate
    return 2 * spec.layers * (projections + attention + mlp) + 2 * spec.hidden * vocabulary


def vision_flops(spec: ClipVisionSpec) -> int:
    """Return the FLOPs of encoding one image, used layers only: ``2 L (4 n h^2 + 2 n^2 h + 2 n h m)`` + patches."""
    n, h = spec.patches + 1, spec.hidden
    layer = 4 * n * h * h + 2 * n * n * h + 2 * n * h * spec.intermediate
    patches = spec.patches * h * 3 * spec.patch_size**2
    return 2 * (spec.used_layers * layer + patches)


def projector_flops(inputs: int, outputs: int, tokens: int) -> int:
    """Return the FLOPs of the two-layer projector."""
    return 2 * tokens * outputs * (inputs + outputs)


def max_min_flops(tokens: int, width: int, keep: int) -> int:
    """Return the FLOPs of max-min selection: the distance matrix, then K passes over N running minima."""
    return 2 * tokens * tokens * width + 2 * keep * tokens
