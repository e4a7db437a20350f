"""The arithmetic of an answer: floating-point operations of prefill and bytes of KV cache, for a spec and a budget.

"Real" FLOPs: two per multiply-accumulate, gated MLP and grouped-query attention counted as they are, the
quadratic term of attention not halved for causality. What papers print follows other conventions, which are in
:mod:`divprune_edge.models.cost_conventions`; always say which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.families.family import Spec
from divprune_edge.models.schedules import Schedule, find_method
from divprune_edge.models.schedules.reading import reading_flops
from divprune_edge.models.tiles import candidates_of, tiles_of


@dataclass(frozen=True)
class DecoderFlops:
    """What a decoder's FLOPs are made of: per token, per pair of a query and a key, and per position with logits."""

    token: int
    pair: int
    logits: int

    def of(self, new: int, cached: int = 0) -> int:
        """Return the FLOPs of a step that appends ``new`` tokens to ``cached`` ones, one position's logits included."""
        return self.token * new + self.pair * new * (cached + new) + self.logits


def decoder_parts(spec: DecoderSpec, vocabulary: int) -> DecoderFlops:
    """Return ``2 L (2 h (q + kv) + 3 h m)`` per token, ``4 L q`` per pair, ``2 h V`` for logits.

    q and kv are the widths of all heads.
    """
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrices = 2 * spec.hidden * (q + kv) + 3 * spec.hidden * spec.intermediate
    return DecoderFlops(2 * spec.layers * matrices, 4 * spec.layers * q, 2 * spec.hidden * vocabulary)


def decoder_flops(spec: DecoderSpec, tokens: int, vocabulary: int) -> int:
    """Return the FLOPs of prefilling ``tokens`` tokens, logits of one position included."""
    return decoder_parts(spec, vocabulary).of(tokens)


def max_min_flops(tokens: int, width: int, keep: int) -> int:
    """Return the FLOPs of max-min selection: the distance matrix, then K passes over N running minima."""
    return 2 * tokens * tokens * width + 2 * keep * tokens


def kv_bytes(spec: DecoderSpec, tokens: int, element_bytes: int = 2) -> int:
    """Return the bytes of keys and values of ``tokens`` positions: ``2 L h_kv d_h n`` elements."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * tokens * element_bytes


def visual_by_layer(schedule: Schedule, layers: int) -> tuple[int, ...]:
    """Return how many visual tokens of an image each layer reads, and keeps in its cache."""
    begins = [0, *(cut.before for cut in schedule.cuts), layers]
    return tuple(
        keep
        for keep, first, end in zip(schedule.keeps, begins[:-1], begins[1:], strict=True)
        for _ in range(first, end)
    )


def layered_flops(spec: DecoderSpec, tokens: Sequence[int], vocabulary: int) -> int:
    """Return the FLOPs of a prefill whose layers read ``tokens`` tokens each.

    What reading scores costs beside is :func:`~divprune_edge.models.schedules.reading.reading_flops`.
    """
    one = decoder_parts(spec.truncated(1), vocabulary)
    return sum(one.token * n + one.pair * n * n for n in tokens) + one.logits


def layered_kv_bytes(spec: DecoderSpec, tokens: Sequence[int]) -> int:
    """Return the bytes of keys and values where each layer holds ``tokens`` positions, 16 bits an element."""
    return sum(kv_bytes(spec.truncated(1), n, 2) for n in tokens)


@dataclass(frozen=True)
class Cost:
    """FLOPs of each stage of one answer's prefill, and the bytes of its KV cache (16-bit elements).

    ``scores`` is what a schedule's method reads of attention beside the language model's own.
    """

    vision: int
    projector: int
    selector: int
    language: int
    kv_bytes: int
    scores: int = 0

    @property
    def total(self) -> int:
        """FLOPs of all stages: what a user waits for."""
        return self.vision + self.projector + self.selector + self.language + self.scores


def cost_of(
    spec: Spec, keep: int, text_tokens: int, vocabulary: int | None = None, schedule: Schedule | None = None
) -> Cost:
    """Return the cost of one image and ``text_tokens`` tokens of prompt (system and question).

    An image is as large as one can be. The projector sees every token: the selection comes after it. A budget of all
    tokens has no selector. With a ``schedule``, whose visual tokens are ``keep``, tokens leave between layers as well.
    """
    n, tiles, layers = candidates_of(spec), tiles_of(spec), spec.decoder.layers
    rows = spec.decoder.vocabulary if vocabulary is None else vocabulary
    visual = (keep,) * layers if schedule is None else visual_by_layer(schedule, layers)
    tokens = [count + text_tokens for count in visual]
    return Cost(
        vision=tiles * spec.vision_flops,
        projector=tiles * spec.projector_flops,
        selector=max_min_flops(n, spec.width, keep) if keep < n else 0,
        language=layered_flops(spec.decoder, tokens, rows),
        kv_bytes=layered_kv_bytes(spec.decoder, tokens),
        scores=0
        if schedule is None
        else reading_flops(schedule, find_method(schedule.method), spec.decoder, text_tokens),
    )
