"""Shapes that engines are built for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_bundles import (
    CAPACITY,
    CONTEXT,
    HEAD_DIM,
    KV_HEADS,
    SELECTORS,
    TOKENS,
    WIDTH,
    make_bundle,
    tensor,
)
from raising import refused

from divprune_edge.manifest import Manifest, read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.profiles import (
    DECODE,
    PREFILL,
    EngineLimits,
    Profile,
    language_profiles,
    make_limits,
    selector_profiles,
    vision_profiles,
)
from divprune_edge.models.steps import STEPS


@pytest.fixture(params=["static", "decomposed"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    return read_manifest(make_bundle(tmp_path / "bundle", request.param))


def three(profile: Profile, name: str) -> list[tuple[int, ...]]:
    shapes = profile[name]
    return [shapes.min, shapes.opt, shapes.max]


def test_the_vision_encoder_takes_one_tile(manifest: Manifest) -> None:
    (profile,) = vision_profiles(manifest)
    assert three(profile, "pixels") == [(1, 336, 336, 3)] * 3


def test_a_selector_is_fixed_with_its_signals() -> None:
    (profile,) = selector_profiles(SELECTORS[-1])
    assert list(profile) == ["visual_tokens", "valid", "cls_attention"]
    assert three(profile, "visual_tokens") == [(1, TOKENS, WIDTH)] * 3
    assert three(profile, "cls_attention") == [(1, TOKENS)] * 3


def test_prefill_and_decode_share_an_engine(manifest: Manifest) -> None:
    limits = make_limits(manifest, [SELECTORS[0]], None)
    assert limits == EngineLimits(max_prompt=58 + PROMPT, kept=(1, 58, 58))
    profiles = language_profiles(manifest.language_model, limits)
    assert three(profiles[PREFILL], "input_ids") == [(1, 1), (1, 58 + 64), (1, 58 + PROMPT)]
    assert three(profiles[DECODE], "input_ids") == [(1, 1)] * 3
    for profile in profiles:
        assert list(profile) == [one.name for one in manifest.language_model.inputs]
        assert three(profile, "visual_tokens") == [(1, 1, WIDTH), (1, 58, WIDTH), (1, 58, WIDTH)]
        assert three(profile, "past_key_values.1.value") == [(1, KV_HEADS, CAPACITY, HEAD_DIM)] * 3


def test_every_step_that_the_host_feeds_fits_its_profile(manifest: Manifest) -> None:
    """The engine is built for what the backends feed: prompts of any length up to the longest, then single ids."""
    info = manifest.language_model
    profiles = language_profiles(info, make_limits(manifest, [SELECTORS[0]], 100))
    for at, count, length in ((PREFILL, 1, 0), (PREFILL, 100, 0), (PREFILL, 37, 200), (DECODE, 1, 511)):
        rows = np.arange(length, length + count)[None]
        fed = STEPS[info.dialect](np.zeros((1, count), np.int64), rows, rows[:, 0], CAPACITY, None)
        for name, value in fed.items():
            least, _, most = three(profiles[at], name)
            inside = [low <= size <= high for low, size, high in zip(least, value.shape, most, strict=True)]
            assert all(inside), (name, value.shape)


def test_slots_are_decoded_together(manifest: Manifest) -> None:
    """Prefill is one sequence's; an engine with one profile takes both."""
    limits = make_limits(manifest, [SELECTORS[0]], 100, slots=4)
    for apart, batches in ((True, [(1, 4, 4), (1, 1, 1)]), (False, [(1, 1, 4)])):
        profiles = language_profiles(manifest.language_model, limits, apart=apart)
        found = [tuple(shape[0] for shape in three(profile, "input_ids")) for profile in profiles]
        assert found == batches
    with refused("slots-out-of-range", "--slots", 0):
        make_limits(manifest, [SELECTORS[0]], 100, slots=0)


def test_limits_span_the_budgets(manifest: Manifest) -> None:
    limits = make_limits(manifest, [SELECTORS[1], SELECTORS[3], None], 300)
    assert limits == EngineLimits(max_prompt=300, kept=(1, 144, TOKENS))
    decode, prefill = language_profiles(manifest.language_model, limits)
    assert three(prefill, "input_ids") == [(1, 1), (1, 208), (1, 300)]
    assert three(decode, "visual_tokens") == [(1, 1, WIDTH), (1, 144, WIDTH), (1, TOKENS, WIDTH)]


def test_limits_of_several_images(manifest: Manifest) -> None:
    """Tuned for one all the same."""
    limits = make_limits(manifest, [SELECTORS[0]], None, images=3)
    assert limits == EngineLimits(max_prompt=174 + PROMPT, kept=(1, 58, 174), images=3)
    prefill = language_profiles(manifest.language_model, limits)[PREFILL]
    assert three(prefill, "input_ids") == [(1, 1), (1, 58 + 64), (1, 174 + PROMPT)]
    assert make_limits(manifest, [None], None).kept == (1, TOKENS, TOKENS), (
        "larger than the cache, but as ever"
    )
    for images in (-1, 0, CAPACITY):
        with refused("images-out-of-range", f"--images is {images}", f"from 1 to {CAPACITY - 1}"):
            make_limits(manifest, [None], None, images=images)


@pytest.mark.parametrize("longest", [0, -1, CAPACITY + 1, CONTEXT])
def test_a_prompt_that_there_is_no_room_for(manifest: Manifest, longest: int) -> None:
    with refused("max-prompt-out-of-range", f"--max-prompt is {longest}", CAPACITY):
        make_limits(manifest, [None], longest)


def test_a_dimension_that_no_engine_is_built_for() -> None:
    odd = SELECTORS[0].model_copy(update={"inputs": (tensor("visual_tokens", "float16", "batch", "frames"),)})
    with refused("graph-dimension-unknown", "visual_tokens", "frames"):
        selector_profiles(odd)
