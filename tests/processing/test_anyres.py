"""Tiles equal the uint8 stage of transformers' anyres processors bit for bit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_made import noise_image
from PIL import Image
from pydantic import ValidationError
from raising import refused
from tilings import ODD, ONE, ONEVISION, SHAPES, SMALL, TILINGS, UNORDERED, processing

from divprune_edge.manifest import Preprocessing, Tiling
from divprune_edge.processing.anyres import best_grid, fitted, most_tiles, to_tiles
from divprune_edge.processing.preprocess import to_pixels

UNTILED = processing(SMALL).model_copy(update={"tiling": None})


def reference(image: Image.Image, facts: Preprocessing, *, alone: bool = True) -> np.ndarray:
    """The same by transformers, uint8 [tiles, H, W, 3]."""
    pytest.importorskip("transformers")
    assert facts.tiling is not None
    if facts.tiling.several == "tiles":
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil as Processor,
        )
    else:
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil as Processor,
        )
    size = {"height": facts.resize_height, "width": facts.resize_width}
    if facts.resize == "shortest_edge":
        size = {"shortest_edge": facts.shortest_edge}
        if facts.longest_edge is not None:
            size["longest_edge"] = facts.longest_edge
    crop = {} if facts.crop_height is None else {"height": facts.crop_height, "width": facts.crop_width}
    processor = Processor(
        size=size,
        crop_size=crop or {"height": facts.tiling.tile, "width": facts.tiling.tile},
        do_center_crop=bool(crop),
        resample=facts.resample,
        image_grid_pinpoints=[list(grid) for grid in facts.tiling.grids],
        image_mean=list(facts.mean),
        do_rescale=False,
        do_normalize=False,
    )
    given = image if alone else [[image, image]]
    pixels = np.asarray(processor(images=given, return_tensors="np")["pixel_values"][0])
    assert pixels.dtype == np.uint8
    return pixels.transpose(0, 2, 3, 1)


def assert_equal(image: Image.Image, facts: Preprocessing, *, alone: bool = True) -> None:
    assert facts.tiling is not None
    tiles = to_tiles(image, facts, facts.tiling.tile, facts.tiling.tile, alone=alone)
    expected = reference(image, facts, alone=alone)
    assert tiles.dtype == np.uint8
    assert tiles.shape == expected.shape
    assert np.array_equal(tiles, expected)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", TILINGS)
def test_equals_transformers(size: tuple[int, int], name: str) -> None:
    pytest.importorskip("transformers")
    image, tiling = noise_image(*size), TILINGS[name]
    for alone in (True, False):
        assert_equal(image, processing(tiling), alone=alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "exact", "resize_height": 28, "resize_width": 28, "crop_height": None, "crop_width": None},
        {"resize": "exact", "resize_height": 28, "resize_width": 28},
        {"resize": "exact", "resize_height": 33, "resize_width": 40},
        {"resize": "exact", "resize_height": 20, "resize_width": 41, "resample": 2},
        {"shortest_edge": 28, "crop_height": None, "crop_width": None},
        {"shortest_edge": 28, "longest_edge": 60, "crop_height": None, "crop_width": None},
        {"shortest_edge": 35},
        {"shortest_edge": 21, "resample": 0},
        {"shortest_edge": 40, "longest_edge": 24, "resample": 1},
    ],
)
@pytest.mark.parametrize("tiling", [SMALL, SMALL.model_copy(update={"several": "base"})])
def test_every_tile_is_resized_and_cropped_again(tiling: Tiling, changes: dict[str, Any]) -> None:
    facts = processing(tiling, **changes)
    for size in [(28, 28), (31, 90), (90, 31), (57, 55), (1, 20)]:
        for alone in (True, False):
            assert_equal(noise_image(*size), facts, alone=alone)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    tiling=st.sampled_from([SMALL, ODD, ONE, UNORDERED]),
    alone=st.booleans(),
)
def test_any_size_equals_transformers(height: int, width: int, tiling: Tiling, alone: bool) -> None:
    assert_equal(noise_image(height, width), processing(tiling), alone=alone)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 16384),
    width=st.integers(1, 16384),
    grids=st.sampled_from([tiling.grids for tiling in TILINGS.values()])
    | st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12).map(tuple),
)
def test_any_grids_equal_transformers(height: int, width: int, grids: tuple[tuple[int, int], ...]) -> None:
    pytest.importorskip("transformers")
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

    grid = best_grid(height, width, grids)
    assert grid == tuple(select_best_resolution((height, width), [list(grid) for grid in grids]))
    # Zero strides: an image of any size in no memory.
    image = np.broadcast_to(np.uint8(0), (3, height, width))
    assert fitted(height, width, grid) == get_patch_output_size(image, grid, "channels_first")


def test_the_first_of_equals_wins() -> None:
    assert best_grid(100, 100, [(50, 100), (100, 50)]) == (50, 100)
    assert best_grid(100, 100, [(100, 50), (50, 100)]) == (100, 50)
    assert best_grid(1, 16384, [(300, 300), (100, 200), (200, 100)]) == (100, 200)
    assert best_grid(20, 20, [(200, 200), (100, 50), (50, 100)]) == (100, 50)


def test_the_base_comes_first_and_the_rest_lies_on_black() -> None:
    tiles = to_tiles(Image.new("RGB", (84, 28), (9, 8, 7)), processing(SMALL), 28, 28)
    assert (tiles == (9, 8, 7)).all()
    tiles = to_tiles(Image.new("RGB", (75, 50), (9, 8, 7)), processing(SMALL), 28, 28)
    assert tiles.shape == (5, 28, 28, 3)
    assert (tiles[0] == (9, 8, 7)).all()
    canvas = tiles[1:].reshape(2, 2, 28, 28, 3).swapaxes(1, 2).reshape(56, 56, 3)
    inside = np.zeros((56, 56), bool)
    inside[9:47] = True
    assert (canvas == np.where(inside[..., None], (9, 8, 7), 0)).all()


def test_one_of_several_is_padded_with_the_mean_colour() -> None:
    tiles = to_tiles(noise_image(3, 30), processing(ODD), 30, 30, alone=False)
    assert tiles.shape == (1, 30, 30, 3)
    assert tiles[0, 0, 0].tolist() == [122, 116, 104]


def test_without_tiling_there_is_one_tile() -> None:
    image = noise_image(50, 70)
    assert np.array_equal(to_tiles(image, UNTILED, 28, 28), to_pixels(image, UNTILED))


def test_tiles_of_another_size_than_the_encoder_takes_are_refused() -> None:
    with refused("image-shape-unfit", "28 x 28", "30 x 30"):
        to_tiles(noise_image(50, 70), processing(SMALL), 30, 30)


def test_a_square_too_large_to_pad_is_refused() -> None:
    with refused("image-too-elongated", "16000 x 2", 64):
        to_tiles(Image.new("RGB", (16000, 2)), processing(ONEVISION), 384, 384, alone=False)


def test_the_most_tiles_are_those_of_the_largest_grid_and_the_base() -> None:
    assert [most_tiles(tiling) for tiling in TILINGS.values()] == [5, 37, 5, 17, 5, 7]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"grids": ()}, ("at least 1",)),
        ({"grids": ((28, 28),) * 1001}, ("at most 1000",)),
        ({"grids": ((0, 28),)}, ("greater than 0",)),
        ({"grids": ((28, -28),)}, ("greater than 0",)),
        ({"grids": ((28, 28), (28, 57))}, ("28 x 57", "28 x 28")),
        ({"grids": ((14, 28),)}, ("14 x 28", "28 x 28")),
        ({"grids": ((28, 28 * 101),)}, ("28 x 2828", "101 tiles", "100")),
        ({"grids": ((10000, 10000),), "tile": 10000}, ("10000 x 10000", "64000000")),
        ({"side": 0}, ("greater than 0",)),
        ({"side": 15}, ("15 features", "28 pixels")),
        ({"tile": 0}, ("greater than 0",)),
        ({"max_tiles": 0}, ("greater than 0",)),
        ({"several": "none"}, ("'tiles' or 'base'",)),
    ],
)
def test_absurd_tilings_are_refused(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        Tiling(**(SMALL.model_dump() | changes))
    for name in names:
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error.value))


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_to_square": True},
        {"resize": "none"},
        {"crop_height": 29},
        {"crop_height": None, "shortest_edge": 29},
        {"crop_height": None, "shortest_edge": None},
        {"crop_height": None, "longest_edge": 20},
        {"crop_height": None, "resize": "exact", "resize_height": 28, "resize_width": 29},
    ],
)
def test_tiles_that_change_their_size_are_refused(changes: dict[str, Any]) -> None:
    """The models count features by the tiles' size, so that these would be put together wrongly."""
    with pytest.raises(ValidationError):
        processing(SMALL, **changes)


def test_facts_come_back_from_json_and_those_without_tiling_read_as_before() -> None:
    for facts in (processing(SMALL), processing(ONEVISION), UNTILED):
        assert Preprocessing.model_validate_json(facts.model_dump_json()) == facts
    older = UNTILED.model_dump(exclude={"tiling"})
    assert Preprocessing.model_validate(older).tiling is None
