"""The memory forecast against arithmetic by hand, for LLaVA-1.5-7B on the boards that people ask about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from divprune_edge.manifest import LayerGroup
from divprune_edge.models.dialects import DIALECTS, row_bytes
from divprune_edge.models.memory import (
    PROCESS_SHARED,
    SYSTEM_SHARED,
    WORKSPACE,
    Elements,
    Forecast,
    Need,
    forecast,
    human,
    prefill_activations,
    refusal,
    would_fit,
)
from divprune_edge.models.targets import GIB, TARGETS

# 32 layers of 4 x 4096^2 + 3 x 4096 x 11008; two tables of 32064 x 4096 and 65 norms; ViT-L/14 and projector.
SEVEN = Elements(vision=311_888_896, matrices=32 * 202_375_168, rest=2 * 131_334_144 + 65 * 4096)
CACHE = 2 * 32 * 32 * 128 * 512 * 2


def llava(target: str, precision: str, *, rows: int = 512) -> Forecast:
    apart = TARGETS[target].dialect == "decomposed"  # scores in two parts, and the new rows of a prefill
    cache = rows * 32 * row_bytes(32, 128, 2)
    need = Need(
        vision=SEVEN.vision_bytes("fp16"),
        language=SEVEN.language_bytes(precision),
        cache=cache,
        activations=prefill_activations(4096, 11008, 32, rows, (1 + apart) * rows, 2) + apart * cache,
        rows=rows,
    )
    found = forecast(TARGETS[target], need)
    assert found is not None
    return found


def test_sizes_by_hand() -> None:
    assert SEVEN.vision + SEVEN.matrices + SEVEN.rest == 7_050_828_800
    assert SEVEN.vision_bytes("fp16") == 623_777_792
    assert SEVEN.language_bytes("fp16") == 13_477_879_808
    # Half a byte each and a float16 scale per 128; tables and norms in float16.
    assert SEVEN.language_bytes("int4") == 3_238_002_688 + 101_187_584 + 525_869_056 == 3_865_059_328
    assert SEVEN.language_bytes("int4", 32) == 3_238_002_688 + 404_750_336 + 525_869_056
    assert llava("orin-nano-8gb", "int4").need.cache == CACHE == 268_435_456
    row = 32 * row_bytes(32, 128, 2)
    assert DIALECTS["portable"].cache_rows(512) * row == 2 * CACHE, (
        "it is there twice, before and after a step"
    )
    assert DIALECTS["static"].cache_rows(512, 100) * row == CACHE
    assert DIALECTS["decomposed"].cache_rows(512, 100) == 612, "new rows lie beside it"


def test_groups_of_layers_are_added_up() -> None:
    """Two layers with 80 rows, then three with 20; where caches grow, each is as long as the sequence."""
    groups = [LayerGroup(0, 2, 80), LayerGroup(2, 3, 20)]
    assert DIALECTS["static"].cache_bytes(groups, 10, 1000, 7) == 10 * (2 * 80 + 3 * 20)
    assert DIALECTS["decomposed"].cache_bytes(groups, 10, 1000, 7) == 10 * (2 * 87 + 3 * 27)
    growing = [replace(group, capacity=None) for group in groups]
    assert DIALECTS["portable"].cache_bytes(growing, 10, 50) == 10 * 5 * 100


def test_seven_billion_in_float16_does_not_fit_8_gb() -> None:
    asked = llava("orin-nano-8gb", "fp16")
    assert asked.available == 8 * GIB - SYSTEM_SHARED == int(6.5 * GIB)
    assert asked.total > 13 * GIB
    assert not asked.fits
    assert asked.hopeless, "weights and cache alone are too much"


def test_seven_billion_in_int4_runs_on_8_gb_and_builds_with_swap() -> None:
    asked = llava("orin-nano-8gb", "int4")
    by_hand = 623_777_792 + 3_865_059_328 + CACHE + asked.need.activations + WORKSPACE + PROCESS_SHARED
    assert asked.total == by_hand
    assert asked.fits
    assert 5.7 * GIB < asked.total < 5.9 * GIB
    assert asked.build_total == 3 * 3_865_059_328 + WORKSPACE + PROCESS_SHARED
    assert asked.swap == asked.build_total - asked.available
    assert 5 * GIB < asked.swap < 6 * GIB


def test_the_larger_boards() -> None:
    narrow = llava("orin-nx-16gb", "fp16")
    assert not narrow.fits
    assert not narrow.hopeless, "by what is assumed of TensorRT, not by weights and cache"
    assert would_fit(narrow, SEVEN, 122)[0].startswith("--precision vision=fp16,language=int4, 5.8")
    assert llava("orin-nx-16gb", "int4").swap == 0
    agx = llava("agx-orin-64gb", "fp16")
    assert agx.fits
    assert agx.swap == 0
    assert llava("l4", "fp16").fits
    assert llava("l4", "fp16").swap == 0, "a card's host has memory of its own"


def test_a_refusal_has_the_numbers_and_what_would_fit() -> None:
    sentence = refusal(llava("orin-nano-8gb", "fp16"), SEVEN, 122)
    assert sentence.startswith("This takes 14.78 GiB")
    assert "weights 13.13 GiB, KV cache of 512 rows 256 MiB" in sentence
    assert "Jetson Orin Nano 8GB, JetPack 6.2 has 8.00 GiB less 1.50 GiB for the system" in sentence
    assert "what would fit is --precision vision=fp16,language=int4, 5.8" in sentence
    assert "of swap)" in sentence
    assert "\n" not in sentence


def test_a_smaller_cache_is_named_where_it_is_what_helps() -> None:
    asked = llava("orin-nano-8gb", "int4", rows=4096)
    assert not asked.fits
    smaller = replace_rows(asked, 122)
    (option,) = would_fit(asked, SEVEN, 122)
    assert option == f"--capacity 122, {human(smaller.total)} (build with {human(smaller.swap)} of swap)"


def replace_rows(asked: Forecast, rows: int) -> Forecast:
    need, before = asked.need, asked.need.rows
    cache, activations = need.cache * rows // before, need.activations * rows // before
    return replace(asked, need=replace(need, rows=rows, cache=cache, activations=activations))


def test_other_devices_where_nothing_smaller_fits() -> None:
    """Ten times the model: no variant fits the NX, and the AGX takes it in int4 alone."""
    seventy = Elements(SEVEN.vision, 10 * SEVEN.matrices, 4 * SEVEN.rest)
    asked = llava("orin-nx-16gb", "fp16")
    large = replace(asked, need=replace(asked.need, language=seventy.language_bytes("int4")))
    assert would_fit(large, seventy, large.need.rows) == ["--target agx-orin-64gb"]
    none = replace(asked, need=replace(asked.need, language=500 * GIB))
    wide = Elements(SEVEN.vision, 500 * GIB, 0)
    assert would_fit(none, wide, none.need.rows) == []
    assert "no variant of this checkpoint on any target" in refusal(none, wide, none.need.rows)


def test_what_runs_has_room_on_the_gpu_to_be_built() -> None:
    for precision in ("fp16", "int4"):
        asked = llava("orin-nano-8gb", precision)
        assert asked.build_device < asked.total


def test_targets_without_a_memory_of_their_own_have_no_forecast() -> None:
    need = llava("h100", "fp16").need
    assert forecast(TARGETS["cpu"], need) is None
    assert forecast(TARGETS["cuda"], need) is None


@pytest.mark.parametrize(("size", "text"), [(1, "1 MiB"), (5 * 2**20, "5 MiB"), (GIB, "1.00 GiB")])
def test_sizes_in_words(size: int, text: str) -> None:
    assert human(size) == text
