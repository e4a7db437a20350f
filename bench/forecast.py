"""What Qwen3-VL-2B would take to its first token on four Jetsons, from NVIDIA's published times of other lengths.

Nothing here was measured by us. Prefill is on the line through the two published times over FLOPs,
the encoder's time in proportion to its FLOPs, and selection at the peak rate. ``docs/performance.md`` has the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from divprune_edge.models.budget import keep_from_prune
from divprune_edge.models.cost import decoder_flops, max_min_flops
from divprune_edge.models.families import family_named
from divprune_edge.models.families.qwen_vl.model import QwenSpec
from divprune_edge.models.targets import TARGETS

VOCABULARY = 151936
TEXT_TOKENS = 59
PRUNED = ("0.75", "0.9")
SHORT, LONG, SEEN = 292, 2048, 265
"""Tokens of the published times: prompts with a photograph, and without; and visual tokens of the photograph."""


@dataclass(frozen=True)
class Published:
    """Milliseconds of TensorRT-Edge-LLM 0.10.0 on JetPack 7.2, batch 1, encoder in FP16 (performance-benchmarks.md)."""

    target: str
    rate: str
    language: str
    short: float
    long: float
    vision: float


PUBLISHED = (
    Published("orin-nano-8gb", "fp16", "int4", 167.2, 1017.0, 141.3),
    Published("orin-nx-16gb", "fp16", "int4", 93.5, 760.3, 77.1),
    Published("agx-orin-64gb", "fp16", "int4", 45.7, 298.4, 36.2),
    Published("thor", "fp16", "int4", 29.3, 145.3, 11.7),
    Published("thor", "fp4", "NVFP4", 12.7, 28.0, 11.4),
)


@dataclass(frozen=True)
class Workload:
    """So many images of so many visual tokens each, and the text."""

    title: str
    images: int
    tokens: int

    def prompt(self, prune: str | None) -> int:
        """Return the tokens that are prefilled."""
        kept = self.tokens if prune is None else keep_from_prune(prune, self.tokens)
        return self.images * kept + TEXT_TOKENS


WORKLOADS = (Workload("one image of 1408 × 1408", 1, 1936), Workload("eight of 704 × 352", 8, 242))


def _spec() -> QwenSpec:
    family = family_named("qwen3_vl")
    spec: QwenSpec = family.spec(family.presets["qwen3-vl-2b"])
    return spec


SPEC = _spec()


def prefill_ms(board: Published, tokens: int) -> float:
    """Return the time of a prompt, on the line through both published ones over FLOPs."""
    short, long, asked = (decoder_flops(SPEC.decoder, n, VOCABULARY) for n in (SHORT, LONG, tokens))
    return board.short + (board.long - board.short) * (asked - short) / (long - short)


def vision_ms(board: Published, work: Workload) -> float:
    """Return the encoder's time, in proportion to its FLOPs."""

    def flops(tokens: int) -> int:
        patches = tokens * SPEC.vision.merge**2
        return SPEC.vision.flops(patches) + SPEC.vision.merger_flops(patches)

    return board.vision * work.images * flops(work.tokens) / flops(SEEN)


def select_ms(board: Published, work: Workload, prune: str | None) -> float:
    """Return the least time of max-min selection in float32; nothing is selected without pruning."""
    if prune is None:
        return 0.0
    flops = max_min_flops(work.tokens, SPEC.width, keep_from_prune(prune, work.tokens))
    return 1e3 * work.images * flops / TARGETS[board.target].rates["fp32"]


def first_token_ms(board: Published, work: Workload, prune: str | None) -> float:
    """Return the sum of these stages."""
    return vision_ms(board, work) + select_ms(board, work, prune) + prefill_ms(board, work.prompt(prune))


def table() -> Iterator[str]:
    """Yield the published times, and the forecasts from them, in Markdown."""
    prompts = [WORKLOADS[0].prompt(prune) for prune in (None, *PRUNED)]
    yield (
        f"| Jetson, language model | *published:* prefill of {SHORT} | of {LONG:,} | encoder, {SEEN} | roofline of "
        f"{LONG:,} | *forecast:* prefill of {prompts[0]:,} | of {prompts[1]} | of {prompts[2]} |"
    )
    yield f"|---|{'---:|' * 7}"
    for board in PUBLISHED:
        least = 1e3 * decoder_flops(SPEC.decoder, LONG, VOCABULARY) / TARGETS[board.target].rates[board.rate]
        published = (board.short, board.long, board.vision)
        cells = [f"{ms:,.1f}" for ms in published] + [f"{ms:,.0f}" for ms in (least, *_prefills(board))]
        yield f"| {_name(board)} | {' | '.join(cells)} |"


def _prefills(board: Published) -> Iterator[float]:
    return (prefill_ms(board, WORKLOADS[0].prompt(prune)) for prune in (None, *PRUNED))


def first_token_table() -> Iterator[str]:
    """Yield forecasts of TTFT for both ways to fill the prompt."""
    yield "| Jetson, language model | images | encoder | TTFT unpruned | 25 % kept | saves | 10 % kept | saves |"
    yield f"|---|---|{'---:|' * 6}"
    for board in PUBLISHED:
        for work in WORKLOADS:
            full, *pruned = (first_token_ms(board, work, prune) for prune in (None, *PRUNED))
            cells = [f"{vision_ms(board, work):,.0f}", f"{full:,.0f}"]
            for ms in pruned:
                cells += [f"{ms:,.0f}", f"{1 - ms / full:.0%}"]
            yield f"| {_name(board)} | {work.title} | {' | '.join(cells)} |"


def _name(board: Published) -> str:
    return f"{TARGETS[board.target].title.partition(',')[0].removeprefix('Jetson ')}, {board.language}"


def dart_on_thor() -> Iterator[tuple[float, float, float]]:
    """Yield (share removed, published speedup of prefill, that by FLOPs): Qwen3-VL-4B in FP16, a prompt of 1,995."""
    sizes = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    spec: QwenSpec = family_named("qwen3_vl").spec(
        {"model_type": "qwen3_vl", "vision_config": {"out_hidden_size": 2560}, "text_config": sizes}
    )
    visual = WORKLOADS[0].tokens
    for removed, published in ((0.25, 1.32), (0.5, 1.95)):
        full, pruned = (
            decoder_flops(spec.decoder, round(visual * kept) + TEXT_TOKENS, VOCABULARY)
            for kept in (1, 1 - removed)
        )
        yield removed, published, full / pruned


def main() -> None:
    """Print both tables, and how well FLOPs foretell a speedup that NVIDIA measured."""
    print("\n".join([*table(), "", *first_token_table(), ""]))
    for removed, published, counted in dart_on_thor():
        print(f"DART on Thor, {removed:.0%} removed: published {published:.2f}x, FLOPs {counted:.2f}x")
    thor = next(board for board in PUBLISHED if board.target == "thor")
    photographs = Workload("photographs", images=8, tokens=237)
    print(
        f"Encoder for eight photographs on Thor: published 74.8 ms, FLOPs {vision_ms(thor, photographs):.0f} ms"
    )


if __name__ == "__main__":
    main()
