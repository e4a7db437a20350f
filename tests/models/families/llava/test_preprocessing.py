"""What an image processor's file says, and which ones are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_image
from PIL import Image
from raising import refused

from divprune_edge.models.families.image_processor import CLIP_MEAN, CLIP_STD
from divprune_edge.models.families.llava.preprocessing import read_preprocessing
from divprune_edge.models.files import CheckpointFiles
from divprune_edge.processing.images import load_image
from divprune_edge.processing.preprocess import encoder_pixels

SETTINGS: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 336},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 336, "width": 336},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def files(
    folder: Path, settings: dict[str, Any] | None, name: str = "preprocessor_config.json"
) -> CheckpointFiles:
    if settings is not None:
        nested = settings if name.startswith("pre") else {"image_processor": settings}
        (folder / name).write_text(json.dumps(nested))
    return CheckpointFiles(folder)


def test_both_places_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own = read_preprocessing(files(tmp_path / "a", SETTINGS), 336)
    nested = read_preprocessing(files(tmp_path / "b", SETTINGS, "processor_config.json"), 336)
    assert own == nested
    assert (own.resize, own.shortest_edge, own.crop_height, own.crop_width) == (
        "shortest_edge",
        336,
        336,
        336,
    )
    assert (own.mean, own.std, own.resample) == (CLIP_MEAN, CLIP_STD, 3)


def test_the_own_file_outranks_the_nested_one(tmp_path: Path) -> None:
    files(tmp_path, {**SETTINGS, "resample": 2}, "processor_config.json")
    assert read_preprocessing(files(tmp_path, SETTINGS), 336).resample == 3


def test_absent_fields_are_what_transformers_assumes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import CLIPImageProcessorPil

    wanted = CLIPImageProcessorPil()
    facts = read_preprocessing(files(tmp_path, {"image_processor_type": "CLIPImageProcessor"}), 224)
    assert facts.shortest_edge == wanted.size["shortest_edge"]
    assert (facts.crop_height, facts.crop_width) == (wanted.crop_size["height"], wanted.crop_size["width"])
    assert facts.mean == tuple(wanted.image_mean)
    assert facts.std == tuple(wanted.image_std)
    assert facts.rescale_factor == wanted.rescale_factor
    assert facts.resample == int(wanted.resample)
    assert not facts.pad_to_square


def test_old_spellings_and_switches(tmp_path: Path) -> None:
    facts = read_preprocessing(files(tmp_path, {**SETTINGS, "size": 336, "crop_size": 336}), 336)
    assert (facts.shortest_edge, facts.crop_height) == (336, 336)
    exact = {**SETTINGS, "size": {"height": 336, "width": 336}, "do_center_crop": False}
    facts = read_preprocessing(files(tmp_path, exact), 336)
    assert (facts.resize, facts.resize_height, facts.resize_width, facts.crop_height) == (
        "exact",
        336,
        336,
        None,
    )
    raw = {**SETTINGS, "do_rescale": False, "do_normalize": False, "do_resize": False}
    facts = read_preprocessing(files(tmp_path, raw), 336)
    assert (facts.resize, facts.rescale_factor, facts.mean, facts.std) == (
        "none",
        1.0,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
    )


def test_padding_to_a_square(tmp_path: Path) -> None:
    padded = {**SETTINGS, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
    assert read_preprocessing(files(tmp_path, padded), 336).pad_to_square
    assert not read_preprocessing(files(tmp_path, {**padded, "do_pad": False}), 336).pad_to_square


@pytest.mark.parametrize(
    ("change", "code", "given"),
    [
        (
            {"image_processor_type": "ConvNextImageProcessor"},
            "image-processor-unsupported",
            "ConvNextImageProcessor",
        ),
        ({"size": {"longest_edge": 5}}, "image-processor-unsupported", "size is {'longest_edge': 5}"),
        ({"crop_size": {"height": 336}}, "image-processor-unsupported", "crop_size is {'height': 336}"),
        (
            {"image_mean": [0.5, 0.5]},
            "image-processor-unsupported",
            "image_mean is [0.5, 0.5]",
        ),
        (
            {"crop_size": 224},
            "image-processor-size-unfit",
            "224 x 224 pixels, but the vision tower takes 336 x 336",
        ),
        ({"image_std": "0.5"}, "image-processor-unsupported", "image_std is '0.5'"),
        ({"image_std": [0.5, 0.5, None]}, "image-processor-unsupported", "image_std is [0.5, 0.5, None]"),
        ({"size": True}, "image-processor-unsupported", "size is True"),
        ({"size": {"shortest_edge": 0}}, "image-processor-unsupported", "{'shortest_edge': 0}"),
        (
            {"do_pad": True, "pad_size": {"height": 400, "width": 400}},
            "image-processor-unsupported",
            "{'height': 400, 'width': 400}",
        ),
        (
            {"do_center_crop": False},
            "image-processor-size-unfit",
            "varying x varying pixels, but the vision tower takes 336",
        ),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], code: str, given: str) -> None:
    with refused(code, given):
        read_preprocessing(files(tmp_path, {**SETTINGS, **change}), 336)


def test_no_file_at_all(tmp_path: Path) -> None:
    with refused("image-processor-missing", "preprocessor_config.json"):
        read_preprocessing(files(tmp_path, None), 336)


NAMES = ["CLIP", "ChineseCLIP", "Bit", "Llava", "ViT", "DeiT", "Siglip", "Blip"]


def transformers_pixels(image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """What transformers' own processor makes of an image with these settings, float32 [3, H, W]."""
    transformers = pytest.importorskip("transformers")
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", settings["image_processor_type"])
    options = {key: value for key, value in settings.items() if key != "image_processor_type"}
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**options)
    return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])


