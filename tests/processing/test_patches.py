"""Patches equal those of transformers' image processor bit for bit, and what is said of their grid its helpers'."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_made import noise_image
from pydantic import ValidationError
from raising import refused

from divprune_edge.manifest import Patches, Preprocessing, Tiling
from divprune_edge.processing.patches import (
    dimensions,
    fitted_size,
    grid_inputs,
    most_dimensions,
    most_tokens,
    to_patches,
    usual_sizes,
)

FACTS: dict[str, Any] = {
    "resample": 3,
    "rescale_factor": 1 / 255,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
}
QWEN3 = Patches(patch=16, merge=2, temporal=2, min_pixels=256 * 256, max_pixels=512 * 512)
QWEN2_5 = Patches(patch=14, merge=2, temporal=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
SMALL = Patches(patch=4, merge=3, temporal=1, min_pixels=1000, max_pixels=1300)
ALONE = Patches(patch=8, merge=1, temporal=3, min_pixels=64, max_pixels=10000)
# Height, width.
SIZES = [
    (1, 1),
    (1, 200),
    (200, 1),
    (3, 7),
    (28, 28),
    (42, 70),  # halves of a visual token, rounded to the even
    (14, 98),
    (32, 33),
    (47, 311),
    (56, 56),
    (57, 55),
    (64, 12800),
    (100, 640),
    (224, 224),
    (240, 272),
    (300, 400),
    (333, 1001),
    (481, 640),
    (512, 512),
    (767, 1023),
    (1021, 77),
    (1200, 1600),
]


def facts(patches: Patches | None, **changes: Any) -> Preprocessing:
    return Preprocessing(**(FACTS | {"resize": "area", "patches": patches} | changes))


@pytest.fixture
def helpers() -> Any:
    """transformers' helpers for grids."""
    pytest.importorskip("transformers")
    from transformers import vision_utils

    return vision_utils


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "patches", [QWEN3, QWEN2_5, SMALL, ALONE], ids=["qwen3", "qwen2_5", "small", "alone"]
)
def test_equals_transformers(size: tuple[int, int], patches: Patches) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        patch_size=patches.patch,
        merge_size=patches.merge,
        temporal_patch_size=patches.temporal,
        size={"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )
    image = noise_image(*size)
    wanted = processor(images=image, return_tensors="np")
    pixels, grid = to_patches(image, facts(patches))
    assert pixels.dtype == np.uint8
    assert [1, *grid] == wanted["image_grid_thw"][0].tolist()
    assert np.array_equal(pixels[0], wanted["pixel_values"])


@pytest.mark.parametrize("resample", [0, 1, 2])
def test_every_filter(resample: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(do_rescale=False, do_normalize=False, resample=resample)
    wanted = processor(images=noise_image(90, 131), return_tensors="np")["pixel_values"]
    assert np.array_equal(to_patches(noise_image(90, 131), facts(QWEN2_5, resample=resample))[0][0], wanted)


@given(
    height=st.integers(1, 4000),
    ratio=st.floats(1, 200),
    upright=st.booleans(),
    least=st.integers(1, 1 << 17),
    more=st.integers(0, 1 << 20),
)
@settings(max_examples=300, deadline=None)
def test_sizes_equal_transformers(height: int, ratio: float, upright: bool, least: int, more: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    sides = (height, int(height * ratio))
    down, across = sides if upright else sides[::-1]
    patches = Patches(patch=14, merge=2, temporal=2, min_pixels=least, max_pixels=least + more)
    found = fitted_size(down, across, patches)
    assert found == smart_resize(down, across, 28, least, least + more)
    assert all(side > 0 and side % 28 == 0 for side in found)


@given(
    height=st.integers(1, 2000),
    ratio=st.floats(1, 200),
    factor=st.integers(1, 6),
    least=st.integers(1, 5000),
    more=st.integers(0, 5000),
)
@settings(max_examples=500, deadline=None)
def test_no_image_has_more_tokens(height: int, ratio: float, factor: int, least: int, more: int) -> None:
    patches = Patches(patch=factor, merge=1, temporal=1, min_pixels=least, max_pixels=least + more)
    down, across = fitted_size(height, int(height * ratio), patches)
    assert down * across // factor**2 <= most_tokens(patches)


def test_the_most_tokens_are_reached() -> None:
    """By images of which one is elongated, and one grows; and as a checkpoint has it, by the most pixels alone."""
    for least, most, size, tokens in ((1, 16 * 64, (10, 2000), 113), (16 * 64, 16 * 64, (1, 63), 128)):
        patches = Patches(patch=4, merge=1, temporal=1, min_pixels=least, max_pixels=most)
        down, across = fitted_size(*size, patches)
        assert down * across // 16 == most_tokens(patches) == tokens > most // 16
    assert most_tokens(QWEN2_5) == 1280
    assert most_tokens(QWEN3) == 256


def test_an_elongated_image_is_refused() -> None:
    with refused("image-too-elongated", "201 x 1 pixels", 200):
        to_patches(noise_image(1, 201), facts(QWEN3))
    with refused("image-too-elongated", "4 x 805 pixels"):
        fitted_size(805, 4, QWEN3)
    assert fitted_size(800, 4, QWEN2_5)[1] == 28


def test_what_would_take_too_much_memory_is_refused() -> None:
    wide = Patches(patch=64, merge=8, temporal=2, min_pixels=64_000_000, max_pixels=64_000_000)
    with refused("image-too-elongated", "1 x 200 pixels", "64 million"):
        to_patches(noise_image(200, 1), facts(wide))


GRIDS = [(4, 20), (2, 2), (8, 8), (2, 34), (30, 2), (16, 24), (18, 10), (96, 96), (50, 74)]


def told(grid: tuple[int, int], **changes: Any) -> dict[str, np.ndarray]:
    return grid_inputs(grid, Patches(**(QWEN2_5.model_dump() | changes)))


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_rows_and_columns_equal_transformers(grid: tuple[int, int], merge: int, helpers: Any) -> None:
    import torch

    found = told(grid, merge=merge)
    assert list(found) == ["axes"]
    wanted = helpers.get_vision_position_ids(torch.tensor([[1, *grid]]), merge)
    assert found["axes"].dtype == np.int64
    assert np.array_equal(found["axes"], wanted.numpy())


@pytest.mark.parametrize("side", [1, 2, 7, 48])
@pytest.mark.parametrize("grid", GRIDS)
def test_places_equal_transformers(grid: tuple[int, int], side: int, helpers: Any) -> None:
    import torch

    found = told(grid, places=side)
    rows, weights = helpers.get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, *grid]]), side, "bilinear", align_corners=True, spatial_merge_size=2
    )
    assert (found["place_rows"].dtype, found["place_weights"].dtype) == (np.int64, np.float32)
    assert np.array_equal(found["place_rows"], rows.numpy())
    assert np.array_equal(found["place_weights"], weights.numpy())
    assert np.allclose(found["place_weights"].sum(axis=1), 1)


