"""Images in tiles: every dialect and precision verifies, calibrated or merged with an adapter; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import make_adapter, merged_plan
from checkpoints import TILED_VARIATIONS, edit_json, make_checkpoint
from exporting import Bundle, export, failures, plan_of
from images_made import noise_image
from raising import assert_told, refused
from safetensors.numpy import load_file, save_file
from tilings import TINY_SHAPES

from divprune_edge.console import run
from divprune_edge.export.calibrate import calibrated
from divprune_edge.export.cli import app
from divprune_edge.export.examples import pruned_rows
from divprune_edge.export.seen import see
from divprune_edge.export.verify.graphs import open_graph

FAMILIES = ("llava_next", "llava_onevision")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a checkpoint of a family whose rows divide into blocks; nobody may write to it."""

    @cache
    def get(family: str) -> Path:
        options = TILED_VARIATIONS[f"{family}, plain"]
        sizes = {"hidden_size": 64, "intermediate_size": 128}
        return make_checkpoint(
            tmp_path_factory.mktemp(family) / "tiny",
            **options,
            text={**sizes, "num_key_value_heads": 2},
            vision={**sizes, "num_attention_heads": 2},
        )

    return get


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(TINY_SHAPES[::6]):
        noise_image(*size, seed=number).save(folder / f"{number}.png")
    return folder


