"""Rows equal what transformers' models pack, and lie on the image where they say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import refused
from tilings import NEXT, ODD, ONE, ONEVISION, SHAPES, SMALL, TILINGS, UNORDERED, processing

from divprune_edge.manifest import Tiling
from divprune_edge.processing.anyres import best_grid, most_tiles, to_tiles
from divprune_edge.processing.assembly import Assembly, assembly, clip_assembly, most_rows

SHRUNK = UNORDERED.model_copy(update={"max_tiles": 2})
QUICK = [SMALL, ODD, ONE, UNORDERED, SHRUNK]


def put_together(made: Assembly, features: np.ndarray, newline: np.ndarray) -> np.ndarray:
    """Rows [m, width] of features [tiles, side², width]."""
    table = np.concatenate([newline[None], features.reshape(-1, newline.size)])
    return (made.weights[..., None] * table[made.rows]).sum(axis=1)


def model(tiling: Tiling) -> SimpleNamespace:
    """As much of a model of transformers as packing looks at."""
    patch = tiling.tile // tiling.side
    assert tiling.tile // patch == tiling.side
    vision = SimpleNamespace(image_size=tiling.tile, patch_size=patch)
    grids = [list(grid) for grid in tiling.grids]
    return SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=grids))


def packed(features: np.ndarray, newline: np.ndarray, size: tuple[int, int], tiling: Tiling) -> np.ndarray:
    """The rows by transformers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    more: dict[str, Any] = {}
    if tiling.max_tiles is None:
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel as Model

        more["vision_feature_select_strategy"] = "default"
    else:
        from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel as Model

        more["vision_aspect_ratio"] = f"anyres_max_{tiling.max_tiles}"
    given = torch.from_numpy(features)
    rows, _ = Model.pack_image_features(
        model(tiling), [given], [size], image_newline=torch.from_numpy(newline), **more
    )
    return np.asarray(rows[0])


def counted(size: tuple[int, int], tiling: Tiling) -> int:
    """The number of placeholders by transformers' processors."""
    facts: dict[str, Any] = {
        "image_processor": SimpleNamespace(image_grid_pinpoints=[list(grid) for grid in tiling.grids]),
        "patch_size": tiling.tile // tiling.side,
        "num_additional_image_tokens": 0,
        "num_image_tokens": tiling.side**2,
        "vision_aspect_ratio": f"anyres_max_{tiling.max_tiles}",
    }
    if tiling.max_tiles is None:
        from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Processor
    else:
        from transformers.models.llava_onevision.processing_llava_onevision import (
            LlavaOnevisionProcessor as Processor,
        )
    processor = Processor.__new__(Processor)
    vars(processor).update(facts)
    return int(processor._get_number_of_features(*size, tiling.tile, tiling.tile))


def random(tiles: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(tiles)
    features = rng.standard_normal((tiles, side**2, 3), dtype=np.float32)
    return features, rng.standard_normal(3, dtype=np.float32)


def tiles_of(size: tuple[int, int], tiling: Tiling) -> int:
    down, across = best_grid(*size, tiling.grids)
    return 1 + down * across // tiling.tile**2


def assert_packs_alike(size: tuple[int, int], tiling: Tiling) -> None:
    made = assembly(*size, tiling)
    features, newline = random(tiles_of(size, tiling), tiling.side)
    expected = packed(features, newline, size, tiling)
    rows = put_together(made, features, newline)
    assert len(made.rows) == len(expected) == counted(size, tiling)
    assert len(expected) <= most_rows(tiling)
    if made.rows.shape[1] == 1:
        assert (made.weights == 1).all()
        assert np.array_equal(rows, expected)
    else:
        assert made.rows.shape[1] == 4
        assert np.abs(rows - expected).max() <= 1e-6


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", TILINGS)
def test_rows_equal_what_transformers_packs(size: tuple[int, int], name: str) -> None:
    pytest.importorskip("transformers")
    assert_packs_alike(size, TILINGS[name])


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), tiling=st.sampled_from(QUICK[:3]))
def test_any_size_packs_alike(height: int, width: int, tiling: Tiling) -> None:
    pytest.importorskip("transformers")
    assert_packs_alike((height, width), tiling)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 16384),
    width=st.integers(1, 16384),
    tiling=st.sampled_from([NEXT, ONEVISION, ONEVISION.model_copy(update={"max_tiles": 4})]),
)
def test_any_size_has_as_many_rows_as_placeholders(height: int, width: int, tiling: Tiling) -> None:
    """Up to the largest image that is read, whose sizes are compared as integers here and as quotients there."""
    pytest.importorskip("transformers")
    assert len(assembly(height, width, tiling).rows) == counted((height, width), tiling)


