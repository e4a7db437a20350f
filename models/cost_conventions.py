"""How papers count: one operation per multiply-accumulate, of the decoder alone.

Per layer, for n tokens, width d and MLP width m, two conventions are in use:

* ``f2 = 4 n d^2 + 2 n^2 d + 2 n d m`` (FastV, DivPrune), and
* ``f3 = 4 n d^2 + 2 n^2 d + 3 n d m`` (PyramidDrop, TransPrune, FitPrune, CATP), right for a gated MLP.

n counts the question and the visual tokens (DivPrune; without the system prompt), or the visual tokens alone
(TransPrune, FitPrune, CATP). Neither counts the vision encoder, which a small budget leaves as the largest part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

F2, F3 = 2, 3
"""Matrices of the MLP that a convention counts."""


@dataclass(frozen=True)
class Sizes:
    """Width d, MLP width m and layers T of a decoder."""

    hidden: int
    intermediate: int
    layers: int


LLAMA_7B = Sizes(4096, 11008, 32)
"""Llama's and Vicuna's 7B: LLaVA-1.5-7B's decoder."""

QUESTION_TOKENS: Mapping[str, int] = MappingProxyType(
    {
        "COCO": 15,
        "Flickr": 15,
        "GQA": 23,
        "MMB": 83,
        "MME": 25,
        "MMMU": 113,
        "Nocaps": 15,
        "OKVQA": 39,
        "POPE": 21,
        "SQA": 91,
        "SEED": 57,
    }
)
"""Length of the question alone, per data set, as DivPrune counts it; the 35 tokens before it are left out."""

SYSTEM_TOKENS = 35
"""What precedes the image in LLaVA-1.5's prompt, BOS included."""


def layer_flops(sizes: Sizes, tokens: int, convention: int) -> int:
    """Return ``4 n d^2 + 2 n^2 d + c n d m`` with c 2 or 3."""
    d, m = sizes.hidden, sizes.intermediate
    return 4 * tokens * d * d + 2 * tokens * tokens * d + convention * tokens * d * m


def prefill_flops(sizes: Sizes, stages: Sequence[tuple[int, int]], convention: int) -> int:
    """Return the operations of a prefill that runs ``layers`` layers on ``tokens`` tokens, stage by stage.

    Args:
        sizes: the decoder.
        stages: (layers, tokens) of each stage; the layers add up to all of them.
        convention: :data:`F2` or :data:`F3`.
    """
    if sum(layers for layers, _ in stages) != sizes.layers:
        raise ValueError(f"the stages do not add up to {sizes.layers} layers")
    return sum(layers * layer_flops(sizes, tokens, convention) for layers, tokens in stages)


def fitprune_flops(sizes: Sizes, visual: int, deletions: Sequence[int]) -> int:
    """Return the operations as FitPrune counts them: visual tokens alone, which leave inside a layer.

    Behind its attention go ``deletions[l]`` of the n that enter layer l: ``3 n d^2 + 2 n^2 d + n' d^2 + 3 n' d m``, the
    projections of queries, keys and values and the attention before, that of the output and the MLP after it.
    """
    if len(deletions) != sizes.layers:
        raise ValueError(f"there are {len(deletions)} counts for {sizes.layers} layers")
    d, m, total, tokens = sizes.hidden, sizes.intermediate, 0, visual
    for leaving in deletions:
        total += 3 * tokens * d * d + 2 * tokens * tokens * d
        tokens -= leaving
        total += tokens * d * d + 3 * tokens * d * m
    return total


def divprune_ratio(
    sizes: Sizes, visual: int, keep: int | Sequence[int], questions: Sequence[int], system: int = 0
) -> tuple[float, float, float]:
    """Return (operations without pruning, with it, mean of the ratios) as DivPrune reports them, over data sets.

    ``keep`` is how many visual tokens all layers read, or each of them.
    """
    held = [keep] * sizes.layers if isinstance(keep, int) else keep
    full = [prefill_flops(sizes, [(sizes.layers, visual + n + system)], F2) for n in questions]
    pruned = [prefill_flops(sizes, [(1, m + n + system) for m in held], F2) for n in questions]
    ratios = [p / f for p, f in zip(pruned, full, strict=True)]
    count = len(questions)
    return sum(full) / count, sum(pruned) / count, sum(ratios) / count
