"""``python -m runtime trtexec`` for images of any size: a profile for each grid, and inputs of the image at hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, open_session, plan_of
from qwen_checkpoints import QWEN, images_of, make_qwen_checkpoint
from trtexec_lines import lines_of, shapes_of, values_of

from divprune_edge import Pipeline
from divprune_edge.processing.patches import dimensions
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.vision import groups_of

SIZES = "64x40,40x64,56x48,32x32"
IMAGES = {"large": (70, 60), "lies": (30, 50), "small": (30, 30)}
DIALECTS = {"qwen2_5_vl": ("decomposed", "10.3"), "qwen3_vl": ("static", "10.16.2")}


@pytest.fixture(scope="module", params=QWEN)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle, and pictures beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_qwen_checkpoint(folder / "checkpoint", family=request.param)
    dialect, _ = DIALECTS[request.param]
    plan = plan_of(checkpoint, 9, dialect=dialect, resolution=SIZES, capacity=128)
    made = export(plan, folder / "bundle").folder
    for name, image in zip(IMAGES, images_of(list(IMAGES.values())), strict=True):
        image.save(folder / f"{name}.png")
    return Bundle.open(made)


Lines = Callable[[str], dict[str, list[str]]]


@pytest.fixture
def lines(bundle: Bundle, command: Any, library: Path, tmp_path: Path) -> Lines:
    """Title -> arguments of the lines for a picture."""

    def get(name: str) -> dict[str, list[str]]:
        _, version = DIALECTS[bundle.manifest.family]
        picture = bundle.path.parent / f"{name}.png"
        return lines_of(command, bundle, version, library, tmp_path / "out", "--image", picture)

    return get


def test_the_engine_has_a_profile_for_each_grid(bundle: Bundle, lines: Lines) -> None:
    arguments = lines("large")["build vision_encoder"]
    patches = bundle.manifest.preprocessing.patches
    assert patches is not None
    sizes = [one["patches"] for one in dimensions(patches)]
    assert [a for a in arguments if a.startswith("--profile=")] == [
        f"--profile={i}" for i in range(len(sizes))
    ]
    least, typical, largest = (shapes_of(arguments, f"{bound}Shapes") for bound in ("min", "opt", "max"))
    assert least == typical == largest
    assert [one["pixels"][1] for one in least] == sizes


@pytest.mark.parametrize("real", [True, False], ids=["real", "made up"])
@pytest.mark.parametrize("name", IMAGES)
def test_every_stage_gets_the_image_at_hand(
    bundle: Bundle,
    lines: Lines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    real: bool,
) -> None:
    manifest, patches = bundle.manifest, bundle.manifest.preprocessing.patches
    assert manifest.assemble is not None
    assert patches is not None
    pipeline = Pipeline(bundle, threads=1)
    (image,) = pipeline.vision.read([bundle.path.parent / f"{name}.png"])
    tokens = int(groups_of(manifest, image).valid.sum())
    if not real:
        monkeypatch.setitem(sys.modules, "divprune_edge.runtime.backends.onnxruntime", None)
    found = lines(name)
    assert list(found) == [
        *("build vision_encoder", "measure vision", "build assemble", "measure assemble"),
        *("build divprune-9", "measure select"),
        *("build language_model", "measure prefill", "measure decode"),
    ]
    folder = tmp_path / "out" / "inputs"
    (shapes,) = shapes_of(found["measure vision"], "shapes")
    (profile,) = (a for a in found["measure vision"] if a.startswith("--useProfile="))
    index = int(profile.split("=")[1])
    assert dimensions(patches)[index]["patches"] == image.pixels.shape[1] == 4 * tokens
    given = values_of(folder, bundle, "vision", shapes)
    assert {key: value.tobytes() for key, value in given.items()} == {
        key: np.ascontiguousarray(value).tobytes() for key, value in image.inputs.items()
    }
    # The graphs take what was written.
    (seen,) = open_session(bundle.file(manifest.vision_encoder.file)).run(None, given)
    (shapes,) = shapes_of(found["measure assemble"], "shapes")
    rows = values_of(folder, bundle, "assemble", shapes)
    assert rows["tile_tokens"].shape == seen.shape == (1, tokens, manifest.vision_encoder.width)
    (table,) = open_session(bundle.file(manifest.assemble.file)).run(None, rows)
    (shapes,) = shapes_of(found["measure select"], "shapes")
    asked = values_of(folder, bundle, "select", shapes)
    assert asked["valid"].sum() == tokens
    kept, indices = open_session(bundle.file(manifest.selectors[0].file)).run(None, asked)
    if real:
        assert np.allclose(seen, rows["tile_tokens"], atol=1e-5)
        assert np.allclose(table, asked["visual_tokens"], atol=1e-5)
    answer = pipeline.ask(bundle.path.parent / f"{name}.png", "What is in the picture?", max_tokens=1)
    language = manifest.language_model
    for stage, count in (("prefill", answer.prompt_tokens), ("decode", 1)):
        positions = np.fromfile(folder / f"{stage}.position_ids.bin", np.int64)
        assert positions.shape == (3 * count,)
    positions = np.fromfile(folder / "prefill.position_ids.bin", np.int64).reshape(3, -1)
    ids = np.fromfile(folder / "prefill.input_ids.bin", np.int64)
    (where,) = (ids >= language.embedding_rows).nonzero()
    first = int(positions[0, where[0]])
    assert (positions[0, where] == first).all(), "an image is at one time"
    if real:
        wanted = image.places[:, indices[0]] + first
        assert np.array_equal(positions[:, where], wanted)
        assert np.array_equal(indices[0], answer.kept_indices)
    following = np.fromfile(folder / "decode.position_ids.bin", np.int64)
    assert (following == positions.max() + 1).all()
    record = json.loads((tmp_path / "out" / "trtexec.json").read_text())
    flops = {stage["name"]: stage["flops"] for stage in record["stages"]}
    # What the encoder costs is known of the largest image.
    assert flops["vision"] == (manifest.vision_encoder.flops if name == "large" else None)
    assert (record["visual_tokens"], kept.shape[1]) == (9, 9)
