"""Device, bundle and target that do not fit together are told apart before anything is built."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh
from raising import refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.targets import find_target
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.engines.target import check_backend, facts_to_build_for

RTX = "1.7.1.116"
Build = Any
Here = Any


@pytest.fixture
def edition() -> Edition:
    return TENSORRT


@pytest.fixture(autouse=True)
def _nothing_is_built(here: Here, bundle: Path, request: pytest.FixtureRequest) -> Any:
    yield
    if "fits" not in request.node.name:
        assert here.world.built == []
        assert not list(bundle.parent.glob("*/engines"))


@pytest.mark.parametrize("target", [None, "agx-orin-64gb", "orin-nano-8gb"])
def test_what_fits_is_built(build: Build, here: Here, bundle: Path, target: str | None) -> None:
    refresh(bundle, read_manifest(bundle), target="agx-orin-64gb")
    assert build(bundle, target=target, selector="none").folder.is_dir()


def test_another_gpu_than_the_target(build: Build, here: Here, tmp_path: Path) -> None:
    here.change(sms=(90,))
    there = ("--target agx-orin-64gb", "Jetson AGX Orin 64GB, JetPack 6.2", "sm_87, TensorRT 10.3")
    command = "'python -m export llava --model tiny/llava --target NAME'"
    with refused("target-mismatch", *there, "sm_90 with TensorRT 10.3.0", command):
        build(make_bundle(tmp_path / "made-up"), target="agx-orin-64gb")


def test_another_tensorrt_than_the_target(build: Build, bundle: Path) -> None:
    with refused("target-mismatch", "sm_87, TensorRT 10.16", "sm_87 with TensorRT 10.3.0"):
        build(bundle, target="agx-orin-64gb-jp7")


def test_a_bundle_for_another_device(build: Build, here: Here, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "made-for", target="h100")
    with refused("target-mismatch", folder, "H100", "sm_90", "sm_87"):
        build(folder)
    here.change(sms=(90,), tensorrt="10.16.2")
    with refused("target-mismatch", "--target thor"):
        build(folder, target="thor")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_without_tensorrt(build: Build, bundle: Path, tmp_path: Path, target: str) -> None:
    with refused("target-without-tensorrt", f"--target {target}"):
        build(bundle, target=target)
    folder = make_bundle(tmp_path / "made-for", target=target)
    with refused("target-without-tensorrt", folder):
        build(folder)


def test_a_target_that_is_not_known(build: Build, bundle: Path) -> None:
    with refused("target-unknown", "agx-orin"):
        build(bundle, target="agx-orin")


def test_a_dialect_for_another_runtime(build: Build, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "portable", "portable")
    needed = ("'static'", "TensorRT 10.15", "'decomposed'", "'--dialect decomposed'")
    command = "'python -m export llava --model tiny/llava --target NAME'"
    with refused("dialect-not-for-tensorrt", f"'{folder}'", "'portable'", *needed, command):
        build(folder)


@pytest.mark.parametrize("version", ["10.3.0", "10.14.1"])
def test_a_dialect_for_a_newer_tensorrt(build: Build, here: Here, tmp_path: Path, version: str) -> None:
    folder = make_bundle(tmp_path / "static", "static")
    here.change(tensorrt=version)
    with refused("dialect-needs-newer-tensorrt", "static", "TensorRT 10.15", f"TensorRT {version}"):
        build(folder)


def test_a_dialect_fits_the_tensorrt_it_needs(
    build: Build, here: Here, exported: Any, tmp_path: Path
) -> None:
    here.update("10.16.2")
    folder = Path(shutil.copytree(exported("static"), tmp_path / "static"))
    assert build(folder, selector="none").folder.is_dir()


def assert_refused(folder: Path, asked: str | None, code: str, *values: object) -> None:
    """Check that nothing is built of a bundle for a target."""
    with refused(code, *values):
        facts_to_build_for(read_manifest(folder), folder, asked)


def test_more_gpus_than_a_bundle_was_made_for(here: Here, tmp_path: Path) -> None:
    """What it holds was chosen for one card: engines for others are another export's."""
    folder = make_bundle(tmp_path / "made-for", target="rtx4090")
    sides = ("GeForce RTX 4090 24GB", "sm_89, TensorRT-RTX 1.7", f"sm_120 or sm_121 with TensorRT-RTX {RTX}")
    command = "'python -m export llava --model tiny/llava --target NAME'"
    assert_refused(folder, "rtx", "target-mismatch", f"'{folder}'", *sides, command)


def test_fewer_gpus_than_a_bundle_was_made_for_fit(here: Here, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "made-for", target="rtx")
    for asked, sms in (("dgx-spark", (121,)), (None, (80, 86, 89, 120, 121))):
        facts = facts_to_build_for(read_manifest(folder), folder, asked)
        assert (facts.edition, facts.sms, facts.cuda) == (TENSORRT_RTX, sms, None)


def test_the_other_edition_than_a_bundle_was_made_for(here: Here, tmp_path: Path) -> None:
    rtx, h100 = (make_bundle(tmp_path / name, target=name) for name in ("rtx4090", "h100"))
    sides = ("GeForce RTX 4090 24GB", "TensorRT-RTX 1.7", "H100 80GB SXM", "TensorRT 10.16")
    command = "'python -m export llava --model tiny/llava --target h100'"
    assert_refused(rtx, "h100", "target-mismatch", f"'{rtx}'", *sides, command)
    assert_refused(h100, "rtx", "target-mismatch", f"'{h100}'", "H100 80GB SXM", "TensorRT 10.16")


def test_a_version_of_tensorrt_rtx_that_the_target_does_not_have(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.8.0.1"))
    sides = ("sm_89, TensorRT-RTX 1.7", "sm_89 with TensorRT-RTX 1.8.0.1")
    command = "'pip install \"tensorrt-rtx-cu13==1.7.*\"'"
    folder = make_bundle(tmp_path / "made-for", target="rtx4090")
    assert_refused(folder, None, "target-mismatch", *sides, command)


@pytest.mark.parametrize(
    ("asked", "made_for"), [("cpu", None), ("cuda", None), ("cpu", "rtx4090"), (None, "cuda")]
)
def test_a_target_without_tensorrt_is_told_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, made_for: str | None
) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    folder = make_bundle(tmp_path / "made-for", target=made_for)
    assert_refused(folder, asked, "target-without-tensorrt", find_target(asked or made_for or "").title)


def test_a_targets_edition_runs_its_bundles(tmp_path: Path) -> None:
    assert find_target("rtx").edition is TENSORRT_RTX
    assert find_target("thor").edition is TENSORRT
    assert find_target("cpu").edition is None
    for name, mine, other in (("rtx4090", TENSORRT_RTX, TENSORRT), ("thor", TENSORRT, TENSORRT_RTX)):
        folder = make_bundle(tmp_path / name, target=name)
        manifest = read_manifest(folder)
        check_backend(manifest, folder, mine)
        with refused("backend-with-target", mine.title, f"--backend {mine.name}"):
            check_backend(manifest, folder, other)
    for target in (None, "cpu"):
        folder = make_bundle(tmp_path / str(target), target=target)
        for edition in (TENSORRT, TENSORRT_RTX):
            check_backend(read_manifest(folder), folder, edition)
