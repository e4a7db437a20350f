"""Dialects: the ways to write the language model's attention and its KV cache, as facts. Nothing compares their names.

``export.dialects`` writes their graphs, ``runtime.backends`` feeds them; what else depends on one asks its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from divprune_edge.errors import either
from divprune_edge.manifest import Dialect, LayerGroup
from divprune_edge.models.tensorrt import Version, parse_version


@dataclass(frozen=True)
class DialectFacts:
    """One dialect.

    Attributes:
        name: as in the manifest.
        grows: a step makes a new, longer cache of the old one, so that two are alive.
        hands_out_rows: a step only reads the cache; its new rows come out beside it, and the caller appends them.
        tensorrt: edition of TensorRT -> the oldest version whose parser takes the graph; empty for ONNX Runtime alone.
        refusal: why what is missing above does not take it; ``{software}`` is what that is.
        inputs: those of the language model beside ids, visual tokens and cache.
        cuda: types of the cache for which ONNX Runtime has CUDA kernels.
    """

    name: Dialect
    grows: bool
    hands_out_rows: bool
    tensorrt: Mapping[str, Version] = field(default_factory=dict)
    refusal: str = ""
    cuda: frozenset[str] = frozenset()
    inputs: tuple[str, ...] = ()

    @property
    def for_tensorrt(self) -> bool:
        """Whether its graphs are for TensorRT: no int8, and int4 multiplied in float16."""
        return bool(self.tensorrt)

    @property
    def takes_positions(self) -> bool:
        """Whether a token's position need not be the row of the cache that it fills."""
        return "position_ids" in self.inputs

    def taken_by(self, edition: str, version: str) -> bool:
        """Whether a version of an edition of TensorRT takes it."""
        oldest = self.tensorrt.get(edition)
        return oldest is not None and oldest <= parse_version(version)

    def cache_rows(self, rows: int, new_rows: int = 0) -> int:
        """Return how many rows are held for a cache of ``rows`` while a step brings ``new_rows``."""
        return rows * (2 if self.grows else 1) + self.rows_beside(new_rows)

    def cache_bytes(self, groups: Iterable[LayerGroup], row: int, tokens: int, new_rows: int = 0) -> int:
        """Return the bytes that are held for the caches of ``groups`` while a step brings each ``new_rows``.

        ``row`` is a row's bytes in one layer; a cache that is not of fixed size has a row for each of ``tokens`` that
        is still there, of one image.
        """
        held = (
            group.layers * self.cache_rows(group.capacity or group.rows(tokens), new_rows) for group in groups
        )
        return row * sum(held)

    def rows_beside(self, new_rows: int) -> int:
        """Return how many of a step's new rows lie beside the cache."""
        return new_rows if self.hands_out_rows else 0


_ALL = (
    DialectFacts(
        "portable",
        grows=True,
        hands_out_rows=False,
        refusal="{software} takes no Attention with cache inputs",
        cuda=frozenset({"float32", "float16"}),
        inputs=("attention_mask", "position_ids"),
    ),
    DialectFacts(
        "onnxruntime",
        grows=False,
        hands_out_rows=False,
        refusal="its fused operators are ONNX Runtime's own",
        cuda=frozenset({"float16"}),
        inputs=("seqlens_k", "total_sequence_length"),
    ),
    DialectFacts(
        "static",
        grows=False,
        hands_out_rows=False,
        # Of TensorRT-RTX, the oldest that was tried.
        tensorrt=MappingProxyType({"tensorrt": (10, 15), "tensorrt-rtx": (1, 7)}),
        refusal="{software} has no TensorScatter, which came with 10.15",
        inputs=("attention_mask", "position_ids", "write_indices"),
    ),
    DialectFacts(
        "decomposed",
        grows=False,
        hands_out_rows=True,
        tensorrt=MappingProxyType({"tensorrt": (10, 0), "tensorrt-rtx": (1, 7)}),
        inputs=("cache_mask", "new_mask", "position_ids"),
    ),
)
DIALECTS: Mapping[str, DialectFacts] = MappingProxyType({one.name: one for one in _ALL})
FOR_TENSORRT = tuple(one.name for one in _ALL if one.for_tensorrt)
FOR_ANY_TENSORRT = min(FOR_TENSORRT, key=lambda name: DIALECTS[name].tensorrt["tensorrt"])
"""The one that the oldest takes."""


def option(holds: Callable[[DialectFacts], bool]) -> str:
    """Return ``--dialect static or decomposed``: what asks for a dialect for which something holds."""
    return f"--dialect {either(one.name for one in _ALL if holds(one))}"


def row_bytes(kv_heads: int, head_dim: int, element_bytes: int) -> int:
    """Return the bytes of keys and values of one position in one layer."""
    return 2 * kv_heads * head_dim * element_bytes
