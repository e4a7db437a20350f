"""Signals of a tower: which layers they look at, and their graph beside those layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divprune_edge.models.graph import Builder
from divprune_edge.models.signals import (
    ATTENTION_GLOBAL,
    ATTENTION_OBJECT,
    ATTENTION_RECEIVED,
    CLASS_TOKEN,
    CLS_ATTENTION,
    CLS_ATTENTION_SUM,
    CLS_TOKEN,
    GLOBAL_SHARE,
    INFORMATION_FLOW,
    KEYS,
    ORIGINS,
    SIGNALS,
)
from divprune_edge.models.towers.vit import VitSpec

# HiPrune's object layer is the 9th of 24; VTC-CLS sums from index 16 of 24.
_OBJECT_DEPTH = 9 / 24
_SUM_DEPTH = 16 / 24


@dataclass(frozen=True)
class SignalLayers:
    """Which layers (from 0) the signals look at: ``summed`` is a range of them."""

    feature: int
    object: int
    summed: range


def signal_layers(spec: VitSpec) -> SignalLayers:
    """Return the layers of a tower that signals look at.

    Raises:
        ValueError: the feature is the tower's input, before any layer.
    """
    if spec.used_layers == 0:
        raise ValueError("no layer makes this feature")
    feature = spec.used_layers - 1
    middle = min(max(round(_OBJECT_DEPTH * spec.layers) - 1, 0), feature)
    first = min(round(_SUM_DEPTH * spec.layers), feature)
    return SignalLayers(feature, middle, range(first, feature + 1))


def signal_shapes(spec: VitSpec, width: int) -> dict[str, tuple[int, ...]]:
    """Return the signals that an encoder with this tower and visual tokens of ``width`` values can give.

    Returns:
        Name -> shape for one tile. There is nothing of a class token without one, and nothing at all where the
        feature is the tower's input, before any attention.
    """
    if spec.used_layers == 0:
        return {}
    special = {KEYS: (spec.tokens, spec.head_dim), CLS_TOKEN: (1, width)}
    layers = signal_layers(spec)
    names = [name for name in SIGNALS if spec.class_token or name not in CLASS_TOKEN]
    if spec.cut is not None:
        first = {CLS_ATTENTION_SUM: layers.summed.start, ATTENTION_OBJECT: layers.object, INFORMATION_FLOW: 0}
        names = [name for name in names if first.get(name, spec.cut.layer) >= spec.cut.layer] + [ORIGINS]
    return {name: special.get(name, (spec.tokens,)) for name in names}


class SignalTap:
    """Listens to the queries, keys and values of each layer and keeps the signals that were asked for.

    Everything is computed from these again, in float32; nothing reads a layer's own softmax, so
    that its attention may still be fused.
    """

    def __init__(self, spec: VitSpec, names: Sequence[str]) -> None:
        self._spec = spec
        self._names = frozenset(names)
        self._layers: SignalLayers | None = signal_layers(spec) if names else None
        self.found: dict[str, Any] = {}

    @property
    def listens(self) -> bool:
        """Whether anything was asked for."""
        return self._layers is not None

    def see(self, g: Builder, layer: int, queries: Any, keys: Any, values: Any, dtype: str) -> None:
        """Take what is wanted from one layer.

        Args:
            g: the builder, in the layer's scope.
            layer: index from 0.
            queries: [tiles, heads, n, d], scaled.
            keys: [tiles, heads, d, n].
            values: [tiles, heads, n, d].
            dtype: their element type.
        """
        layers = self._layers
        if layers is None:
            return
        with g.scope("signals"):
            if layer in layers.summed and self._names & {CLS_ATTENTION, CLS_ATTENTION_SUM}:
                row = self._class_row(g, queries, keys, dtype)
                if CLS_ATTENTION_SUM in self._names:
                    before = self.found.get(CLS_ATTENTION_SUM)
                    self.found[CLS_ATTENTION_SUM] = row if before is None else g.op("Add", before, row)
                if layer == layers.feature and CLS_ATTENTION in self._names:
                    self.found[CLS_ATTENTION] = row
            if INFORMATION_FLOW in self._names:
                self._flow(g, queries, keys, values, dtype)
            if layer == layers.feature and ATTENTION_GLOBAL in self._names:
                self.found[ATTENTION_GLOBAL] = self._from_global(g, queries, keys, dtype)
            for name, index in ((ATTENTION_OBJECT, layers.object), (ATTENTION_RECEIVED, layers.feature)):
                if layer == index and name in self._names:
                    self.found[name] = self._received(g, queries, keys, dtype)
            if layer == layers.feature and KEYS in self._names:
                mean = g.op("ReduceMean", _single(g, keys, dtype), g.constant([1]), keepdims=0)
                self.found[KEYS] = self._rows(g, g.op("Transpose", mean, perm=[0, 2, 1]))

    def _class_row(self, g: Builder, queries: Any, keys: Any, dtype: str) -> Any:
        """softmax(q_cls K^T), mean over heads: [tiles, N]."""
        row = g.op("Slice", queries, g.constant([0]), g.constant([1]), g.constant([2]))
        scores = g.op("MatMul", _single(g, row, dtype), _single(g, keys, dtype))
        mean = g.op("ReduceMean", g.op("Softmax", scores, axis=-1), g.constant([1, 2]), keepdims=0)
        return self._rows(g, mean)

    def _flow(self, g: Builder, queries: Any, keys: Any, values: Any, dtype: str) -> None:
        """Half of what the layers before gave, and half of this one's; all of it in the first."""
        v = _single(g, values, dtype)
        first = g.op("Slice", v, g.constant([0]), g.constant([1]), g.constant([2]))
        alike = g.op("Softmax", g.op("MatMul", first, g.op("Transpose", v, perm=[0, 1, 3, 2])), axis=-1)
        alike = self._rows(g, g.op("ReduceMean", alike, g.constant([1, 2]), keepdims=0))
        mean = g.op("ReduceMean", v, g.constant([1]), keepdims=0)
        length = self._rows(g, g.op("ReduceSum", g.op("Abs", mean), g.constant([2]), keepdims=0))
        shares = [self._share(g, row) for row in (self._class_row(g, queries, keys, dtype), alike)]
        score = g.op("Mul", g.op("Add", *shares), length)
        before = self.found.get(INFORMATION_FLOW)
        if before is not None:
            score = g.op("Mul", g.op("Add", before, score), g.constant(0.5, "float32"))
        self.found[INFORMATION_FLOW] = score

    def _share(self, g: Builder, row: Any) -> Any:
        return g.op("Div", row, g.op("ReduceSum", row, g.constant([1]), keepdims=1))

    def _from_global(self, g: Builder, queries: Any, keys: Any, dtype: str) -> Any:
        """Mean over heads and over the patches that receive more than their share: [tiles, N]."""
        scores = g.op("MatMul", _single(g, queries, dtype), _single(g, keys, dtype))
        maps = g.op("ReduceMean", g.op("Softmax", scores, axis=-1), g.constant([1]), keepdims=0)
        patches = self._rows(g, maps)
        if self._spec.drops_first:
            ends = (g.constant([1]), g.constant([self._spec.rows]), g.constant([2]))
            patches = g.op("Slice", patches, *ends)
        received = g.op("ReduceSum", patches, g.constant([1]), keepdims=1)
        bound = g.op("ReduceSum", received, g.constant([2]), keepdims=1)
        bound = g.op("Mul", bound, g.constant(GLOBAL_SHARE, "float32"))
        weight = g.cast(g.op("Greater", received, bound), "float32")
        count = g.op("ReduceSum", weight, g.constant([2]), keepdims=1)
        one, half = g.constant(1.0, "float32"), g.constant(0.5, "float32")
        none = g.op("Less", count, half)
        weight = g.op("Where", none, one, weight)
        count = g.op("Where", none, g.constant(float(self._spec.tokens), "float32"), count)
        return g.op("Squeeze", g.op("Div", g.op("MatMul", weight, patches), count), g.constant([1]))

    def _received(self, g: Builder, queries: Any, keys: Any, dtype: str) -> Any:
        """Column means of softmax(Q K^T), over the queries of all rows: [tiles, N]."""
        scores = g.op("MatMul", _single(g, queries, dtype), _single(g, keys, dtype))
        mean = g.op("ReduceMean", g.op("Softmax", scores, axis=-1), g.constant([1, 2]), keepdims=0)
        return self._rows(g, mean)

    def _rows(self, g: Builder, x: Any) -> Any:
        """Drop the first row on axis 1 where ``visual_tokens`` goes without it."""
        if not self._spec.drops_first:
            return x
        return g.op("Slice", x, g.constant([1]), g.constant([self._spec.last_rows]), g.constant([1]))


def _single(g: Builder, x: Any, dtype: str) -> Any:
    return x if dtype == "float32" else g.cast(x, "float32")
