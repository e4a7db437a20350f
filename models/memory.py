"""What a bundle takes on a device, forecast from sizes: weights, KV cache, activations, workspace, and the build.

Everything here is arithmetic on assumptions (evidence level E2); nothing of it was measured on a device. The
assumptions are the constants below and the two sentences in :data:`ASSUMPTIONS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from divprune_edge.models.precisions import PRECISIONS
from divprune_edge.models.targets import GIB, HALF, INT4, TARGETS, Target

MIB = 2**20
SYSTEM_SHARED = int(1.5 * GIB)
"""Of a Jetson's memory: carve-outs of the boot firmware and Ubuntu without a desktop. From memory."""
SYSTEM_CARD = GIB // 2
"""Of a card's memory: driver, page tables, other contexts."""
PROCESS_SHARED = 3 * GIB // 4
"""CUDA context, TensorRT's libraries and Python with the tokenizer, where the host's memory is the device's."""
PROCESS_CARD = GIB // 2
"""The CUDA context and TensorRT's kernels."""
WORKSPACE = 256 * MIB
"""Scratch memory of the tactics, all engines together."""
BUILD_COPIES = 3
"""Copies of the largest graph's weights while it is built: as read, as laid out for the GPU, and in the plan."""
ASSUMPTIONS = (
    "TensorRT holds weights as the graph stores them (int4 stays int4), a matrix that is embedding and head twice",
    "the builder holds the largest graph's weights three times: as read, on the GPU, in the plan; two of these may "
    "be in swap",
)


@dataclass(frozen=True)
class Elements:
    """Numbers of weights: of the vision graph, of matrices that int4 applies to, of all else in the language graph."""

    vision: int
    matrices: int
    rest: int

    def language_bytes(self, precision: str, block: int = 128) -> int:
        """Return the size of the language graph's weights."""
        return PRECISIONS[precision].stored_bytes(self.matrices, self.rest, block)

    def vision_bytes(self, precision: str) -> int:
        """Return the size of the vision graph's weights."""
        return self.vision * PRECISIONS[precision].bits // 8


@dataclass(frozen=True)
class Need:
    """Bytes that a bundle takes while it runs, by part; ``rows`` is the KV cache's number of rows."""

    vision: int
    language: int
    cache: int
    activations: int
    rows: int


@dataclass(frozen=True)
class Forecast:
    """A need against a target's memory, in bytes."""

    target: Target
    need: Need
    memory: int
    system: int
    process: int

    @property
    def parts(self) -> Mapping[str, int]:
        """Label -> bytes, of what runs."""
        return {
            "weights, vision encoder": self.need.vision,
            "weights, language model": self.need.language,
            f"KV cache, {self.need.rows} rows": self.need.cache,
            "activations": self.need.activations,
            "workspace": WORKSPACE,
            "process": self.process,
        }

    @property
    def total(self) -> int:
        """Bytes while running."""
        return sum(self.parts.values())

    @property
    def available(self) -> int:
        """The memory less the system's share."""
        return self.memory - self.system

    @property
    def fits(self) -> bool:
        """Whether it runs."""
        return self.total <= self.available

    @property
    def hopeless(self) -> bool:
        """Whether weights and cache alone are more than there is: nothing assumed about TensorRT matters then."""
        return self.need.vision + self.need.language + self.need.cache > self.available

    @property
    def _largest(self) -> int:
        return max(self.need.vision, self.need.language)

    @property
    def build_device(self) -> int:
        """Bytes on the GPU while the largest engine is built: never more than what runs later takes."""
        return self._largest + WORKSPACE + self.process

    @property
    def build_total(self) -> int:
        """Bytes of host and GPU together while the largest engine is built."""
        return self.build_device + (BUILD_COPIES - 1) * self._largest

    @property
    def swap(self) -> int:
        """Bytes of swap that the build needs; a card's host has memory of its own, which is not known here."""
        return max(0, self.build_total - self.available) if self.target.shared_memory else 0


