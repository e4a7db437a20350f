"""A family of another kind, written in this file alone: planned, exported and asked like the built-in one.

Its encoder has one part with other names, no tower and no signals, and takes images that are no squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import IMAGE_TOKEN_ID, edit_json, make_checkpoint
from exporting import export, plan_of
from images_made import noise_image
from raising import refused
from safetensors.numpy import load_file, save_file

from divprune_edge import Pipeline
from divprune_edge.manifest import Preprocessing, TensorInfo
from divprune_edge.models.decoder import DecoderSpec, read_decoder
from divprune_edge.models.families import FAMILIES
from divprune_edge.models.families.family import Family, Reference, WeightNames
from divprune_edge.models.families.reader import Reader
from divprune_edge.models.graph import Builder, Layers
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.preprocess import encoder_pixels
from divprune_edge.runtime.lab.inspection import inspect_selection

PATCH, HEIGHT, WIDTH = 4, 8, 12
PIXELS = 3 * PATCH * PATCH


@dataclass(frozen=True)
class StripesSpec:
    decoder: DecoderSpec
    image_token_id: int
    tokens: int = HEIGHT * WIDTH // PATCH**2
    image_size: tuple[int, int] = (HEIGHT, WIDTH)
    vision_flops: int = 1
    projector_flops: int = 1
    rows: None = None
    stacked: int = 0
    inputs: tuple[TensorInfo, ...] = (
        TensorInfo(name="pixels", dtype="uint8", shape=("tiles", HEIGHT, WIDTH, 3)),
    )

    @property
    def width(self) -> int:
        return self.decoder.hidden

    def encoder_activations(self, element_bytes: int) -> int:
        return self.tokens * self.width * element_bytes

    def encoder_parameters(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {"stripes": {"merge.weight": (self.width, PIXELS), "merge.bias": (self.width,)}}

    def signal_shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    @property
    def encoder_cut(self) -> None:
        return None

    def with_encoder_cut(self, layer: int, keep: int) -> StripesSpec:
        return self

    def for_images(self, facts: Preprocessing) -> StripesSpec:
        return self

    def with_decoder(self, decoder: DecoderSpec) -> StripesSpec:
        return replace(self, decoder=decoder)


def write_encoder(
    g: Builder,
    parts: Mapping[str, Layers],
    inputs: Mapping[str, Any],
    spec: StripesSpec,
    facts: Preprocessing,
    signals: Sequence[str],
) -> dict[str, Any]:
    with g.scope("stripes"):
        x = g.op("Mul", g.cast(inputs["pixels"], "float32"), g.constant(facts.rescale_factor, "float32"))
        x = g.op(
            "Reshape", x, g.constant([-1, HEIGHT // PATCH, PATCH, WIDTH // PATCH, PATCH, 3])
        )  # one row per patch
        x = g.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        x = g.op("Reshape", x, g.constant([-1, spec.tokens, PIXELS]))
        return {"visual_tokens": parts["stripes"].linear(x, "merge")}


FACTS = Preprocessing(
    resize="exact",
    resize_height=HEIGHT,
    resize_width=WIDTH,
    resample=2,
    rescale_factor=1 / 255,
    mean=(0, 0, 0),
    std=(1, 1, 1),
)
READER = Reader(
    lambda image, facts, size, alone: ImageInput(
        255 - encoder_pixels(image, facts, *size), (image.height, image.width), alone=alone
    )
)
STRIPES = Family(
    name="stripes",
    template="{% for message in messages %}<image>{{ message['content'][1]['text'] }}{% endfor %}",
    presets={},
    spec=lambda config: StripesSpec(read_decoder(config["text_config"]), IMAGE_TOKEN_ID),
    canonical_name=lambda name: name,
    weight_names=lambda names, tied: WeightNames(
        {"stripes": "eyes."}, "model.language_model.", "lm_head.weight"
    ),
    preprocessing=lambda files, spec: FACTS,
    reader=READER,
    sample_sizes=lambda spec: [(HEIGHT, WIDTH)],
    encoder=write_encoder,
    reference=Reference("", "", dict, lambda *_: [], lambda *_: {}, lambda *_: False),
)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(FAMILIES, STRIPES.name, (f"{__name__}:READER", f"{__name__}:STRIPES"))
    folder = make_checkpoint(tmp_path / "checkpoint", template=None)
    edit_json(folder / "config.json", lambda data: data.update(model_type=STRIPES.name))
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if name.startswith(("model.language_model.", "lm_head."))}
    random = np.random.default_rng(0)
    hidden = kept["model.language_model.norm.weight"].shape[0]
    kept["eyes.merge.weight"] = random.standard_normal((hidden, PIXELS), np.float32)
    kept["eyes.merge.bias"] = random.standard_normal(hidden, np.float32)
    save_file(kept, folder / "model.safetensors")
    return folder


def test_it_is_exported_and_answers(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(plan_of(checkpoint, keep=2, signals="all"), tmp_path / "bundle")
    vision = bundle.manifest.vision_encoder
    assert bundle.manifest.family == "stripes"
    assert (vision.tokens, vision.image_height, vision.image_width) == (6, HEIGHT, WIDTH)
    assert [output.name for output in vision.outputs] == ["visual_tokens"], "all signals of none are none"
    image = noise_image(HEIGHT, WIDTH, 1)
    answer = Pipeline(bundle.folder).ask(image, "what is in the picture ?", max_tokens=3)
    patches = (255 - np.asarray(image)).reshape(2, PATCH, 3, PATCH, 3).transpose(0, 2, 1, 3, 4) / np.float32(
        255
    )
    weights = load_file(checkpoint / "model.safetensors")
    tokens = patches.reshape(6, PIXELS) @ weights["eyes.merge.weight"].T + weights["eyes.merge.bias"]
    wanted = bundle.plan.selector.reference(tokens, np.ones(6, bool), 2)
    assert list(answer.kept_indices) == list(wanted)
    with refused("grid-not-square", "6 visual tokens"):
        inspect_selection(Pipeline(bundle.folder), image)


def test_a_signal_that_it_lacks_is_refused_by_name(checkpoint: Path) -> None:
    with refused("signals-unavailable", "'fastervlm'", "cls_attention"):
        plan_of(checkpoint, keep=2, selector="fastervlm")
