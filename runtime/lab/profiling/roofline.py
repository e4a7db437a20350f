"""The least time that a stage can take: its operations at the peak rate, or its bytes at the memory's bandwidth."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from divprune_edge.manifest import GraphInfo, LanguageCost, Manifest, Precision, SelectorInfo
from divprune_edge.models.cost import DecoderFlops, max_min_flops
from divprune_edge.models.dialects import row_bytes
from divprune_edge.models.precisions import PRECISIONS
from divprune_edge.models.targets import Target
from divprune_edge.processing.patches import most_dimensions
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.profiling.measure import DECODE

MEANING = (
    "The roofline is the larger of operations over the peak rate and bytes over the memory's bandwidth, with every "
    "weight and every row of the cache read once and activations not counted. Only a model that stays in a CPU's "
    "caches from run to run can beat it. Where the rate for an element type is not known, it is that of the "
    "memory alone."
)
_SIDE = 512
SECONDS = 1.5
"""How long each rate of this CPU is looked for: other programs leave it alone only now and then."""
LOOKS = 5
"""Parts of that time; the best of each part says how much the rate varies."""
_COPY_BYTES = 1 << 26
_MAX_MIN = "divprune"


@dataclass(frozen=True)
class Machine:
    """Peak rates in operations per second by element type, bandwidth in bytes per second, and where they are from."""

    name: str
    title: str
    bandwidth: float
    rates: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class StageCost:
    """Floating-point operations and bytes that a stage cannot do without."""

    flops: int
    bytes: int
    precision: Precision


@dataclass(frozen=True)
class Bound:
    """The least time of a stage in milliseconds, and what sets it: ``compute`` or ``memory``."""

    ms: float
    by: str


def machine_of(target: Target) -> Machine | None:
    """Return a target's machine; None where the table states no rates."""
    if target.bandwidth is None or not target.rates:
        return None
    source = "; ".join(target.sources[fact] for fact in ("rates", "bandwidth") if fact in target.sources)
    return Machine(target.name, target.title, target.bandwidth, target.rates, source)


