"""The cost model against the figures that papers print, and against arithmetic by hand."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from divprune_edge.models.cost import cost_of, decoder_flops, kv_bytes, max_min_flops, visual_by_layer
from divprune_edge.models.cost_conventions import (
    F2,
    F3,
    LLAMA_7B,
    QUESTION_TOKENS,
    SYSTEM_TOKENS,
    Sizes,
    divprune_ratio,
    fitprune_flops,
    prefill_flops,
)
from divprune_edge.models.families.llava.spec import read_llava
from divprune_edge.models.schedules import METHODS, schedule_of
from divprune_edge.models.schedules.fitprune_recipe import DELETIONS
from divprune_edge.models.schedules.reading import read_by

TERA = 1e12
QUESTIONS = list(QUESTION_TOKENS.values())
LLAVA_7B = read_llava(
    {
        "model_type": "llava",
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
        "image_token_index": 32000,
    }
)


VICUNA_7B, VICUNA_13B = LLAMA_7B, Sizes(5120, 13824, 40)
# FitPrune's other released recipes for LLaVA-1.5-7B; see models/schedules/fitprune_recipe.py for source and licence.
FITPRUNE = {
    50: [
        3,
        7,
        49,
        24,
        29,
        17,
        59,
        41,
        26,
        8,
        10,
        6,
        2,
        5,
        7,
        2,
        30,
        3,
        13,
        27,
        5,
        23,
        2,
        1,
        0,
        0,
        1,
        1,
        2,
        0,
        0,
        0,
    ],
    55: [
        6,
        17,
        69,
        31,
        34,
        19,
        59,
        30,
        23,
        6,
        8,
        7,
        2,
        5,
        8,
        2,
        29,
        4,
        12,
        25,
        4,
        19,
        2,
        1,
        0,
        0,
        1,
        0,
        1,
        0,
        0,
        0,
    ],
    60: DELETIONS,
    70: [
        48,
        79,
        118,
        41,
        33,
        17,
        36,
        9,
        9,
        2,
        3,
        2,
        1,
        3,
        4,
        8,
        18,
        7,
        8,
        20,
        4,
        13,
        2,
        1,
        0,
        0,
        1,
        0,
        1,
        0,
        0,
        0,
    ],
    80: [
        128,
        127,
        118,
        35,
        26,
        8,
        13,
        3,
        2,
        1,
        0,
        0,
        0,
        2,
        1,
        8,
        7,
        8,
        5,
        11,
        2,
        6,
        1,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
    ],
    90: [
        262,
        153,
        80,
        19,
        13,
        1,
        2,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        1,
        2,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
    ],
}


def vicuna(stages: list[tuple[int, int]], convention: int) -> float:
    return prefill_flops(VICUNA_7B, stages, convention) / TERA


@pytest.mark.parametrize(
    ("sizes", "full", "pruned", "percent"),
    [(VICUNA_7B, 3.2280, 0.5122, 15.630), (VICUNA_13B, 6.2813, 1.0020, 15.713)],
)
def test_divprune_on_llava_15(sizes: object, full: float, pruned: float, percent: float) -> None:
    """Table 1 prints 3.228 -> 0.512 (15.63 %) and 6.281 -> 1.002 (15.71 %)."""
    found = divprune_ratio(sizes, 576, 56, QUESTIONS)  # type: ignore[arg-type]
    assert found[0] / TERA == pytest.approx(full, abs=5e-5)
    assert found[1] / TERA == pytest.approx(pruned, abs=5e-5)
    assert found[2] * 100 == pytest.approx(percent, abs=5e-4)


def test_divprune_on_llava_16() -> None:
    """11.849 -> 1.266 TFLOP, 10.79 %: each data set has its own average number of visual tokens."""
    visual = [2225, 1922, 2239, 1927, 2108, 1882, 2292, 2249, 2250, 1598, 2116]
    rows = [
        divprune_ratio(VICUNA_7B, n, round(0.098 * n), [question])
        for n, question in zip(visual, QUESTIONS, strict=True)
    ]
    full, pruned, ratio = (sum(row[i] for row in rows) / len(rows) for i in range(3))
    assert full / TERA == pytest.approx(11.8489, abs=5e-4)
    assert pruned / TERA == pytest.approx(1.2659, abs=5e-4)
    assert ratio * 100 == pytest.approx(10.797, abs=5e-3)


def test_divprune_on_video() -> None:
    """6.539 -> 0.937, 14.10 %."""
    full, pruned, ratio = divprune_ratio(VICUNA_7B, 1152, 115, [28, 63, 21, 38, 196])
    assert (full / TERA, pruned / TERA) == (pytest.approx(6.5386, abs=5e-5), pytest.approx(0.9371, abs=5e-5))
    assert ratio * 100 == pytest.approx(14.104, abs=5e-4)


def test_divprune_s_tables_3_and_4() -> None:
    """19.61 % over four data sets."""
    four = [QUESTION_TOKENS[name] for name in ("MMB", "MMMU", "POPE", "SQA")]
    assert divprune_ratio(VICUNA_7B, 576, 56, four)[2] * 100 == pytest.approx(19.612, abs=5e-4)


def test_the_system_prompt_is_left_out_of_the_published_ratio() -> None:
    """With its 35 tokens, 15.63 % become 20.01 %."""
    found = divprune_ratio(VICUNA_7B, 576, 56, QUESTIONS, SYSTEM_TOKENS)[2]
    assert found * 100 == pytest.approx(20.01, abs=5e-3)


def test_vtw() -> None:
    """All visual tokens dropped after layer 4: 0.603 TFLOP, 18.46 %."""
    pairs = [(vicuna([(4, 576 + n), (28, n)], F2), vicuna([(32, 576 + n)], F2)) for n in QUESTIONS]
    assert sum(p for p, _ in pairs) / len(pairs) == pytest.approx(0.6032, abs=5e-5)
    assert sum(p / f for p, f in pairs) / len(pairs) * 100 == pytest.approx(18.456, abs=5e-4)


@pytest.mark.parametrize(
    ("stages", "tera", "percent", "full"),
    [
        ([(7, 576), (2, 504), (3, 360), (20, 72)], 1.557, 40.79, 576),  # TransPrune-High
        ([(8, 576), (8, 288), (8, 144), (8, 72)], 1.777, 46.56, 576),  # PyramidDrop
        ([(8, 2880), (8, 1440), (8, 720), (8, 360)], 9.465, 45.45, 2880),  # PyramidDrop, LLaVA-NeXT
        ([(2, 576), (30, 288)], 2.007, 52.59, 576),  # FastV, K = 2
        ([(2, 576), (30, 144)], 1.118, 29.29, 576),
        ([(2, 2880), (30, 1440)], 10.554, 50.68, 2880),
        ([(2, 2880), (30, 720)], 5.800, 27.85, 2880),
        ([(32, 288)], 1.887, None, 576),  # VisionZip
        ([(32, 192)], 1.253, None, 576),
    ],
)
def test_visual_tokens_only(
    stages: list[tuple[int, int]], tera: float, percent: float | None, full: int
) -> None:
    found = vicuna(stages, F3)
    assert found == pytest.approx(tera, abs=5e-4)
    if percent is not None:
        assert found / vicuna([(32, full)], F3) * 100 == pytest.approx(percent, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "tera", "percent", "visual"),
    [
        ("transprune", 1.557, 40.79, 576),  # prints 1.56, 40.8 %
        ("pyramiddrop", 1.777, 46.56, 576),  # 1.78, 46.6 %
        ("pyramiddrop", 9.465, 45.45, 2880),  # 9.46, 45.4 %
        ("fastv", 2.007, 52.59, 576),  # 2.01, 52.6 %
        ("fastv", 10.554, 50.68, 2880),  # 10.55, 50.6 %
    ],
)
def test_published_schedules_cost_what_papers_print(
    name: str, tera: float, percent: float, visual: int
) -> None:
    held = visual_by_layer(schedule_of(name, 32, visual), 32)
    found = vicuna([(1, m) for m in held], F3)
    assert found == pytest.approx(tera, abs=5e-4)
    assert found / vicuna([(32, visual)], F3) * 100 == pytest.approx(percent, abs=5e-3)


@pytest.mark.parametrize(
    ("reduction", "percent"), [(50, 50.3), (55, 45.5), (60, 40.3), (70, 30.3), (80, 20.3), (90, 10.3)]
)
def test_fitprune_s_recipes_leave_what_they_are_called_after(reduction: int, percent: float) -> None:
    """By less than 0.6 percentage points."""
    whole = fitprune_flops(VICUNA_7B, 576, [0] * 32)
    assert whole == prefill_flops(VICUNA_7B, [(32, 576)], F3)
    share = 100 * fitprune_flops(VICUNA_7B, 576, FITPRUNE[reduction]) / whole
    assert share == pytest.approx(percent, abs=0.05)
    assert 0 < share - (100 - reduction) < 0.6


def test_fitprune_s_schedule_is_the_recipe_gathered_into_four_cuts() -> None:
    """None removes a token before the recipe does; behind the last one only the smallest deletions are left."""
    schedule = schedule_of("fitprune", 32, 576)
    assert [(cut.before, cut.keep) for cut in schedule.cuts] == [(4, 404), (9, 254), (17, 194), (22, 132)]
    left = [576 - sum(DELETIONS[:layer]) for layer in range(32)]
    held = visual_by_layer(schedule, 32)
    assert all(here >= there for here, there in zip(held, left, strict=True))
    assert all(cut.keep == left[cut.before] for cut in schedule.cuts)
    share = vicuna([(1, m) for m in held], F3) / vicuna([(32, 576)], F3)
    assert 100 * share == pytest.approx(46.49, abs=0.005)


def test_counts_must_cover_every_layer() -> None:
    with pytest.raises(ValueError, match="3 counts for 32 layers"):
        fitprune_flops(VICUNA_7B, 576, [1, 2, 3])


def test_stages_must_cover_every_layer() -> None:
    with pytest.raises(ValueError, match="add up to 32 layers"):
        prefill_flops(VICUNA_7B, [(3, 576)], F3)


@pytest.mark.parametrize(
    ("keep", "language", "total", "percent"),
    [(576, 8.450, 8.840, 100), (128, 2.454, 2.844, 32.2), (64, 1.614, 2.005, 22.7), (56, 1.510, 1.900, 21.5)],
)
def test_end_to_end_of_llava_15(keep: int, language: float, total: float, percent: float) -> None:
    """60 text tokens, two operations per multiply-accumulate; the selector is left out of these figures."""
    cost, whole = cost_of(LLAVA_7B, keep, 60), cost_of(LLAVA_7B, 576, 60)
    assert cost.language / TERA == pytest.approx(language, abs=1e-3)
    assert (cost.total - cost.selector) / TERA == pytest.approx(total, abs=1e-3)
    assert (cost.total - cost.selector) / whole.total * 100 == pytest.approx(percent, abs=0.05)
    assert cost.selector <= 0.003 * TERA


def test_vision_and_selector_of_llava_15() -> None:
    assert LLAVA_7B.vision_flops / TERA == pytest.approx(0.366, abs=5e-4)
    assert max_min_flops(576, 4096, 56) / 1e9 == pytest.approx(2.718, abs=1e-3)


def test_what_reading_scores_costs() -> None:
    """Rows times tokens, a dot product over all heads and a softmax each, at every cut of what enters it."""
    whole, q, heads = 576 + 60, 4096, 32

    def cost(name: str) -> int:
        return cost_of(LLAVA_7B, 576, 60, schedule=schedule_of(name, 32, 576)).scores

    each = 2 * q + 5 * heads
    assert cost("fastv") == whole * each
    assert cost("pyramiddrop") == (whole + 288 + 60 + 144 + 60) * each
    assert cost("vla-pruner") == whole**2 * each
    assert cost("aim") == sum((576 - 72 * step + 60) ** 2 for step in range(8)) * each
    assert cost("catp") == 2 * whole * each  # two layers
    assert cost("spatten") == 8 * sum((n + 60) ** 2 for n in (576, 288, 144)) * each
    assert cost("fitprune") == sum((n + 60) * (n + 60) for n in (576, 404, 254, 194)) * each
    assert cost("transprune") == sum((n + 60) * 60 for n in (576, 504, 360)) * each
    assert cost("v2drop") == cost("random") == cost("todre-2") == 0
    assert cost_of(LLAVA_7B, 576, 60).scores == 0


@pytest.mark.parametrize("name", METHODS)
def test_which_rows_are_read_is_what_the_graph_reads(name: str) -> None:
    """A watch's body asks its layer for what its reference asks."""

    class Layer:
        attention = property(lambda self: self.shares("all"))
        before = middle = after = "hidden"
        normed = ("hidden", "hidden")

        def __init__(self) -> None:
            self.asked: list[str] = []

        def shares(self, queries: str) -> str:
            self.asked.append(queries)
            return "shares"

        def of_visual(self, hidden: str) -> str:
            return hidden

        def of(self, queries: str, hidden: str) -> str:
            return hidden

    for watch in METHODS[name].watches:
        layer = Layer()
        watch.body(MagicMock(), layer)  # type: ignore[arg-type]
        assert set(read_by(watch)) == set(layer.asked), (name, watch.name)


def test_bytes_of_the_cache() -> None:
    """0.5 MiB per token: 288 MiB for 576, 28 MiB for 56; with 4 of 28 heads of Qwen2-7B 57344 bytes."""
    assert kv_bytes(LLAVA_7B.decoder, 1) == 524_288
    assert kv_bytes(LLAVA_7B.decoder, 576) == 288 * 2**20
    assert kv_bytes(LLAVA_7B.decoder, 56) == 28 * 2**20
    assert kv_bytes(LLAVA_7B.decoder, 1152 - 115) / 1e9 == pytest.approx(0.544, abs=5e-4)


def test_one_layer_by_hand() -> None:
    """d = 4, m = 8, one head of 4, 3 tokens: 2 (2*3*4*8 + 2*9*4 + 3*3*4*8) + 2*4*10."""
    spec = read_llava(
        {
            "model_type": "llava",
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            },
        }
    ).decoder
    assert decoder_flops(spec, 3, 10) == 2 * (192 + 72 + 288) + 80
