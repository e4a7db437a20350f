"""Families whose images are cut into tiles: what their files may say, as transformers reads it; refusals by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_image
from raising import refused

from divprune_edge.manifest import Preprocessing
from divprune_edge.models.families import FAMILIES, family_named, family_of, reader_of
from divprune_edge.models.families.llava.tiled import find_tiled_weights
from divprune_edge.models.files import CheckpointFiles

NEXT_7B: dict[str, Any] = {
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "mistral", "num_key_value_heads": 8, "vocab_size": 32064},
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "use_image_newline_parameter": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
"""The text of llava-hf/llava-v1.6-mistral-7b-hf."""
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
}
NEXT_SETTINGS: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_grid_pinpoints": NEXT_7B["image_grid_pinpoints"],
}
SPARSE = {
    "nothing": {},
    "parts without a kind": {
        "text_config": {"hidden_size": 1024},
        "vision_config": {"image_size": 384, "num_hidden_layers": 5},
    },
    "feature layers": {"vision_feature_layer": [-2, 3]},
    "another ratio": {"vision_aspect_ratio": "anyres_max_4"},
    "nulls": {"image_grid_pinpoints": None, "vision_feature_layer": None, "vision_aspect_ratio": None},
    "one grid": {"image_grid_pinpoints": [[768, 768]]},
}


@pytest.mark.parametrize("name", SPARSE)
def test_onevision_s_absent_fields_are_what_transformers_assumes(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlavaOnevisionConfig

    written = {key: value for key, value in SPARSE[name].items() if value is not None}
    wanted = LlavaOnevisionConfig(**copy.deepcopy(written))
    spec = family_of({"model_type": "llava_onevision"}).spec(
        {"model_type": "llava_onevision", **SPARSE[name]}
    )
    assert spec.image_token_id == wanted.image_token_id
    assert (spec.decoder.kind, spec.decoder.hidden) == ("qwen2", wanted.text_config.hidden_size)
    tower = wanted.vision_config
    assert (spec.vision.hidden, spec.vision.layers) == (tower.hidden_size, tower.num_hidden_layers)
    assert (spec.vision.image_size, spec.vision.patch_size) == (tower.image_size, tower.patch_size)
    assert not spec.vision.class_token
    assert spec.vision.drops_first == (wanted.vision_feature_select_strategy == "default")
    layers = wanted.vision_feature_layer
    states = range(tower.num_hidden_layers + 1)
    assert spec.vision.feature_states == tuple(
        states[i] for i in ([layers] if isinstance(layers, int) else layers)
    )
    assert [list(grid) for grid in spec.tiling.grids] == wanted.image_grid_pinpoints
    assert f"anyres_max_{spec.tiling.max_tiles}" == wanted.vision_aspect_ratio
    assert (spec.tiling.tile, spec.tiling.side) == (tower.image_size, tower.image_size // tower.patch_size)


@pytest.mark.parametrize("config", [NEXT_7B, {"model_type": "llava_next"}])
def test_next_s_fields_are_what_transformers_reads(config: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    from transformers import LlavaNextConfig

    wanted = LlavaNextConfig(**copy.deepcopy({k: v for k, v in config.items() if k != "model_type"}))
    spec = family_of(config).spec(config)
    assert [list(grid) for grid in spec.tiling.grids] == wanted.image_grid_pinpoints
    assert (spec.image_token_id, spec.decoder.kind) == (wanted.image_token_id, wanted.text_config.model_type)
    assert (spec.tokens, spec.tiling.side, spec.tiling.max_tiles) == (576, 24, None)
    assert (spec.tiling.several, spec.vision.drops_first) == ("tiles", True)


def with_changes(*path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(NEXT_7B)
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return config


@pytest.mark.parametrize(
    ("config", "code", "names"),
    [
        (
            with_changes("image_grid_pinpoints", value=[[336, 672], [672, 340]]),
            "config-unsupported",
            ("image_grid_pinpoints", "672 x 340", "336 x 336"),
        ),
        (with_changes("image_grid_pinpoints", value=[]), "config-unsupported", ("image_grid_pinpoints", 1)),
        (
            with_changes("image_grid_pinpoints", value=[[336]]),
            "config-unsupported",
            ("image_grid_pinpoints",),
        ),
        (
            with_changes("image_grid_pinpoints", value="(1x1),...,(6x6)"),
            "config-unsupported",
            ("image_grid_pinpoints",),
        ),
        (
            with_changes("image_grid_pinpoints", value=[[3696, 3696]]),
            "config-unsupported",
            ("3696 x 3696", "121 tiles", 100),
        ),
        (with_changes("vision_config", "image_size", value=384), "config-unsupported", ("384 x 384",)),
        (
            with_changes("vision_feature_select_strategy", value="full"),
            "config-inconsistent",
            ("577 tokens", "24 x 24", "vision_feature_select_strategy"),
        ),
        (
            with_changes("vision_config", value=SIGLIP),
            "config-inconsistent",
            ("728 tokens", "27 x 27", "vision_feature_select_strategy"),
        ),
        (
            {"model_type": "llava_onevision", "vision_feature_select_strategy": "default"},
            "config-inconsistent",
            ("728 tokens", "27 x 27"),
        ),
        *(
            (
                {"model_type": "llava_onevision", "vision_aspect_ratio": ratio},
                "config-unsupported",
                ("vision_aspect_ratio", f"'{ratio}'", "'anyres_max_'"),
            )
            for ratio in ("pad", "anyres", "anyres_max_", "anyres_max_0", "anyres_max_-1", "anyres_max_9x")
        ),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], code: str, names: tuple[Any, ...]) -> None:
    with refused(code, *names):
        family_of(config).spec(config)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llava_next_video", "LLaVA-NeXT-Video"),
        ("vipllava", "ViP-LLaVA"),
        ("video_llava", "Video-LLaVA"),
        ("llava_next_qwen", "'llava_next_qwen'"),
    ],
)
def test_their_relatives_are_refused_by_name(kind: str, name: str) -> None:
    with refused("model-unsupported", name):
        family_of({**NEXT_7B, "model_type": kind})


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_pixtral_is_refused_by_name(family: str) -> None:
    with refused("model-unsupported", "pixtral"):
        family_of({"model_type": family}).spec({**NEXT_7B, "vision_config": {"model_type": "pixtral"}})


# --- the image processor ---------------------------------------------------------------------------------------


def read(folder: Path, settings: dict[str, Any], config: dict[str, Any] = NEXT_7B) -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    family = family_of(config)
    return family.preprocessing(CheckpointFiles(folder), family.spec(config))


PROCESSORS: dict[str, dict[str, Any]] = {
    "as it is written": {},
    "not cropped": {"do_center_crop": False},
    "a crop of null": {"crop_size": None, "do_center_crop": None},
    "both edges and a crop of null": {
        "crop_size": None,
        "do_center_crop": False,
        "size": {"height": 336, "width": 336},
    },
    "both edges": {"size": {"height": 336, "width": 336}},
    "resized, then cropped": {"size": {"shortest_edge": 350}, "resample": 2},
    "numbers": {"size": 336, "crop_size": 336},
    "the fast one's name": {"image_processor_type": "LlavaNextImageProcessorFast"},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_tiles_are_its_processor_s(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoImageProcessor

    facts = read(tmp_path, {**NEXT_SETTINGS, **PROCESSORS[name], "do_rescale": False, "do_normalize": False})
    image = noise_image(200, 450, 1)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    wanted = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])
    found = reader_of("llava_next").image(image, facts, (336, 336), True).pixels
    assert np.array_equal(found.transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        (
            {"image_grid_pinpoints": [[336, 672], [672, 336]]},
            "image-processor-unsupported",
            ("image_grid_pinpoints", "[[336, 672], [672, 336]]", "config.json"),
        ),
        (
            {"image_grid_pinpoints": [[672, 336], [336, 672], [672, 672], [1008, 336], [336, 1008]]},
            "image-processor-unsupported",
            ("image_grid_pinpoints",),
        ),
        ({"image_grid_pinpoints": "grids"}, "image-processor-unsupported", ("image_grid_pinpoints",)),
        ({"image_grid_pinpoints": 7}, "image-processor-unsupported", ("image_grid_pinpoints", 7)),
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image-processor-unsupported",
            ("'CLIPImageProcessor'", "LlavaNextImageProcessor"),
        ),
        (
            {"image_processor_type": "LlavaOnevisionImageProcessor"},
            "image-processor-unsupported",
            ("'LlavaOnevisionImageProcessor'",),
        ),
        ({"do_resize": False}, "image-processor-unsupported", ("resized",)),
        ({"crop_size": 224}, "image-processor-size-unfit", ("224 x 224", "336 x 336")),
        ({"crop_size": None}, "image-processor-unsupported", ("crop_size", None)),
        (
            {"size": {"shortest_edge": 224}, "crop_size": None, "do_center_crop": False},
            "image-processor-size-unfit",
            ("224 x 224",),
        ),
    ],
)
def test_processors_that_are_refused(
    tmp_path: Path, change: dict[str, Any], code: str, names: tuple[Any, ...]
) -> None:
    with refused(code, *names):
        read(tmp_path, {**NEXT_SETTINGS, **change})


def test_other_grids_than_the_class_s_own_are_to_be_said_twice(tmp_path: Path) -> None:
    """A file that says none means the class's own five, not the config's."""
    settings = {name: value for name, value in NEXT_SETTINGS.items() if name != "image_grid_pinpoints"}
    assert read(tmp_path, settings).tiling is not None
    with refused("image-processor-unsupported", "[[672, 672]]", "image_grid_pinpoints"):
        read(tmp_path, settings, with_changes("image_grid_pinpoints", value=[[672, 672]]))


def test_tiles_that_onevision_cuts_larger_than_its_tower_takes_are_refused(tmp_path: Path) -> None:
    """Its processor cuts tiles of the crop's size, also where it does not crop."""
    settings = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 384, "width": 384}}
    config = {"model_type": "llava_onevision"}
    assert read(tmp_path, settings, config).crop_height is None
    assert read(tmp_path, {**settings, "crop_size": 384}, config).crop_height == 384
    with refused("image-processor-size-unfit", "768 x 768", "384 x 384"):
        read(tmp_path, {**settings, "crop_size": {"height": 768, "width": 768}}, config)


# --- the rest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["model.image_newline", "image_newline"])
def test_the_newline_is_found_and_missed_by_name(newline: str) -> None:
    names = {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "multi_modal_projector.linear_1.weight",
    }
    found = find_tiled_weights({*names, newline}, False)
    assert (found.newline, found.split(newline)) == (newline, ("assemble", ""))
    assert found.in_encoder(newline)
    with refused("weights-incomplete", "'model.image_newline'"):
        find_tiled_weights(names, False)


@pytest.mark.parametrize("name", ["llava-1.6-vicuna-7b", "llava-onevision-qwen2-0.5b"])
def test_presets_have_the_tiles_of_their_checkpoints(name: str) -> None:
    from divprune_edge.models.tiles import candidates_of, picks_of, tiles_of

    family = next(family for family in map(family_named, FAMILIES) if name in family.presets)
    spec = family.spec(family.presets[name])
    numbers = (tiles_of(spec), candidates_of(spec), candidates_of(spec, "tile"), picks_of(spec, "image"))
    assert numbers == {"llava_next": (5, 2928, 600, 1), "llava_onevision": (37, 8765, 756, 1)}[family.name]
    assert picks_of(spec, "tile") == tiles_of(spec)