@pytest.mark.parametrize("window", [1, 3, 4, 9])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_equal_transformers(grid: tuple[int, int], window: int, helpers: Any) -> None:
    import torch

    found = told(grid, window=window)
    windows, window_of, n = found["windows"], found["window_of"], grid[0] * grid[1]
    order, ends = helpers.get_vision_window_index(
        torch.tensor([[1, *grid]]), spatial_merge_size=2, window_size=window * 28, patch_size=14
    )
    patches = (order[:, None] * 4 + torch.arange(4)).flatten().numpy()
    assert windows.shape[1] == 4 * window**2
    assert [row[row < n].tolist() for row in windows] == [
        patches[begin:end].tolist() for begin, end in itertools.pairwise(ends)
    ]
    assert windows.max(initial=0) <= n
    assert np.array_equal(windows.reshape(-1)[window_of], np.arange(n))


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "none"},
        {"pad_to_square": True},
        {"crop_height": 28, "crop_width": 28},
        {"tiling": Tiling(grids=((28, 28),), tile=28, side=2, several="tiles")},
    ],
)
def test_patches_and_their_resize_go_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        facts(QWEN3, **changes)
    with pytest.raises(ValidationError):
        facts(None)


def test_facts_survive_a_manifest() -> None:
    kept = facts(QWEN3)
    assert Preprocessing.model_validate_json(kept.model_dump_json()) == kept
    old = facts(None, resize="none").model_dump(exclude={"patches"})
    assert Preprocessing.model_validate(old).patches is None
    with pytest.raises(ValidationError, match="at least 9 and at most 8 pixels"):
        Patches(patch=2, merge=1, temporal=1, min_pixels=9, max_pixels=8)


