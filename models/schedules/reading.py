"""What methods read of a layer's attention, and what computing it beside the layer's own costs.

Which rows a watch looks at is asked of its reference, on a few made-up tokens: it is said nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.schedules.method import Array, Method, Queries, View, Watch
from divprune_edge.models.schedules.parts import parts_of
from divprune_edge.models.schedules.schedule import Schedule

SOFTMAX = 5
"""Operations for each share of attention: the largest, a difference, a power, the sum, a quotient."""


def reading_flops(schedule: Schedule, method: Method, spec: DecoderSpec, text_tokens: int) -> int:
    """Return the FLOPs of reading attention for all cuts of a prefill: ``rows n (2 q + 5 heads)`` of each layer.

    q is the width of all heads. The question is taken to be all of the text, and what a method does with the shares,
    or reads of hidden states, is left out: at most a few operations for each of them.
    """
    total = 0
    for part, visual in zip(parts_of(schedule, method, spec.layers), schedule.keeps, strict=True):
        n = visual + text_tokens
        rows: dict[Queries, int] = {
            "last": 1,
            "asked": text_tokens,
            "text": text_tokens,
            "visual": visual,
            "all": n,
        }
        reads = {(layer, queries) for watch, layer in part.readings for queries in read_by(watch)}
        each = n * (2 * spec.heads * spec.head_dim + SOFTMAX * spec.heads)
        total += sum(rows[queries] for _, queries in reads) * each
    return total


def many_rows(method: Method) -> bool:
    """Return whether it looks at the attention of about as many rows as there are visual tokens."""
    return any(queries in ("visual", "all") for watch in method.watches for queries in read_by(watch))


@cache
def read_by(watch: Watch) -> tuple[Queries, ...]:
    """Return the rows whose attention a watch looks at, each once; none where it looks at hidden states alone."""
    random = np.random.default_rng(0)
    before, middle, after, *normed = (random.normal(size=(6, 4)).astype(np.float32) for _ in range(5))
    queries, keys = (random.normal(size=(2, 6, 4)).astype(np.float32) for _ in range(2))
    visual, text = np.array([1, 2, 3]), np.array([0, 4, 5])
    layer = _Traced(queries, keys, before, middle, after, visual, text, (normed[0], normed[1]))
    watch.reference(layer)
    return tuple(dict.fromkeys(layer.asked))


@dataclass(frozen=True, eq=False)
class _Traced(View):
    """Notes what is asked of it."""

    asked: list[Queries] = field(default_factory=list)

    @cached_property
    def attention(self) -> Array:
        self.asked.append("all")
        return self._same.attention

    def shares(self, queries: Queries) -> Array:
        self.asked.append(queries)
        return self._same.shares(queries)

    @property
    def _same(self) -> View:
        return View(self.queries, self.keys, self.before, self.middle, self.after, self.visual, self.text)
