"""Device, bundle and target that do not fit together are told apart before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle

from divprune_edge.errors import UserError

Build = Any
Here = Any


@pytest.fixture(autouse=True)
def _nothing_is_built(here: Here, bundle: Path, request: pytest.FixtureRequest) -> Any:
    yield
    if "fits" not in request.node.name:
        assert here.world.built == []
        assert not list(bundle.parent.glob("*/engines"))


@pytest.mark.parametrize("target", [None, "agx-orin-64gb", "orin-nano-8gb"])
def test_what_fits_is_built(build: Build, here: Here, tmp_path: Path, target: str | None) -> None:
    folder = make_bundle(tmp_path / "made-for", target="agx-orin-64gb")
    assert build(folder, target=target).folder.is_dir()


def test_another_gpu_than_the_target(build: Build, here: Here, bundle: Path) -> None:
    here.change(sms=(90,))
    with pytest.raises(UserError) as error:
        build(bundle, target="agx-orin-64gb")
    assert str(error.value) == (
        "--target agx-orin-64gb is Jetson AGX Orin 64GB, JetPack 6.2 (sm_87, TensorRT 10.3), but this device is sm_90 "
        "with TensorRT 10.3.0: build on the target itself, or export for this device with 'python -m export llava "
        "--model tiny/llava --target NAME'."
    )


def test_another_tensorrt_than_the_target(build: Build, bundle: Path) -> None:
    with pytest.raises(
        UserError, match=r"sm_87, TensorRT 10\.16\), but this device is sm_87 with TensorRT 10\.3\.0"
    ):
        build(bundle, target="agx-orin-64gb-jp7")


def test_a_bundle_for_another_device(build: Build, here: Here, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "made-for", target="h100")
    with pytest.raises(
        UserError, match=rf"The target of '{folder}' is .*H100.* \(sm_90, .*but this device is sm_87"
    ):
        build(folder)
    here.change(sms=(90,), tensorrt="10.16.2")
    with pytest.raises(UserError, match="--target thor is"):
        build(folder, target="thor")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_without_tensorrt(build: Build, bundle: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(UserError, match=rf"--target {target} is .*, which does not run TensorRT: export for"):
        build(bundle, target=target)
    folder = make_bundle(tmp_path / "made-for", target=target)
    with pytest.raises(UserError, match=rf"The target of '{folder}' is .*, which does not run TensorRT"):
        build(folder)


def test_a_target_that_is_not_known(build: Build, bundle: Path) -> None:
    with pytest.raises(UserError, match="There is no target 'agx-orin'"):
        build(bundle, target="agx-orin")


def test_a_dialect_for_another_runtime(build: Build, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "portable", "portable")
    with pytest.raises(UserError) as error:
        build(folder)
    assert str(error.value) == (
        f"'{folder}' has its language model in dialect 'portable', but TensorRT needs 'static' (TensorRT 10.15 and "
        "newer) or 'decomposed': export it with 'python -m export llava --model tiny/llava --target NAME' or "
        "'--dialect decomposed'."
    )


@pytest.mark.parametrize("version", ["10.3.0", "10.14.1"])
def test_a_dialect_for_a_newer_tensorrt(build: Build, here: Here, tmp_path: Path, version: str) -> None:
    folder = make_bundle(tmp_path / "static", "static")
    here.change(tensorrt=version)
    with pytest.raises(
        UserError, match=rf"'static', which needs TensorRT 10\.15, but this is TensorRT {version}"
    ):
        build(folder)


def test_a_dialect_fits_the_tensorrt_it_needs(build: Build, here: Here, tmp_path: Path) -> None:
    here.change(tensorrt="10.16.2")
    assert build(make_bundle(tmp_path / "static", "static"), selector="uniform").folder.is_dir()
