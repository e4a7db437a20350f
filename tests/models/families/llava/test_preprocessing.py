"""What an image processor's file says, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.models.families.llava.preprocessing import CLIP_MEAN, CLIP_STD, read_preprocessing
from divprune_edge.models.files import CheckpointFiles

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
            {"image_processor_type": "SiglipImageProcessor"},
            "image-processor-unsupported",
            "SiglipImageProcessor",
        ),
        ({"size": {"longest_edge": 5}}, "image-processor-unsupported", "size is {'longest_edge': 5}"),
        ({"crop_size": {"height": 336}}, "image-processor-unsupported", "crop_size is {'height': 336}"),
        (
            {"image_mean": [0.5, 0.5]},
            "image-processor-unsupported",
            "image_mean is [0.5, 0.5]",
        ),
        ({"image_std": 0.5}, "image-processor-unsupported", "image_std is 0.5"),
        (
            {"crop_size": 224},
            "image-processor-size-unfit",
            "224 x 224 pixels, but the vision tower takes 336 x 336",
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
