"""What an image processor's file says, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_image
from qwen_towers import QWEN2_5, QWEN3
from raising import refused

from divprune_edge.manifest import Patches
from divprune_edge.models.families.image_processor import CLIP_MEAN, CLIP_STD
from divprune_edge.models.families.qwen_vl.preprocessing import read_patches
from divprune_edge.models.families.qwen_vl.spec import read_qwen_vision
from divprune_edge.models.files import CheckpointFiles
from divprune_edge.processing.patches import to_patches

THREE = read_qwen_vision(QWEN3 | {"patch_size": 16}, "")
TWO = read_qwen_vision(QWEN2_5 | {"patch_size": 14, "window_size": 112}, "")
# As Qwen3-VL's and Qwen2.5-VL's files have it.
QWEN3_FILE: dict[str, Any] = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
QWEN2_5_FILE: dict[str, Any] = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def files(
    folder: Path, settings: dict[str, Any] | None, name: str = "preprocessor_config.json"
) -> CheckpointFiles:
    if settings is not None:
        (folder / name).write_text(
            json.dumps(settings if name.startswith("pre") else {"image_processor": settings})
        )
    return CheckpointFiles(folder)


def test_well_known_files(tmp_path: Path) -> None:
    facts = read_patches(files(tmp_path, QWEN3_FILE), THREE)
    assert facts.patches == Patches(
        patch=16, merge=2, temporal=2, min_pixels=65536, max_pixels=16777216, places=6
    )
    assert (facts.resize, facts.resample, facts.mean, facts.std) == ("area", 3, (0.5,) * 3, (0.5,) * 3)
    facts = read_patches(files(tmp_path, QWEN2_5_FILE), TWO)
    assert facts.patches == Patches(
        patch=14, merge=2, temporal=2, min_pixels=3136, max_pixels=12845056, window=4
    )
    assert (facts.rescale_factor, facts.mean, facts.std) == (1 / 255, CLIP_MEAN, CLIP_STD)


def test_both_places_say_the_same(tmp_path: Path) -> None:
    nested = read_patches(files(tmp_path, QWEN3_FILE, "processor_config.json"), THREE)
    assert nested == read_patches(files(tmp_path, QWEN3_FILE), THREE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_pixels": 100 * 100},
        {"min_pixels": 5000, "max_pixels": 6000, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"max_pixels": 70000, "size": {"shortest_edge": 50000, "longest_edge": 60000}},
        {"size": None, "min_pixels": None, "image_processor_type": "Qwen2VLImageProcessorPil"},
        {"resample": 2, "image_mean": 0.3, "do_normalize": False},
    ],
)
def test_equals_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    """Bounds under either name, alone or together."""
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    facts = read_patches(files(tmp_path, settings), TWO)
    said = {name: value for name, value in settings.items() if name != "image_processor_type"}
    processor = Qwen2VLImageProcessorPil(**said)
    for height, width in ((30, 50), (400, 333)):
        image = noise_image(height, width, height)
        wanted = processor(images=image, return_tensors="np", do_rescale=False, do_normalize=False)
        found, grid = to_patches(image, facts)
        assert [1, *grid] == wanted["image_grid_thw"][0].tolist()
        assert np.array_equal(found[0], wanted["pixel_values"])
        mean, std = (np.repeat(values, found.shape[2] // 3) for values in (facts.mean, facts.std))
        normalised = (found[0] * facts.rescale_factor - mean) / std
        assert np.allclose(
            normalised, processor(images=image, return_tensors="np")["pixel_values"], atol=1e-6
        )


@pytest.mark.parametrize(
    ("changes", "code", "values"),
    [
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image-processor-unsupported",
            ["CLIPImageProcessor"],
        ),
        (
            {"image_processor_type": "Qwen2VLImageProcessorSlow"},
            "image-processor-unsupported",
            ["Qwen2VLImageProcessorSlow"],
        ),
        ({"do_resize": False}, "image-processor-unsupported", ["do_resize"]),
        ({"patch_size": 14}, "image-processor-size-unfit", ["patch_size", 14, 16]),
        ({"patch_size": None}, "image-processor-size-unfit", ["patch_size", 14, 16]),
        ({"merge_size": 1}, "image-processor-size-unfit", ["merge_size", 1, 2]),
        ({"temporal_patch_size": 1}, "image-processor-size-unfit", ["temporal_patch_size"]),
        ({"size": {"shortest_edge": 100}}, "image-processor-unsupported", ["{'shortest_edge': 100}"]),
        (
            {"size": {"height": 224, "width": 224}},
            "image-processor-unsupported",
            ["shortest_edge and longest_edge"],
        ),
        ({"min_pixels": 0}, "image-processor-unsupported", ["pixels"]),
        ({"min_pixels": 1 << 25}, "image-processor-unsupported", [1 << 25, 16777216]),
        ({"max_pixels": 100_000_000}, "image-processor-unsupported", ["max_pixels"]),
        ({"resample": 6}, "image-processor-unsupported", ["resample"]),
    ],
)
def test_refused(changes: dict[str, Any], code: str, values: list[object], tmp_path: Path) -> None:
    with refused(code, *values):
        read_patches(files(tmp_path, QWEN3_FILE | changes), THREE)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with refused("image-processor-missing", tmp_path):
        read_patches(files(tmp_path, None), THREE)
