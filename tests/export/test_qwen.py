"""Exports of Qwen2.5-VL and Qwen3-VL: dialects, precisions, selectors, calibration, adapters, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import make_adapter, merged_plan
from checkpoints import edit_json
from exporting import Bundle, export, failures, look, plan_of
from qwen_checkpoints import LEAST, MOST, QWEN, images_of, make_qwen_checkpoint
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.export.add_selector import add_selector, add_selectors, left_out
from divprune_edge.export.calibrate import calibrated
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.cost import PRESETS, show_cost
from divprune_edge.export.examples import pruned_rows
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.targets import TARGETS

SERVED = [name for name, selector in SELECTORS.items() if not selector.signals]
MERGING = [name for name in SERVED if SELECTORS[name].merge is not None]
REFUSED = [name for name in SELECTORS if name not in SERVED]
every_family = pytest.mark.parametrize("family", QWEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a family's checkpoint whose rows divide into blocks; four layers, three of them with features."""

    @cache
    def get(family: str) -> Path:
        return make_qwen_checkpoint(
            tmp_path_factory.mktemp(family) / "tiny",
            family=family,
            text={"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6},
            vision={"intermediate_size": 64}
            | ({"deepstack_visual_indexes": [0, 1, 2]} if family == "qwen3_vl" else {}),
        )

    return get


@pytest.fixture(scope="module")
def exported(
    folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """Return its bundle; nobody may write to it."""

    @cache
    def get(family: str) -> Bundle:
        return export(plan_of(folder(family)), tmp_path_factory.mktemp("bundle") / "tiny")

    return get


@every_family
@pytest.mark.parametrize(
    ("dialect", "precision"),
    [
        ("portable", "fp16"),
        ("portable", "int8"),
        ("portable", "int4"),
        ("portable", "vision=fp16,language=int4"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("onnxruntime", "int4"),
    ],
)
def test_dialects_and_precisions_verify_and_answer(
    family: str, dialect: str, precision: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = plan_of(folder(family), dialect=dialect, precision=precision)
    bundle = export(plan, tmp_path / "bundle")
    assert failures(plan, bundle.folder) == set()
    answer = Pipeline(bundle.folder, threads=1).ask(images_of([(70, 100), (9, 9)]), "what ?", max_tokens=3)
    assert answer.image_tokens == (9, 9)


@pytest.mark.parametrize(("family", "layers"), [("qwen3_vl", 5), ("qwen3_vl", 2), ("qwen2_5_vl", 2)])
def test_a_run_of_few_layers_has_one_of_each_kind(
    family: str, layers: int, exported: Callable[[str], Bundle]
) -> None:
    """The fifth layer is the first that follows no features of the tower."""
    bundle = exported(family)
    if family == "qwen3_vl" and layers == 2:
        with refused("memory-too-small", "0.0 GiB"):
            failures(bundle.plan, bundle.folder, layers=layers)
    else:
        assert failures(bundle.plan, bundle.folder, layers=layers) == set()


# --- selectors -------------------------------------------------------------------------------------------------


@every_family
def test_all_selectors_are_those_that_need_no_signal(
    family: str, exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(exported(family).folder, tmp_path / "bundle"))
    added = [entry.id for _, entry, _ in add_selectors(bundle, "all", "9,5", force=False, verify=True)]
    wanted = [name for name in SERVED if family == "qwen2_5_vl" or name not in MERGING]
    assert sorted([*added, "divprune-9"]) == sorted(f"{name}-{keep}" for name in wanted for keep in (9, 5))
    sentence = left_out(bundle, "all")
    assert sentence is not None
    assert all(name in sentence for name in SELECTORS if name not in wanted)
    images = images_of([(70, 100), (33, 120)])
    for name in added:
        answer = Pipeline(bundle, name, threads=1).ask(images, "what ?", max_tokens=2)
        keep = int(name.rpartition("-")[2])
        assert answer.image_tokens == (keep, keep)
        for part, count in zip(np.split(answer.kept_indices, 2), (54, 60), strict=True):
            assert (np.diff(part) > 0).all()
            assert part[-1] < count


@every_family
@pytest.mark.parametrize("name", REFUSED)
def test_a_selector_of_a_signal_is_refused_by_name(
    family: str, name: str, folder: Callable[[str], Path], exported: Callable[[str], Bundle]
) -> None:
    raster = "selector-needs-square-grid"
    code = raster if SELECTORS[name].raster else "signals-unavailable"
    with refused(code, name):
        plan_of(folder(family), selector=name)
    with refused("signals-unavailable", name):
        add_selector(exported(family).folder, name, keep=5, prune=None, force=False, verify=False)


@every_family
def test_a_selector_that_merges_is_refused_where_features_lie_behind_tokens(
    family: str,
    folder: Callable[[str], Path],
    exported: Callable[[str], Bundle],
    tmp_path: Path,
) -> None:
    """It would mix them up."""
    bundle = Path(shutil.copytree(exported(family).folder, tmp_path / "bundle"))
    if family == "qwen2_5_vl":
        assert plan_of(folder(family), selector="apet").selector.merge is not None
        return
    for name in MERGING:
        with refused("selector-merges", f"'{name}'"):
            plan_of(folder(family), selector=name)
        with refused("selector-merges", f"'{name}'"):
            add_selector(bundle, name, keep=5, prune=None, force=False, verify=False)
    assert [e.name for _, e, _ in add_selectors(bundle, "all", "5", force=False, verify=False)] == [
        name for name in SERVED if name not in MERGING
    ]


# --- calibration and adapters ----------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("numbering", ["original", "compact"])
def test_calibration_sees_what_is_asked(
    family: str, numbering: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for at, image in enumerate(images_of([(70, 100), (33, 120), (8, 8), (100, 47)])):
        image.save(tmp_path / f"{at}.png")
    plan = plan_of(folder(family), precision="vision=fp32,language=int4", numbering=numbering)
    found = calibrated(plan, tmp_path)
    assert len(found.moments) == 6 * 7
    bundle = export(found, tmp_path / "bundle")
    assert failures(found, bundle.folder) == set()
    other = calibrated(plan_of(folder(family), precision="int4", numbering="compact"), tmp_path).moments
    name = "model.language_model.layers.3.self_attn.o_proj.weight"
    assert np.allclose(found.moments[name], other[name]) == (numbering == "compact")


@every_family
def test_calibration_prunes_as_the_runtime_does(family: str, exported: Callable[[str], Bundle]) -> None:
    bundle = exported(family)
    (image,) = images_of([(77, 131)])
    tokens, kept = pruned_rows(bundle.plan, look(bundle, image))
    answer = Pipeline(bundle.folder, threads=1).ask(image, "what ?", max_tokens=1)
    assert kept.tolist() == answer.kept_indices.tolist()
    assert tokens.shape == (9, 64 * (1 + bundle.plan.spec.stacked))


@every_family
def test_a_merged_adapter_is_verified(family: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    of_tower = r"visual\.(blocks.*(qkv|attn\.proj)|merger.*(linear_fc1|mlp\.0))"
    targets = rf".*(language_model.*(q_proj|v_proj|down_proj)|{of_tower})"
    adapter, _ = make_adapter(folder(family), tmp_path / "adapter", r=3, lora_alpha=7, target_modules=targets)
    plan = merged_plan(folder(family), adapter)
    made = export(plan, tmp_path / "bundle")
    assert failures(plan, made.folder) == set()
    assert len(plan.checkpoint.touched) == 6 * 3 + 3 * 2 + 1


# --- what is said about it -------------------------------------------------------------------------------------


@every_family
def test_a_check_for_a_cpu_finds_nothing(family: str, exported: Callable[[str], Bundle]) -> None:
    report = check_bundle(exported(family).folder, TARGETS["cpu"])
    assert report.findings == ()
    assert [graph.file for graph in report.graphs][:2] == ["vision_encoder.onnx", "assemble.onnx"]


@every_family
def test_its_cost_is_told(
    family: str, folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    preset = [name for name, config in PRESETS.items() if config["model_type"] == family]
    for model in (str(folder(family)), *preset):
        show_cost(model, keep=None, prune="0.9", text_tokens=60)
        told = capsys.readouterr().out
        assert "end to end" in told
        if model in preset:
            assert "205 of 2048" in told


# --- refusals --------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(("most", "tokens"), [(LEAST, 49), (20, 63), (MOST, 109), (500, 500)])
def test_a_bound_on_pixels_bounds_tokens(
    family: str, most: int, tokens: int, folder: Callable[[str], Path]
) -> None:
    """Of an image 200 times as long as it is wide, more tokens are left than of others."""
    plan = plan_of(folder(family), 9, max_pixels=most * 64)
    patches = plan.preprocessing.patches
    assert patches is not None
    assert patches.max_pixels == most * 64
    assert plan.candidates == tokens


@every_family
def test_a_bound_on_pixels_out_of_range_is_refused(
    family: str, folder: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    for most, limit in (
        (LEAST * 64 - 1, LEAST * 64),
        (0, LEAST * 64),
        (64_000_001, 64_000_000),
        (10**15, 64_000_000),
    ):
        with refused("max-pixels-out-of-range", most, limit):
            plan_of(folder(family), max_pixels=most)
    with refused("max-pixels-without-sizes", 999):
        plan_of(checkpoint("plain"), max_pixels=999)


def processor(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "preprocessor_config.json", lambda data: data.update(fields))


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda data: data.update(fields))


def text(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda data: data["text_config"].update(fields))


def vision(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda data: data["vision_config"].update(fields))


OTHERS = ("qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_omni", "qwen3_omni_moe")
MISTAKES: dict[str, tuple[Callable[[Path], None], str, list[object]]] = {
    **{kind: (config(model_type=kind), "model-unsupported", [f"'{kind}'", "Qwen3-VL"]) for kind in OTHERS},
    "patches of the processor": (processor(patch_size=5), "image-processor-size-unfit", ["patch_size", 5, 4]),
    "merges of the processor": (processor(merge_size=3), "image-processor-size-unfit", ["merge_size", 3, 2]),
    "frames of the processor": (
        processor(temporal_patch_size=1),
        "image-processor-size-unfit",
        ["temporal_patch_size", 1, 2],
    ),
    "another processor": (
        processor(image_processor_type="CLIPImageProcessor"),
        "image-processor-unsupported",
        ["CLIPImageProcessor", "Qwen2VLImageProcessor"],
    ),
    "no resize": (processor(do_resize=False), "image-processor-unsupported", ["do_resize"]),
    "edges": (
        processor(size={"height": 3, "width": 3}),
        "image-processor-unsupported",
        ["height", "shortest_edge"],
    ),
    "bounds the other way": (
        processor(size={"shortest_edge": 4000, "longest_edge": 3000}),
        "image-processor-unsupported",
        [4000, 3000],
    ),
    "bounds that are no numbers": (
        processor(size={"shortest_edge": True, "longest_edge": 3000}),
        "image-processor-unsupported",
        ["True"],
    ),
    "sections that do not fit": (
        text(rope_parameters={"rope_type": "default", "mrope_section": [4, 4, 4]}),
        "config-inconsistent",
        ["[4, 4, 4]", 16],
    ),
    "two sections": (
        text(rope_parameters={"rope_type": "default", "mrope_section": [4, 4]}),
        "config-value-invalid",
        ["[4, 4]"],
    ),
    "scaled positions": (
        text(rope_parameters={"rope_type": "yarn", "factor": 4.0, "mrope_section": [4, 2, 2]}),
        "config-unsupported",
        ["'yarn'"],
    ),
    "another width": (vision(out_hidden_size=32), "config-inconsistent", [64, 32]),
}


@every_family
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_not_supported_is_refused_by_name(
    family: str, mistake: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    damage, code, values = MISTAKES[mistake]
    copy = Path(shutil.copytree(folder(family), tmp_path / "tiny"))
    damage(copy)
    with refused(code, *values):
        plan_of(copy)


def test_positions_that_a_dialect_cannot_place_are_refused(
    checkpoint: Callable[[str], Path], folder: Callable[[str], Path]
) -> None:
    with refused("dialect-positions", "--positions original", "onnxruntime", "portable"):
        plan_of(checkpoint("explicit head_dim"), dialect="onnxruntime", numbering="original")
    for numbering in ("original", "compact"):
        plan = plan_of(folder("qwen3_vl"), dialect="onnxruntime", numbering=numbering)
        assert plan.numbering == numbering