def forecast(target: Target, need: Need) -> Forecast | None:
    """Return the forecast, None for a target without a memory of its own (``cpu``, ``cuda``)."""
    if target.memory_bytes is None:
        return None
    shared = target.shared_memory
    return Forecast(
        target=target,
        need=need,
        memory=target.memory_bytes,
        system=SYSTEM_SHARED if shared else SYSTEM_CARD,
        process=PROCESS_SHARED if shared else PROCESS_CARD,
    )


def would_fit(wanted: Forecast, elements: Elements, least_rows: int) -> list[str]:
    """Return what would fit instead, best first, as ends of the sentence "what would fit: …".

    Tried are float16, then int4 for the language model (in blocks of 128, the default there), each with the cache
    as it is and with the smallest one; and if nothing is left, other devices as they are asked for.

    Args:
        wanted: what does not fit.
        elements: numbers of weights.
        least_rows: the fewest rows that the cache makes sense with.
    """
    found = []
    for option, need in _smaller(wanted.need, elements, least_rows):
        tried = replace(wanted, need=need)
        if tried.fits:
            note = f" (build with {human(tried.swap)} of swap)" if tried.swap else ""
            found.append(f"{option}, {human(tried.total)}{note}")
    if found:
        return found[:2]
    return [
        f"--target {name}"
        for name, other in TARGETS.items()
        if other.tensorrt == wanted.target.tensorrt
        and (larger := forecast(other, wanted.need)) is not None
        and larger.fits
    ]


def _smaller(need: Need, elements: Elements, least_rows: int) -> Iterator[tuple[str, Need]]:
    for option, precision in ((f"--precision {HALF}", "fp16"), (f"--precision {INT4}", "int4")):
        smaller = replace(
            need,
            vision=min(need.vision, elements.vision_bytes("fp16")),
            language=elements.language_bytes(precision),
        )
        if smaller.language + smaller.vision < need.language + need.vision:
            yield option, smaller
    if least_rows < need.rows:
        share = (least_rows, need.rows)
        least = replace(
            need,
            rows=least_rows,
            cache=need.cache * share[0] // share[1],
            activations=need.activations * share[0] // share[1],  # scores shrink faster than that
        )
        yield f"--capacity {least_rows}", least
        for option, smaller in _smaller(least, elements, least_rows):
            yield f"{option} --capacity {least_rows}", smaller


def refusal(asked: Forecast, elements: Elements, least_rows: int) -> str:
    """Return the sentence for what does not fit: the numbers, and what would."""
    need = asked.need
    numbers = (
        f"weights {human(need.vision + need.language)}, KV cache of {need.rows} rows {human(need.cache)}, activations "
        f"{human(need.activations)}, workspace {human(WORKSPACE)}, process {human(asked.process)}"
    )
    there = f"{asked.target.title} has {human(asked.memory)} less {human(asked.system)} for the system"
    start = f"This takes {human(asked.total)} ({numbers}), but {there}"
    options = would_fit(asked, elements, least_rows)
    return (
        f"{start}: what would fit is {' or '.join(options) or 'no variant of this checkpoint on any target'}."
    )


def human(size: int) -> str:
    """Return a size in GiB with two decimals, in whole MiB below that."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{-(-size // MIB)} MiB"


def tile_buffers(run_bytes: int, tiles_bytes: int, group_bytes: int, groups: int) -> int:
    """Return the bytes of what the tiles of an image or clip are held in between encoder and selector.

    Args:
        run_bytes: what a run of the encoder gives.
        tiles_bytes: of all tiles together, where there are several runs: what each gives is copied there; else 0.
        group_bytes: the rows that a selector picks from, and which tokens make them.
        groups: of rows.
    """
    return run_bytes + tiles_bytes + groups * group_bytes


def prefill_activations(
    hidden: int, intermediate: int, heads: int, tokens: int, keys: int, element_bytes: int
) -> int:
    """Return an estimate of a transformer's activations from its sizes alone, before there is a graph.

    What is alive at the widest point: residual, norm, gate, up and their product; or residual, norm, q, k, v and the
    scores of ``tokens`` queries over ``keys`` keys in float32, before and after the softmax; whichever is more.
    """
    mlp = tokens * (2 * hidden + 3 * intermediate) * element_bytes
    attention = tokens * 5 * hidden * element_bytes + 2 * heads * tokens * keys * 4
    return max(mlp, attention)
