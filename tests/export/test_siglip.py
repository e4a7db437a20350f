"""A tower without a class token: what exports, in every dialect and precision, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import SIGLIP, SIGLIP_VARIATIONS, make_checkpoint
from exporting import Bundle, export, plan_of
from raising import refused

from divprune_edge.export.add_selector import add_selector, add_selectors, left_out
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.verify import verify_bundle
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.signals import CLASS_TOKEN, SIGNALS
from divprune_edge.models.targets import TARGETS

SERVED = [name for name, selector in SELECTORS.items() if not set(selector.signals) & set(CLASS_TOKEN)]
REFUSED = [name for name in SELECTORS if name not in SERVED]
GIVEN = [name for name in SIGNALS if name not in CLASS_TOKEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with heads of 16 and rows that divide into blocks, a tied Qwen2 behind its tower."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    layout = SIGLIP_VARIATIONS["siglip, layout of LLaVA-Interleave"]
    return make_checkpoint(
        tmp_path_factory.mktemp("siglip") / "tiny",
        **{
            **layout,
            "text": {**layout["text"], **sizes, "num_key_value_heads": 2},
            "vision": {**layout["vision"], **sizes, "num_attention_heads": 2},
        },
    )


@pytest.fixture(scope="module")
def exported(folder: Path) -> Bundle:
    """Return its bundle with all signals that it has; nobody may write to it."""
    return export(plan_of(folder, signals="all"), folder.parent / "bundle")


@pytest.mark.parametrize(
    ("dialect", "precision"),
    [
        ("portable", "fp16"),
        ("portable", "int8"),
        ("portable", "int4"),
        ("portable", "vision=fp32,language=int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int4"),
        ("static", "fp32"),
        ("static", "int4"),
        ("decomposed", "fp16"),
        ("decomposed", "vision=fp16,language=int4"),
    ],
)
def test_dialects_and_precisions_verify(folder: Path, tmp_path: Path, dialect: str, precision: str) -> None:
    plan = plan_of(folder, dialect=dialect, precision=precision, signals="all", selector="hiprune")
    bundle = export(plan, tmp_path / "bundle")
    checks = verify_bundle(plan, bundle.folder, lambda line: None).checks
    assert [check for check in checks if not check.passed] == []
    assert {f"signal {name}" for name in GIVEN} <= {check.name for check in checks}


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_the_check_for_a_target_knows_its_graphs(folder: Path, tmp_path: Path, dialect: str) -> None:
    plan = plan_of(folder, dialect=dialect, precision="fp16", signals="all")
    bundle = export(plan, tmp_path / "bundle")
    list(add_selectors(bundle.folder, "all", "7", force=False, verify=False))
    report = check_bundle(bundle.folder, TARGETS["thor" if dialect == "static" else "orin-nano-8gb"])
    assert report.findings == ()
    assert len(report.graphs) == 2 + 1 + len(SERVED)
    assert report.forecast is not None and report.forecast.fits


@pytest.mark.parametrize("name", REFUSED)
def test_a_selector_of_the_class_token_is_refused_by_name(folder: Path, exported: Bundle, name: str) -> None:
    with refused("signals-unavailable", f"'{name}'", "no class token", "divprune"):
        plan_of(folder, selector=name)
    with refused("signals-unavailable", f"'{name}'", "no class token", exported.folder):
        add_selector(exported.folder, name, keep=5, prune=None, force=False, verify=False)
    with refused("signals-unavailable", f"'{name}'", "no class token"):
        list(add_selectors(exported.folder, name, "5", force=False, verify=False))


@pytest.mark.parametrize("signal", CLASS_TOKEN)
def test_a_signal_of_the_class_token_is_refused_by_name(folder: Path, signal: str) -> None:
    with refused("signals-unavailable", signal, "no class token", ", ".join(GIVEN)):
        plan_of(folder, signals=f"keys,{signal}")


def test_all_selectors_are_those_that_it_serves(exported: Bundle, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    added = [entry.name for _, entry, _ in add_selectors(bundle, "all", "7", force=False, verify=True)]
    assert added == SERVED
    sentence = left_out(bundle, "all")
    assert sentence is not None
    assert sentence.startswith(f"Left out {', '.join(REFUSED)}: they need cls_attention, ")
    assert sentence.endswith("cannot give because it has no class token.")
    assert "--signals" not in sentence, "another export would not help"


def test_what_another_export_would_add_is_told_apart(folder: Path, tmp_path: Path) -> None:
    bundle = export(plan_of(folder), tmp_path / "bundle").folder
    added = [entry.name for _, entry, _ in add_selectors(bundle, "all", "7", force=False, verify=False)]
    assert added == [name for name in SERVED if not SELECTORS[name].signals]
    sentence = left_out(bundle, "all")
    assert sentence is not None
    assert (
        "no class token. Left out hiprune, fopru, fopru-row, vflowopt: they need attention_object" in sentence
    )
    assert "--signals all" in sentence
    with refused("signals-missing", "'hiprune'", "--signals all"):
        add_selector(bundle, "hiprune", keep=7, prune=None, force=False, verify=False)


def test_a_grid_without_its_first_patch_serves_what_needs_no_grid(tmp_path: Path) -> None:
    """24 of 25 patches: hiprune has no neighbours to go by."""
    folder = make_checkpoint(
        tmp_path / "tiny", tower=SIGLIP, llava={"vision_feature_select_strategy": "default"}
    )
    bundle = export(plan_of(folder, signals="all"), tmp_path / "bundle").folder
    added = [entry.name for _, entry, _ in add_selectors(bundle, "all", "7", force=False, verify=True)]
    assert added == [name for name in SERVED if not SELECTORS[name].raster]
    sentence = left_out(bundle, "all")
    assert sentence is not None and "Left out hiprune: hiprune needs a square grid" in sentence
    with refused("selector-needs-square-grid", 24):
        list(add_selectors(bundle, "hiprune", "7", force=False, verify=False))