def measure_host(threads: int | None) -> Machine:
    """Measure this CPU: a float32 matrix product of NumPy's, and a copy by as many threads as the profile uses.

    It takes a few hundred MiB, so it comes after what reports peak memory.
    """
    workers = threads or os.cpu_count() or 1
    left = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(left)
    rates = [2 * _SIDE**3 / taken for taken in _fastest(lambda: np.matmul(left, left, out=out))]
    piece = np.zeros((workers, _COPY_BYTES // 8 // workers), np.float64)
    target = np.zeros_like(piece)
    with ThreadPoolExecutor(workers) as pool:
        copies = _fastest(lambda: list(pool.map(np.copyto, target, piece)))
    bandwidths = [2 * piece.nbytes / taken for taken in copies]
    rate, bandwidth = max(rates), max(bandwidths)
    source = (
        f"measured here, in this run (another may find others): {LOOKS} looks gave "
        f"{min(rates) / 1e9:.0f} to {rate / 1e9:.0f} GFLOP/s (NumPy with its own threads, float32, {_SIDE} × {_SIDE}) "
        f"and {min(bandwidths) / 1e9:.1f} to {bandwidth / 1e9:.1f} GB/s (copy by {workers} thread{'s' * (workers > 1)})"
        ", of which the highest are taken; types of 16 and 8 bits are counted as 2 and 4 times as fast"
    )
    return Machine("cpu", "this CPU", bandwidth, {"fp32": rate, "fp16": 2 * rate, "int8": 4 * rate}, source)


def costs(
    bundle: Bundle,
    selector: SelectorInfo | None,
    prompt_tokens: int,
    answer_tokens: int,
    tiles: int = 1,
    picks: int = 1,
) -> dict[str, StageCost]:
    """Return the cost of each stage that has one; bundles of older exports state none for vision and language.

    Of a language model that is a chain, ``prefill.0`` and so on are those of each graph.

    Args:
        bundle: the bundle.
        selector: None keeps every visual token.
        prompt_tokens: prefilled, visual ones included.
        answer_tokens: length of the answer; a decode step is the one in its middle.
        tiles: of the image, see :func:`~divprune_edge.runtime.lab.profiling.measure.counted_tiles`.
        picks: how often the selector runs.
    """
    manifest = bundle.manifest
    vision, language = manifest.vision_encoder, manifest.language_model
    token_row = vision.width * np.dtype(manifest.token_dtype).itemsize
    found: dict[str, StageCost] = {}
    if vision.flops is not None and tiles:
        most = most_dimensions(manifest.preprocessing.patches)
        sizes = (most.get(size, 1) if isinstance(size, str) else size for size in vision.inputs[0].shape)
        pixels = math.prod(sizes)
        moved = _stored(manifest, vision) + tiles * (pixels + vision.tokens * token_row)
        found["vision"] = StageCost(tiles * vision.flops, moved, vision.precision)
    if selector is not None and selector.name == _MAX_MIN and picks:
        flops = picks * max_min_flops(selector.candidates, vision.looked_at, selector.keep)
        moved = picks * (selector.candidates + selector.keep) * token_row
        found["select"] = StageCost(flops, moved, "fp32")
    if language.cost is not None:
        behind = prompt_tokens + answer_tokens // 2
        for stage, new, cached in (("prefill", prompt_tokens, 0), (DECODE, 1, behind)):
            each = _steps(manifest, language.cost, selector, new, cached)
            flops, moved = sum(one.flops for one in each), sum(one.bytes for one in each)
            found[stage] = StageCost(flops, moved, language.precision)
            if language.schedule is not None:
                found |= {f"{stage}.{i}": one for i, one in enumerate(each)}
    return found


def _steps(
    manifest: Manifest, cost: LanguageCost, selector: SelectorInfo | None, new: int, cached: int
) -> list[StageCost]:
    """Return what each graph of the language model costs in a step of ``new`` tokens behind ``cached`` ones."""
    language = manifest.language_model
    parts = DecoderFlops(cost.token_flops, cost.pair_flops, cost.logits_flops)
    row = row_bytes(language.kv_heads, language.head_dim, np.dtype(language.cache_dtype).itemsize)
    # What leaves before a group of layers is neither computed there nor in its cache.
    there = [max(1, n) for n in language.group_tokens(cached or new, [manifest.visual_tokens(selector)])]
    # The first graph has the table that ids are looked up in, which is not read whole.
    behind = [_stored(manifest, graph) for graph in language.graphs[1:]]
    weights = [cost.weight_bytes - sum(behind), *behind]
    entering = new * manifest.vision_encoder.width * np.dtype(manifest.token_dtype).itemsize
    found = []
    for group, tokens, own in zip(language.groups, there, weights, strict=True):
        mine, held = (new, tokens) if cached else (tokens, 0)
        last = group.first + group.layers == language.layers
        flops = (parts.of(mine, held) - parts.logits) * group.layers // language.layers + last * parts.logits
        # A cache of fixed size is read whole, however little of it is filled.
        moved = own + row * group.layers * (mine + (group.capacity or held)) + entering * (group.first == 0)
        found.append(StageCost(flops, moved, language.precision))
    return found


def bound(cost: StageCost, machine: Machine) -> Bound:
    """Return the roofline of a cost; where the rate for its element type is not known, that of the memory."""
    rate = machine.rates.get(PRECISIONS[cost.precision].rate)
    compute, memory = cost.flops / rate if rate else 0.0, cost.bytes / machine.bandwidth
    return Bound(1000 * max(compute, memory), "compute" if compute > memory else "memory")


def _stored(manifest: Manifest, graph: GraphInfo) -> int:
    return sum(manifest.files[name].size for name in (graph.file, *graph.data))


def _fastest(work: Callable[[], object]) -> list[float]:
    """Return the shortest time of each look, in seconds."""
    best = []
    for _ in range(LOOKS):
        taken: list[float] = []
        end = time.perf_counter() + SECONDS / LOOKS
        while not taken or time.perf_counter() < end:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
        best.append(min(taken))
    return best
