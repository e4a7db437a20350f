"""Preprocessing equals the uint8 stage of transformers' image processors bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_made import noise_image
from PIL import Image
from raising import refused

from divprune_edge.manifest import Preprocessing
from divprune_edge.processing.preprocess import to_pixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
FACTS: dict[str, Any] = {"resample": 3, "rescale_factor": 1 / 255, "mean": MEAN, "std": (0.27, 0.26, 0.28)}


def facts(**changes: Any) -> Preprocessing:
    return Preprocessing(**(FACTS | {"resize": "none"} | changes))


def reference(image: Image.Image, f: Preprocessing) -> np.ndarray:
    """The same by transformers, uint8 [1, H, W, 3]."""
    pytest.importorskip("transformers")
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    if f.resize == "exact":
        size = {"height": f.resize_height, "width": f.resize_width}
    else:
        size = {"shortest_edge": f.shortest_edge or 1}
        if f.longest_edge is not None:
            size["longest_edge"] = f.longest_edge
    processor = LlavaImageProcessorPil(
        do_pad=f.pad_to_square,
        do_resize=f.resize != "none",
        size=size,
        resample=f.resample,
        do_center_crop=f.crop_height is not None,
        crop_size={"height": f.crop_height or 1, "width": f.crop_width or 1},
        do_rescale=False,
        do_normalize=False,
        image_mean=list(f.mean),
    )
    pixels = np.asarray(processor(images=image, return_tensors="np")["pixel_values"])
    assert pixels.dtype == np.uint8
    return pixels.transpose(0, 2, 3, 1)


SHORTEST = facts(resize="shortest_edge", shortest_edge=48, crop_height=48, crop_width=48)
SIZES = [(1, 1), (1, 7), (300, 1), (47, 49), (48, 48), (49, 48), (48, 97), (101, 33), (640, 481), (5, 1200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "f",
    [
        SHORTEST,
        facts(resize="shortest_edge", shortest_edge=40, crop_height=48, crop_width=48),
        facts(resize="shortest_edge", shortest_edge=61, crop_height=33, crop_width=48),
        facts(resize="exact", resize_height=37, resize_width=48),
        facts(resize="exact", resize_height=30, resize_width=60, crop_height=41, crop_width=41, resample=2),
        facts(crop_height=45, crop_width=46),
        facts(resize="shortest_edge", shortest_edge=48, longest_edge=60, crop_height=48, crop_width=48),
        facts(resize="shortest_edge", shortest_edge=48, longest_edge=4000),
        facts(resize="shortest_edge", shortest_edge=48, crop_height=48, crop_width=48, pad_to_square=True),
    ],
)
def test_equals_transformers(size: tuple[int, int], f: Preprocessing) -> None:
    image = noise_image(*size)
    bound = None if f.pad_to_square else f.longest_edge
    if bound is not None and round(bound * min(size) / max(size)) < 1:
        with refused("image-too-elongated"):
            to_pixels(image, f)
        return
    pixels = to_pixels(image, f)
    expected = reference(image, f)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels, expected)


def test_clip_processor_agrees_too() -> None:
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        do_rescale=False,
        do_normalize=False,
    )
    image = noise_image(77, 131)
    expected = np.asarray(processor(images=image, return_tensors="np")["pixel_values"]).transpose(0, 2, 3, 1)
    assert np.array_equal(to_pixels(image, SHORTEST), expected)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    edge=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    pad=st.booleans(),
    longest=st.none() | st.integers(20, 90),
)
def test_any_size_equals_transformers(
    height: int, width: int, edge: int, crop: tuple[int, int], pad: bool, longest: int | None
) -> None:
    f = facts(
        resize="shortest_edge",
        shortest_edge=edge,
        longest_edge=longest,
        crop_height=crop[0],
        crop_width=crop[1],
        pad_to_square=pad,
    )
    image = noise_image(height, width)
    if longest is not None and not pad and round(longest * min(image.size) / max(image.size)) < 1:
        with refused("image-too-elongated"):
            to_pixels(image, f)
        return
    assert np.array_equal(to_pixels(image, f), reference(image, f))


def test_padding_has_the_truncated_mean_colour() -> None:
    pixels = to_pixels(noise_image(2, 8), facts(pad_to_square=True, crop_height=8, crop_width=8))
    assert pixels[0, 0, 0].tolist() == [122, 116, 104]


@pytest.mark.parametrize(("size", "pad"), [((5000, 1), False), ((1, 5000), False), ((2, 16000), True)])
def test_too_elongated_is_refused_with_numbers(size: tuple[int, int], pad: bool) -> None:
    image = Image.new("RGB", size)
    with refused("image-too-elongated", f"{size[0]} x {size[1]}", 64):
        to_pixels(image, facts(resize="shortest_edge", shortest_edge=336, pad_to_square=pad))