@pytest.mark.parametrize("size", [(40, 40), (3, 50), (50, 3)])
def test_one_of_several_is_its_base_and_a_newline(size: tuple[int, int]) -> None:
    features, newline = random(1, ODD.side)
    made = assembly(*size, ODD, alone=False)
    assert np.array_equal(put_together(made, features, newline), packed(features, newline, size, ODD))
    assert np.array_equal(made.rows[:, 0], [*range(1, 26), 0])
    assert not made.fine.any()
    assert not made.tile_of.any()


def test_one_of_several_has_its_tiles_where_the_checkpoint_says_so() -> None:
    for size in ((30, 70), (90, 20)):
        alone, among = (assembly(*size, SMALL, alone=alone) for alone in (True, False))
        assert np.array_equal(alone.rows, among.rows)
        assert np.array_equal(alone.boxes, among.boxes)


@pytest.mark.parametrize("side", [1, 2, 3, 8, 24, 27])
@pytest.mark.parametrize("frames", [1, 3])
def test_frames_are_pooled_as_in_transformers(frames: int, side: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    features, newline = random(frames, side)
    vision = SimpleNamespace(image_size=side * 14, patch_size=14)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    pooled = np.asarray(LlavaOnevisionModel.apply_pooling(model, torch.from_numpy(features)))
    made = clip_assembly(frames, side)
    rows = put_together(made, features, newline)
    assert rows.shape == (frames * pooled.shape[1] + 1, 3)
    assert np.abs(rows[:-1] - pooled.reshape(-1, 3)).max() <= 1e-6
    assert np.array_equal(rows[-1], newline)
    assert made.tile_of.tolist() == [*np.repeat(np.arange(frames), pooled.shape[1]), frames - 1]
    assert not made.fine.any()
    assert np.allclose(made.boxes[: pooled.shape[1]], squares(-(-side // 2)))
    assert np.array_equal(made.boxes[-1], made.boxes[-2])


def squares(side: int) -> list[tuple[float, float, float, float]]:
    """The boxes of an image cut into side * side."""
    return [(y / side, x / side, (y + 1) / side, (x + 1) / side) for y in range(side) for x in range(side)]


def test_a_clip_without_frames_is_refused() -> None:
    with refused("clip-empty", 0):
        clip_assembly(0, 27)


def test_features_that_would_be_shrunk_to_none_are_refused() -> None:
    """In transformers, torch fails on an output without rows."""
    tiling = Tiling(grids=((30, 900), (900, 30)), tile=30, side=5, max_tiles=1, several="tiles")
    with refused("image-too-elongated", "900 x 2"):
        assembly(2, 900, tiling)


def brute(tiling: Tiling) -> set[int]:
    """Every number of rows that images have, found by trying."""
    edge = 2 * max(max(grid) for grid in tiling.grids)
    rng = np.random.default_rng(0)
    sizes = [(height, width) for height in range(1, edge, 3) for width in range(1, edge, 3)]
    sizes += [(height, width) for height in (1, 2, edge // 2) for width in range(1, edge)]
    sizes += [(width, height) for height, width in sizes[-3 * (edge - 1) :]]
    sizes += rng.integers(1, 5000, (500, 2)).tolist()
    return {len(assembly(height, width, tiling).rows) for height, width in sizes}


@pytest.mark.parametrize("tiling", [SMALL, ONE, UNORDERED, SHRUNK])
def test_no_image_has_more_rows(tiling: Tiling) -> None:
    assert most_rows(tiling) == max(brute(tiling))


def test_the_bounds_of_real_checkpoints() -> None:
    assert (most_rows(NEXT), most_tiles(NEXT)) == (2928, 5)
    assert len(assembly(1, 16384, NEXT).rows) == 576
    assert (most_rows(ONEVISION), most_tiles(ONEVISION)) == (8765, 37)


def test_most_rows_of_onevision_are_those_of_an_image() -> None:
    pytest.importorskip("transformers")
    sizes = [(down * 384, width) for down in range(1, 7) for width in range(1, 2305)]
    rows = {size: counted(size, ONEVISION) for size in sizes + [(width, height) for height, width in sizes]}
    assert max(rows.values()) == most_rows(ONEVISION)


def seen(size: tuple[int, int], tiling: Tiling, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return where on the image each feature looks, [tiles * side², 2], and how much of it the image fills.

    Red and green of the image are how far down and to the right a pixel is, blue that there is one.
    """
    down, across = ((np.arange(edge) + 0.5) / edge * 255 for edge in size)
    image = np.full((*size, 3), 255, np.uint8)
    image[..., 0], image[..., 1] = down[:, None], across
    facts = processing(tiling, mean=(0.0, 0.0, 0.0), resample=0)
    tiles = to_tiles(Image.fromarray(image), facts, tiling.tile, tiling.tile, alone=alone).astype(np.float64)
    cell = np.arange(tiling.tile) * tiling.side // tiling.tile
    cells = (cell[:, None] * tiling.side + cell).reshape(-1)
    sums = np.zeros((len(tiles), tiling.side**2, 3))
    for tile, total in zip(tiles.reshape(len(tiles), -1, 3), sums, strict=True):
        np.add.at(total, cells, tile)
    filled = sums[..., 2].reshape(-1) / 255
    where = sums[..., :2].reshape(-1, 2) / np.maximum(filled, 1)[:, None] / 255
    return where, filled / np.bincount(cells).max()


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    tiling=st.sampled_from([SMALL, ODD]),
    alone=st.booleans(),
)
def test_a_row_lies_where_its_box_says(height: int, width: int, tiling: Tiling, alone: bool) -> None:
    made = assembly(height, width, tiling, alone=alone)
    where, filled = seen((height, width), tiling, alone)
    assert made.boxes.min() >= 0
    assert made.boxes.max() <= 1
    assert (made.boxes[:, :2] <= made.boxes[:, 2:]).all()
    newline = made.rows[:, 0] == 0
    fills = np.where(newline, 0, (made.weights * filled[made.rows - 1]).sum(axis=1))
    looks = fills > 0.5
    full = (made.boxes[:, :2] < made.boxes[:, 2:]).all(axis=1)
    assert full[looks].all()
    middle = (made.weights[..., None] * where[made.rows - 1]).sum(axis=1)[looks & (fills > 0.99)]
    boxes = made.boxes[looks & (fills > 0.99)]
    # A pixel of the image or of the tile, or a step of colour.
    slack = 1.5 / 255 + np.maximum(1 / np.array([height, width]), 1 / tiling.tile)
    assert (boxes[:, :2] - slack <= middle).all()
    assert (middle <= boxes[:, 2:] + slack).all()


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tiling=st.sampled_from(QUICK))
def test_fine_boxes_cover_the_image(height: int, width: int, tiling: Tiling) -> None:
    """But for less than a row at the edges, which is cut with the padding; without a gap between."""
    made = assembly(height, width, tiling)
    newline = made.rows[:, 0] == 0
    base, fine = made.boxes[~made.fine], made.boxes[made.fine & ~newline]
    assert np.allclose(base, squares(tiling.side))
    assert made.fine[newline].all()
    if not len(fine):
        return
    for edge in (0, 1):
        starts, ends = np.unique(fine[:, edge]), np.unique(fine[:, edge + 2])
        assert np.allclose(starts[1:], ends[:-1], atol=1e-6)
        largest = (ends - starts).max()
        assert starts[0] < largest + 1e-6
        assert 1 - ends[-1] < largest + 1e-6


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tiling=st.sampled_from(QUICK))
def test_a_row_is_of_the_tile_that_most_of_it_comes_from(height: int, width: int, tiling: Tiling) -> None:
    made = assembly(height, width, tiling)
    tiles = (made.rows - 1) // tiling.side**2
    shares = np.zeros((len(tiles), most_tiles(tiling)))
    newline = made.rows[:, 0] == 0
    np.add.at(shares, (np.arange(len(tiles))[:, None], np.where(newline[:, None], 0, tiles)), made.weights)
    assert np.allclose(shares.sum(axis=1), 1)
    rows = np.arange(len(tiles))
    own = shares[rows, made.tile_of]
    assert (own >= shares.max(axis=1) - 1e-6)[~newline].all()
    assert np.array_equal(made.fine, made.tile_of > 0)
    after = rows[newline & np.append(False, ~newline[:-1] & made.fine[:-1])]
    assert np.array_equal(made.tile_of[after], made.tile_of[after - 1])
    assert np.array_equal(made.boxes[after], made.boxes[after - 1])


def test_a_line_without_features_has_a_newline_as_wide_as_the_image() -> None:
    """A pixel's width comes to nothing among an even number of columns."""
    made = assembly(84, 2, SMALL)
    assert made.rows[16:].tolist() == [[0]] * 12
    assert np.allclose(made.boxes[16:, [1, 3]], [0, 1])
    assert np.allclose(made.boxes[16:, 0], np.arange(12) / 12)
    assert made.tile_of[16:].tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_the_base_of_one_of_several_is_padded() -> None:
    boxes = assembly(40, 100, ODD, alone=False).boxes
    # Five rows of features over a square of 100: the image is 40 high in its middle.
    assert np.allclose(boxes[:25:5, 0], [0, 0, 0.25, 0.75, 1])
    assert np.allclose(boxes[:25:5, 2], [0, 0.25, 0.75, 1, 1])
    assert np.allclose(boxes[:5, 1], np.arange(5) / 5)
    assert np.array_equal(boxes[25], boxes[24])
