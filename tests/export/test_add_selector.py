"""Adding a selector touches neither the weights nor what is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import Bundle, export, images, open_session, plan_of, see
from raising import failed, refused

from divprune_edge.export.add_selector import add_selector, add_selectors, left_out
from divprune_edge.manifest import read_manifest
from divprune_edge.models.selectors.divprune import max_min_select


@pytest.fixture
def target(bundle: Callable[[], Bundle], tmp_path: Path) -> Path:
    return shutil.copytree(bundle().folder, tmp_path / "bundle")


def add(target: Path, **options: object) -> str:
    arguments = {"keep": None, "prune": None, "force": False, "verify": True, **options}
    _, entry, _ = add_selector(target, "divprune", **arguments)  # type: ignore[arg-type]
    return entry.id


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_another_budget(bundle: Callable[[], Bundle], target: Path) -> None:
    before = stamps(target)
    manifest, entry, checks = add_selector(
        target, "divprune", keep=None, prune="0.5", force=False, verify=True
    )
    assert (entry.id, entry.keep, entry.file) == ("divprune-12", 12, "selectors/divprune-12.onnx")
    assert checks
    assert all(check.passed for check in checks)
    after = stamps(target)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"selectors/divprune-12.onnx", "selectors/stripped/divprune-12.onnx"}
    assert read_manifest(target) == manifest
    assert [selector.id for selector in manifest.selectors] == ["divprune-9", "divprune-12"]
    assert manifest.default_selector == "divprune-9"
    exported = bundle()
    tokens = see(exported, images(exported))
    valid = tokens[..., 0] < float("inf")
    indices = open_session(target / entry.file).run(
        ["kept_indices"], {"visual_tokens": tokens, "valid": valid}
    )[0]
    assert indices[0].tolist() == max_min_select(tokens[0], valid[0], 12).tolist()


def test_many_without_signals(target: Path) -> None:
    """What needs none is added; what needs some is left out by name, with the reason."""
    added = [entry.id for _, entry, _ in add_selectors(target, "all", "4", force=False, verify=False)]
    assert "uniform-4" in added
    assert "vtc-cls-4" not in added
    sentence = left_out(target, "all")
    assert sentence is not None
    assert re.search(r"^Left out .*vtc-cls.*: they need cls_attention.* --signals all --output ", sentence)
    assert left_out(target, "uniform,divprune") is None
    only = left_out(target, "uniform,vtc-cls")
    assert only is not None
    assert only.startswith("Left out vtc-cls: it needs cls_attention_sum of the")
    assert [e.id for _, e, _ in add_selectors(target, "vtc-cls,random", "3", force=False, verify=False)] == [
        "random-3"
    ]
    with refused("signals-missing", "'vtc-cls'", "cls_attention_sum"):
        list(add_selectors(target, "vtc-cls", "4", force=False, verify=False))


def test_all_tokens(target: Path) -> None:
    assert add(target, keep=25) == "divprune-25"


def test_it_is_there_already(target: Path) -> None:
    with refused("selector-exists", "divprune-9", "--force"):
        add(target, keep=9)
    assert add(target, keep=9, force=True) == "divprune-9"
    assert [selector.id for selector in read_manifest(target).selectors] == ["divprune-9"]


@pytest.mark.parametrize(
    ("options", "code", "given"),
    [
        ({"keep": 26}, "keep-out-of-range", "--keep 26"),
        ({"keep": 0}, "keep-out-of-range", "--keep 0"),
        ({"prune": "1.0"}, "prune-out-of-range", "--prune 1.0"),
    ],
)
def test_refusals_change_nothing(target: Path, options: dict[str, object], code: str, given: str) -> None:
    before = stamps(target)
    with refused(code, given):
        add(target, **options)
    assert stamps(target) == before


def test_unknown_selectors_and_bundles(target: Path, tmp_path: Path) -> None:
    options = {"keep": 3, "prune": None, "force": False, "verify": False}
    with refused("selector-unknown", "'divprum'", "'divprune'"):
        add_selector(target, "divprum", **options)  # type: ignore[arg-type]
    with refused("bundle-missing"):
        add_selector(tmp_path / "nowhere", "divprune", **options)  # type: ignore[arg-type]
    with refused("bundle-without-manifest", "manifest.json"):
        add_selector(tmp_path, "divprune", **options)  # type: ignore[arg-type]


def test_a_budget_that_a_cache_of_fixed_size_cannot_hold(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = plan_of(checkpoint("plain"), keep=9, dialect="decomposed", capacity=80)
    target = export(plan, tmp_path / "bundle").folder
    assert add(target, keep=16, verify=False) == "divprune-16"
    for addition in (
        lambda: add(target, keep=17),
        lambda: list(add_selectors(target, "uniform", "3,17", force=False, verify=False)),
    ):
        with refused("capacity-too-small", 80, 17, 81, "--capacity"):
            addition()
    assert [selector.id for selector in read_manifest(target).selectors] == ["divprune-9", "divprune-16"]


def test_a_bundle_that_cannot_be_written(target: Path) -> None:
    manifest = read_manifest(target)
    (target / "selectors").rename(target / "gone")
    (target / "selectors").write_text("a file in the folder's place")
    with refused("bundle-unwritable"):
        add(target, keep=5)
    assert read_manifest(target) == manifest
    assert not list(target.glob(".*"))


def test_a_wrong_graph_is_not_added(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of a budget of 7 under the name of 8: its indices are too few."""
    import divprune_edge.export.selector as module

    build = module.build_selector
    monkeypatch.setattr(
        module,
        "build_selector",
        lambda selector, n, keep, width, dtype, **options: build(selector, n, 7, width, dtype, **options),
    )
    before, manifest = stamps(target), read_manifest(target)
    with failed("verification-failed"):
        add(target, keep=8)
    assert stamps(target) == before
    assert read_manifest(target) == manifest