def our_pixels(image: Image.Image, settings: dict[str, Any], folder: Path, side: int) -> np.ndarray:
    facts = read_preprocessing(files(folder, settings), side)
    pixels = encoder_pixels(image, facts, side, side)[0].astype(np.float32)
    scaled = pixels * np.float32(facts.rescale_factor)
    return ((scaled - np.float32(facts.mean)) / np.float32(facts.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "suffix", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"]
)
def test_defaults_of_each_processor_are_those_of_transformers(tmp_path: Path, name: str, suffix: str) -> None:
    settings = {"image_processor_type": name + suffix}
    side = 384 if name == "Blip" else 224
    image = noise_image(300, 410)
    wanted = transformers_pixels(image, settings)
    found = our_pixels(image, settings, tmp_path, side)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5  # a pixel that differs by one differs by 0.013


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize(("side", "settings"), [(384, {}), (56, {"resample": 2}), (33, {"resample": 0})])
def test_siglip_s_pixels_are_its_processor_s(
    tmp_path: Path, side: int, settings: dict[str, Any], mode: str
) -> None:
    """Not one pixel differs, however an image comes."""
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 0.00392156862745098,
        **settings,
    }
    facts = read_preprocessing(files(tmp_path, settings), side)
    for height, width in ((97, 411), (411, 97), (side, side), (1, 30)):
        image = noise_image(height, width).convert(mode)
        wanted = np.rint((transformers_pixels(image, settings) * 0.5 + 0.5) * 255)
        pixels = encoder_pixels(load_image(image), facts, side, side)[0]
        assert np.array_equal(pixels.transpose(2, 0, 1), wanted.astype(np.uint8)), (height, width)


VARIANTS: dict[str, dict[str, Any]] = {
    "a bound on the long edge": {"size": {"shortest_edge": 96, "longest_edge": 130}},
    "a bound below the short edge": {"size": {"shortest_edge": 96, "longest_edge": 64}},
    "one number": {"size": 96},
    "one number, both edges": {"image_processor_type": "ViTImageProcessor", "size": 96, "crop_size": None},
    "two numbers": {"size": [96, 96], "do_center_crop": False},
    "two numbers to crop": {"size": 100, "crop_size": [96, 96]},
    "one mean": {"image_mean": 0.5, "image_std": 0.25},
    "nulls": {"do_center_crop": None, "do_rescale": None, "size": [96, 96]},
    "SigLIP of another size": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 96, "width": 96},
        "do_center_crop": None,
    },
    "ViT that crops": {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "size": 110},
    "square size of KOSMOS": {"use_square_size": True, "crop_size": {"height": 96, "width": 96}},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(77, 131), (131, 77), (96, 96), (300, 20), (64, 64), (31, 96)])
def test_what_a_file_may_say_is_bit_exact(tmp_path: Path, variant: str, height: int, width: int) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 96},
        "crop_size": {"height": 96, "width": 96},
        **VARIANTS[variant],
    }
    image = noise_image(height, width)
    wanted = transformers_pixels(image, settings)
    found = our_pixels(image, settings, tmp_path, 96)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5