def command(*arguments: str) -> object:
    """Run ``python -m export …`` without starting a process; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        run(app, list(arguments), program="python -m export")
    return stopped.value.code or 0


@pytest.mark.parametrize(
    ("family", "dialect", "precision", "selector", "per"),
    [
        ("llava_next", "portable", "fp16", "visionzip", "tile"),
        ("llava_next", "portable", "vision=int8,language=int4", "vtc-cls", "image"),
        ("llava_next", "onnxruntime", "int8", "cdpruner", "tile"),
        ("llava_next", "static", "fp16", "holov", "image"),
        ("llava_next", "decomposed", "int4", "fastervlm", "tile"),
        ("llava_onevision", "portable", "int8", "divprune", "tile"),
        ("llava_onevision", "onnxruntime", "int4", "dart", "image"),
        ("llava_onevision", "static", "fp32", "divprune", "tile"),
        ("llava_onevision", "decomposed", "vision=fp16,language=int4", "uniform", "image"),
    ],
)
def test_dialects_and_precisions_verify(
    family: str,
    dialect: str,
    precision: str,
    selector: str,
    per: str,
    folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    plan = plan_of(
        folder(family), 7, dialect=dialect, precision=precision, selector=selector, per=per, signals="all"
    )
    assert failures(plan, export(plan, tmp_path / "bundle").folder) == set()


@every_family
def test_calibrated_int4_verifies(
    family: str, folder: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    plan = calibrated(plan_of(folder(family), 7, precision="int4", per="tile"), photos)
    assert len(plan.moments) == 3 * 7
    made = export(plan, tmp_path / "bundle")
    assert made.manifest.calibrated
    assert failures(plan, made.folder) == set()


@pytest.mark.parametrize(
    ("selector", "per"), [("divprune", "tile"), ("visionzip", "tile"), ("dart", "image")]
)
def test_calibration_reads_what_the_runtime_reads(
    selector: str, per: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from divprune_edge import Pipeline

    plan = plan_of(folder("llava_next"), 7, selector=selector, per=per)
    made = export(plan, tmp_path / "bundle")
    image = noise_image(70, 105, 3)
    pipeline = Pipeline(made.folder, threads=1)
    (read,) = pipeline.vision.read([image])
    graphs = [open_graph(made.folder / file) for file in ("vision_encoder.onnx", "assemble.onnx")]
    wanted, _ = pruned_rows(plan, see(plan, *graphs, read, plan.signals))
    seen = pipeline.vision.see([read], pipeline.selector)
    found = pipeline.backend.to_host(seen.tokens)[0, seen.rows]
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=1e-4)


@every_family
def test_a_merged_adapter_is_verified(family: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    targets = r".*(language_model.*(q_proj|down_proj)|vision_tower.*v_proj|multi_modal_projector.linear_2)"
    adapter, _ = make_adapter(folder(family), tmp_path / "adapter", r=3, lora_alpha=7, target_modules=targets)
    plan = merged_plan(folder(family), adapter)
    made = export(plan, tmp_path / "bundle")
    assert failures(plan, made.folder) == set()
    assert made.manifest.source.adapter is not None


@pytest.mark.parametrize("layers", [None, 2])
def test_a_truncated_run_verifies_them_too(
    layers: int | None, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = plan_of(folder("llava_next"))
    assert failures(plan, export(plan, tmp_path / "bundle").folder, layers=layers) == set()


def test_the_command_line_exports_tile_by_tile(folder: Callable[[str], Path], tmp_path: Path) -> None:
    options = ["--model", str(folder("llava_next")), "--keep", "5", "--output", str(tmp_path / "bundle")]
    assert command("llava", *options, "--per-tile") == 0
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["verification"]["status"] == "verified"
    assert (manifest["assemble"]["per"], manifest["assemble"]["rows"]) == ("tile", 30)
    names = {(check["stage"], check["name"]) for check in manifest["verification"]["checks"]}
    assert ("vision", "rows of an image") in names


# --- refusals --------------------------------------------------------------------------------------------------


def test_tile_by_tile_without_tiles_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refused("per-tile-without-tiles", "--per-tile", "tiny"):
        plan_of(checkpoint("plain"), per="tile")
    options = ["--model", str(checkpoint("plain")), "--output", str(tmp_path / "bundle"), "--per-tile"]
    assert_told(command("llava", *options), capsys.readouterr().err, "per-tile-without-tiles", "--per-tile")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("per", "most"), [("image", 135), ("tile", 30)])
def test_budgets_are_of_what_a_selector_picks_from(
    per: str, most: int, folder: Callable[[str], Path]
) -> None:
    plan = plan_of(folder("llava_next"), None, prune="0.9", per=per)
    assert (plan.candidates, plan.keep) == (most, {135: 14, 30: 3}[most])
    assert plan_of(folder("llava_next"), most, per=per).keep == most
    with refused("keep-out-of-range", most + 1, most):
        plan_of(folder("llava_next"), most + 1, per=per)


Edit = Callable[[Path], None]


def config(**fields: Any) -> Edit:
    return lambda folder: edit_json(folder / "config.json", lambda data: data.update(fields))


def processor(**fields: Any) -> Edit:
    return lambda folder: edit_json(folder / "preprocessor_config.json", lambda data: data.update(fields))


def weights(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return edit


NEWLINE = "model.image_newline"
REFUSALS: dict[str, tuple[str, Edit, str, tuple[object, ...]]] = {
    "grids of no whole tiles": (
        "llava_next",
        config(image_grid_pinpoints=[[35, 72]]),
        "config-unsupported",
        ("35 x 72", "35 x 35"),
    ),
    "grids of the processor's own": (
        "llava_next",
        processor(image_grid_pinpoints=[[35, 70]]),
        "image-processor-unsupported",
        ("[[35, 70]]", "image_grid_pinpoints"),
    ),
    "the class token kept": (
        "llava_next",
        config(vision_feature_select_strategy="full"),
        "config-inconsistent",
        ("26 tokens", "5 x 5"),
    ),
    "a patch dropped": (
        "llava_onevision",
        config(vision_feature_select_strategy="default"),
        "config-inconsistent",
        ("24 tokens", "5 x 5"),
    ),
    "another processor": (
        "llava_onevision",
        processor(image_processor_type="SiglipImageProcessor"),
        "image-processor-unsupported",
        ("'SiglipImageProcessor'", "LlavaOnevision"),
    ),
    "another aspect ratio": (
        "llava_onevision",
        config(vision_aspect_ratio="pad"),
        "config-unsupported",
        ("'pad'", "'anyres_max_'"),
    ),
    "no newline": ("llava_next", weights(lambda w: w.pop(NEWLINE)), "weights-incomplete", (NEWLINE,)),
    "a newline of another width": (
        "llava_onevision",
        weights(lambda w: w.update({NEWLINE: w[NEWLINE][:-1]})),
        "weights-shape-unfit",
        (NEWLINE, "[63]", "[64]"),
    ),
    "a newline that is not finite": (
        "llava_next",
        weights(lambda w: w[NEWLINE].__setitem__(3, np.nan)),
        "weights-not-finite",
        (NEWLINE,),
    ),
    "no room for the rows": (
        "llava_next",
        lambda folder: edit_json(
            folder / "config.json", lambda data: data["text_config"].update(max_position_embeddings=20)
        ),
        "bundle-cannot-be-asked",
        (20,),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    family, edit, code, values = REFUSALS[name]
    copy = Path(shutil.copytree(folder(family), tmp_path / "tiny"))
    edit(copy)
    with refused(code, *values):
        export(plan_of(copy, 20), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_bundles_differ_in_nothing_but_what_was_asked(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The encoder and the language model do not depend on what a selector picks from."""
    bundles: list[Bundle] = [
        export(plan_of(folder("llava_next"), 5, per=per), tmp_path / per) for per in ("image", "tile")
    ]
    for file in ("vision_encoder.onnx", "language_model.onnx"):
        first, second = ((bundle.folder / file).read_bytes() for bundle in bundles)
        assert first == second
