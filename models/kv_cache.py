"""What a decode step moves between memory and processor for its KV cache, by the way in which the cache is kept.

Counted in rows: a row is keys and values of one position in all layers. Each read from memory and each write to it
counts; what a kernel keeps on the chip does not. This is arithmetic about memory traffic, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from divprune_edge.models.cost import kv_bytes
from divprune_edge.models.decoder import DecoderSpec


@dataclass(frozen=True)
class CacheScheme:
    """One way to keep a cache: rows moved per step ``live * per_live + capacity * per_capacity + constant``.

    ``live`` counts the positions before the step. ``static`` says that no shape changes from step to step, so that
    one CUDA graph serves them all; ``copies`` is how many caches have to be in memory.
    """

    title: str
    per_live: int
    per_capacity: int
    constant: int
    static: bool
    copies: int

    def rows(self, live: int, capacity: int) -> int:
        """Return the rows that one step reads and writes."""
        return self.per_live * live + self.per_capacity * capacity + self.constant

    def bytes(self, spec: DecoderSpec, live: int, capacity: int, element_bytes: int = 2) -> int:
        """Return the same in bytes."""
        return self.rows(live, capacity) * kv_bytes(spec, 1, element_bytes)


# Concat reads the old cache and writes the new one, attention reads that: 3 live rows, of the new one 2.
GROWING = CacheScheme("growing, `Concat`", 3, 0, 2, static=False, copies=2)
# The graph writes the new row, attention reads it beside the whole cache, the append kernel reads and writes it.
TWO_PART = CacheScheme("two parts, append kernel (`decomposed`)", 0, 1, 4, static=True, copies=1)
# The new row is written for the plugin, which reads it and writes it into the cache; attention reads the whole cache.
APPEND_PLUGIN = CacheScheme("append plugin with aliased input and output", 0, 1, 3, static=True, copies=1)
# The new row is written into the cache; attention reads the whole cache.
SCATTER = CacheScheme("`TensorScatter` in place (`static`)", 0, 1, 1, static=True, copies=1)

SCHEMES = (GROWING, TWO_PART, APPEND_PLUGIN, SCATTER)


def step_weight_bytes(spec: DecoderSpec, vocabulary: int, *, block_size: int | None = None) -> int:
    """Return the bytes of weights that one decode step reads: matrices, norms, biases, head, one embedding row.

    Args:
        spec: of the decoder.
        vocabulary: rows of the output head, which is float16.
        block_size: of int4 matrices with a float16 scale per block; None for float16.
    """
    total = 2 * vocabulary * spec.hidden + 2 * spec.hidden
    for name, shape in spec.parameters(vocabulary).items():
        if name == "embed_tokens.weight":
            continue
        count = shape[0] * shape[1] if len(shape) == 2 else shape[0]
        if len(shape) == 2 and block_size is not None:
            total += count // 2 + 2 * (count // block_size)
        else:
            total += 2 * count
    return total