def with_sizes(*sizes: tuple[int, int], **changes: Any) -> Patches:
    return Patches(**(QWEN3.model_dump() | {"sizes": sizes, "min_pixels": 1, **changes}))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((448, 448), (448, 448)),
        ((1, 1), (224, 224)),
        ((4000, 4000), (448, 448)),  # by shape, and not the larger area of what lies or stands
        ((448, 672), (448, 672)),
        ((2000, 3000), (448, 672)),
        ((3000, 2000), (672, 448)),
        ((440, 500), (448, 448)),
        ((440, 560), (448, 672)),
        ((300, 280), (224, 224)),
        ((330, 330), (448, 448)),
        ((100, 2000), (448, 672)),
    ],
)
def test_an_image_is_resized_to_the_nearest_size(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    patches = with_sizes((224, 224), (448, 448), (448, 672), (672, 448), max_pixels=448 * 672)
    assert fitted_size(*size, patches) == wanted
    pixels, grid = to_patches(noise_image(*size), facts(patches))
    assert grid == (wanted[0] // 16, wanted[1] // 16)
    assert pixels.shape[:2] == (1, wanted[0] * wanted[1] // 256)


@given(st.integers(1, 3000), st.integers(1, 3000), st.permutations(range(4)))
@settings(max_examples=200, deadline=None)
def test_the_order_of_sizes_decides_ties_alone(height: int, width: int, order: list[int]) -> None:
    sizes = [(448, 448), (448, 672), (672, 448), (256, 256)]
    if max(height, width) > 200 * min(height, width):
        return
    chosen, again = (
        fitted_size(height, width, with_sizes(*some, max_pixels=448 * 672))
        for some in (sizes, [sizes[i] for i in order])
    )
    assert chosen == again or height * width in (448 * 448 * 2 / 3, 448 * 672)
    # What is a size already stays as it is.
    assert all(fitted_size(*one, with_sizes(*sizes, max_pixels=448 * 672)) == one for one in sizes)


def test_an_elongated_image_is_refused_whatever_the_sizes() -> None:
    with refused("image-too-elongated", 201):
        fitted_size(1, 201, with_sizes((448, 448), max_pixels=448 * 448))


def test_sizes_are_whole_visual_tokens_within_the_bound() -> None:
    for sizes, told in (
        ([(450, 448)], "450 x 448"),
        ([(1024, 1024)], "more than 262144 pixels"),
        ([(448, 448), (448, 448)], "twice"),
        ([(32 * (1 + i), 32) for i in range(33)], "32"),
    ):
        with pytest.raises(ValidationError, match=told):
            with_sizes(*sizes)


@pytest.mark.parametrize("patches", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
def test_usual_sizes_stretch_little(patches: Patches) -> None:
    """Of images between 1:2 and 2:1; and no image is made much larger or smaller than it would be."""
    sized = Patches(**(patches.model_dump() | {"sizes": usual_sizes(patches)}))
    assert len(sized.sizes) == len(usual_sizes(patches)) <= 10
    assert max(h * w for h, w in sized.sizes) > 0.9 * patches.max_pixels
    for ratio, pixels in itertools.product(np.geomspace(0.5, 2, 41), np.geomspace(0.2, 8, 9)):
        height = (patches.max_pixels * pixels / ratio) ** 0.5
        size = round(height), round(height * ratio)
        down, across = fitted_size(*size, sized)
        stretched = (across / down) / (size[1] / size[0])
        assert 1 / 1.3 < stretched < 1.3, size
        if pixels >= 1:
            assert down * across > 0.9 * patches.max_pixels, size


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 60, 2048])
def test_usual_sizes_of_few_tokens(most: int) -> None:
    patches = Patches(patch=16, merge=2, temporal=2, min_pixels=1, max_pixels=most * 1024)
    sizes = usual_sizes(patches)
    assert sizes
    assert max(h * w for h, w in sizes) <= most * 1024
    Patches(**(patches.model_dump() | {"sizes": sizes}))


def test_dimensions_of_sizes() -> None:
    """Each once, the least first: a grid that stands has what one has that lies."""
    patches = with_sizes((448, 672), (224, 224), (672, 448), (448, 448), max_pixels=448 * 672, window=4)
    assert dimensions(patches) == [
        {"patches": 196, "rows": 49, "windows": 4},
        {"patches": 784, "rows": 196, "windows": 16},
        {"patches": 1176, "rows": 294, "windows": 24},
    ]
    assert most_dimensions(patches) == {"patches": 1176, "rows": 294, "windows": 24}
    assert most_tokens(patches) == 294
    assert most_dimensions(None) == {}


@given(
    st.integers(1, 4000),
    st.floats(1, 200),
    st.booleans(),
    st.integers(1, 6),
    st.integers(1, 500),
    st.integers(0, 3000),
)
@settings(max_examples=500, deadline=None)
def test_no_image_has_larger_dimensions(
    height: int, ratio: float, upright: bool, window: int, least: int, more: int
) -> None:
    patches = Patches(patch=2, merge=2, temporal=1, min_pixels=least, max_pixels=least + more, window=window)
    size = height, int(height * ratio)
    try:
        down, across = fitted_size(*(size[::-1] if upright else size), patches)
    except ValueError:
        return
    told = grid_inputs((down // 2, across // 2), patches)
    lowest, highest = dimensions(patches)
    found = {"patches": len(told["axes"]), "windows": len(told["windows"]), "rows": down * across // 16}
    assert all(lowest[name] <= found[name] <= highest[name] for name in found)
