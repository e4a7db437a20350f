"""Pictures are a function of their seed, and what is in them is where the description says."""

from __future__ import annotations

import numpy as np
import pytest

from divprune_edge.models.demo.render import GRID, SIGN, render, render_with_owners
from divprune_edge.models.demo.scenes import (
    GAP,
    MAX_OBJECTS,
    MAX_RADIUS,
    MIN_OBJECTS,
    MIN_RADIUS,
    Scene,
    Split,
    sample_scene,
    scene_rng,
)


def scenes(count: int, split: Split = Split.TRAIN) -> list[Scene]:
    return [sample_scene(scene_rng(split, 7, index)) for index in range(count)]


def test_same_seed_same_scene_and_pixels() -> None:
    for first, second in zip(scenes(5), scenes(5), strict=True):
        assert first == second
        assert np.array_equal(render(first), render(second))


def test_splits_never_share_a_scene() -> None:
    families = [set(scenes(60, split)) for split in Split]
    assert len(set.union(*families)) == 180


def test_a_scene_does_not_depend_on_how_many_are_drawn() -> None:
    assert scenes(9)[8] == sample_scene(scene_rng(Split.TRAIN, 7, 8))


def test_objects_keep_their_distance_and_stay_inside() -> None:
    for scene in scenes(80):
        assert MIN_OBJECTS <= len(scene.objects) <= MAX_OBJECTS
        for index, thing in enumerate(scene.objects):
            assert MIN_RADIUS <= thing.radius <= MAX_RADIUS
            assert thing.radius <= thing.x <= 1 - thing.radius
            assert thing.radius <= thing.y <= 1 - thing.radius
            for other in scene.objects[:index]:
                apart = np.hypot(thing.x - other.x, thing.y - other.y)
                assert apart > 0.88 * (thing.radius + other.radius) + GAP


def test_owners_name_the_thing_under_each_patch() -> None:
    for scene in scenes(40):
        pixels, owners = render_with_owners(scene)
        assert pixels.shape == (96, 96, 3)
        assert owners.shape == (GRID * GRID,)
        grid = owners.reshape(GRID, GRID)
        for index, thing in enumerate(scene.objects):
            assert grid[int(thing.y * GRID), int(thing.x * GRID)] == index + 1
        if scene.sign is not None:
            assert {SIGN + 1 + slot for slot in range(len(scene.sign.digits))} <= set(owners.tolist())


@pytest.mark.parametrize("size", [48, 96, 384])
def test_any_size_shows_the_same_picture(size: int) -> None:
    scene = scenes(1)[0]
    pixels = render(scene, size).astype(float)
    assert pixels.shape == (size, size, 3)
    step = size // 48
    coarse = pixels.reshape(48, step, 48, step, 3).mean((1, 3))
    assert np.abs(coarse - render(scene, 48)).mean() < 12
