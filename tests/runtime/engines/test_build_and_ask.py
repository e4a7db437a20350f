"""``build`` and then ``ask``: engines that TensorRT-RTX really builds; a FAKE device runs their graphs instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bundles import refresh
from exporting import export, plan_of
from fake_device import FakeDevice
from plugins_emulation import EMULATED, compile_emulated, write_library
from raising import assert_told

from divprune_edge.manifest import read_manifest
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.plugins import abi
from divprune_edge.plugins.abi import DTYPES, Problem
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.engines import cuda
from divprune_edge.runtime.engines.device import aligned

Command = Any
Here = Any
IMAGE = CHECKPOINT.parent / "picture.png"
QUESTION = "What colour is the circle?"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeDevice]:
    """Make the device on which a bundle is run."""

    def make(bundle: Path, **options: Any) -> FakeDevice:
        made = FakeDevice(bundle=bundle, **options)
        monkeypatch.setattr(cuda, "CudaDevice", lambda edition: made)
        return made

    return make


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels' own source, run thread by thread."""
    return abi.load(compile_emulated(tmp_path_factory.mktemp("emulated"), EMULATED[0]))


def bundle_for(
    edition: Edition, here: Here, exported: Callable[[str], Path], dialect: str, folder: Path
) -> Path:
    """Return a bundle and make the device one that runs its dialect."""
    bundle = Path(shutil.copytree(exported(dialect), folder / dialect))
    refresh(bundle, read_manifest(bundle), target="rtx" if edition is TENSORRT_RTX else None)
    if edition is TENSORRT and dialect == "static":
        here.update("10.16.2")
    return bundle


def answer_of(command: Command, bundle: Path, backend: str, *more: object) -> Any:
    asked = ("ask", bundle, QUESTION, "--image", IMAGE, "--max-tokens", 8, "--ignore-eos", "--json")
    done = command(*asked, "--backend", backend, *more)
    assert done.code == 0, done.err
    return json.loads(done.out) | {"err": done.err}


def same(answer: Any, wanted: Any) -> None:
    assert answer["token_ids"] == wanted["token_ids"]
    assert answer["kept_indices"] == wanted["kept_indices"]


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_the_same_answer_as_on_the_cpu(
    command: Command,
    here: Here,
    exported: Callable[[str], Path],
    edition: Edition,
    dialect: str,
    device: Callable[..., FakeDevice],
    tmp_path: Path,
) -> None:
    bundle = bundle_for(edition, here, exported, dialect, tmp_path)
    built = command("build", bundle, "--selector", "divprune-58,none")
    assert built.code == 0, built.err
    run = device(bundle)
    for selector in ("divprune-58", "none"):
        cpu, ours = (
            answer_of(command, bundle, backend, "--selector", selector) for backend in ("cpu", edition.name)
        )
        same(ours, cpu)
        assert ours["backend"] == edition.name
    assert run.counts["load divprune-58"] == 1
    if edition is TENSORRT:
        assert here.world.deserialized == 3, "TensorRT itself read plans in the builder alone"


@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_a_chain_is_an_engine_for_each_of_its_graphs(
    command: Command, here: Here, edition: Edition, device: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    """All of them are loaded once, whatever selector asks; another selector's build has them as they are."""
    plan = plan_of(CHECKPOINT, 58, schedule="pyramiddrop", dialect="decomposed")
    bundle = export(plan, tmp_path / "bundle").folder
    refresh(bundle, read_manifest(bundle), target="rtx" if edition is TENSORRT_RTX else None)
    built = command("build", bundle)
    assert built.code == 0, built.err
    assert "(6 of 6) language_model.3" in built.err
    run = device(bundle)
    same(answer_of(command, bundle, edition.name), answer_of(command, bundle, "cpu"))
    assert [run.counts[f"load language_model.{i}"] for i in range(5)] == [1, 1, 1, 1, 0]
    again = command("build", bundle, "--selector", "none")
    assert again.code == 0, again.err


def test_the_selectors_loop_says_that_it_is_slow(
    command: Command, built: Path, device: Callable[..., FakeDevice], caplog: pytest.LogCaptureFixture
) -> None:
    run = device(built)
    same(answer_of(command, built, "tensorrt-rtx"), answer_of(command, built, "cpu"))
    assert [line for line in caplog.messages if "loop of TensorRT-RTX, which is many times slower" in line]
    assert (run.counts["load divprune-58"], run.counts["max_min"]) == (1, 0)


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_the_kernel_between_the_engines(
    command: Command,
    here: Here,
    exported: Callable[[str], Path],
    dialect: str,
    device: Callable[..., FakeDevice],
    emulated: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own source, emulated, in the place of the selector's engine, which is not loaded."""
    bundle = bundle_for(TENSORRT_RTX, here, exported, dialect, tmp_path)
    assert command("build", bundle).code == 0
    write_library(here.library)
    run = device(bundle, library=emulated)
    same(answer_of(command, bundle, "tensorrt-rtx"), answer_of(command, bundle, "cpu"))
    assert caplog.messages == []
    assert run.counts["max_min"] == 1
    assert [name for name in run.counts if name.startswith("load ")] == [
        "load vision_encoder",
        "load language_model",
    ]


def test_the_kernels_workspace_is_asked_for(
    command: Command,
    here: Here,
    built: Path,
    device: Callable[..., FakeDevice],
    emulated: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the selection works in is part of the sum that has to fit, before anything is allocated."""
    asked_for = []

    def require(backend: TensorRtBackend, needed: dict[str, int]) -> None:
        assert run.counts["allocations"] == 0
        asked_for.append(needed["tensors between the engines"])

    monkeypatch.setattr(TensorRtBackend, "_require", require)
    for kernel in (False, True):
        if kernel:
            write_library(here.library)
        run = device(built, library=emulated)
        answer_of(command, built, "tensorrt-rtx")
    vision = read_manifest(built).vision_encoder
    sizes = Problem(1, vision.tokens, vision.width, 58, DTYPES["float16"], 0, 0)
    assert asked_for[1] - asked_for[0] == aligned(abi.workspace_bytes(emulated, sizes)) > 0


def test_the_kernel_picks_what_the_reference_picks(built: Path, emulated: Any) -> None:
    """The fake device's two ways of doing what the kernel does agree."""
    picked = []
    for library in (None, emulated):
        run = FakeDevice(library=library)
        sizes = Problem(1, 576, 64, 58, DTYPES["float32"], 0, 0)
        tokens = np.random.default_rng(0).standard_normal((576, 64)).astype(np.float32)
        places = [run.allocate(size) for size in (tokens.nbytes, 576, 58 * 256, 58 * 8)]
        run.at(places[0].address, tokens.nbytes, "device")[:] = tokens.view(np.uint8).reshape(-1)
        run.at(places[1].address, 576, "device")[:] = np.arange(576) % 3 != 0
        workspace = run.allocate(run.max_min_bytes(sizes))
        run.max_min(sizes, workspace, *(place.address for place in places))
        run.synchronize()
        picked.append(run.at(places[3].address, 58 * 8, "device").view(np.int64).copy())
    assert np.array_equal(*picked)


@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_engines_that_do_not_fit_are_not_loaded(
    command: Command, here: Here, edition: Edition, built: Path, device: Callable[..., FakeDevice]
) -> None:
    run = device(built)
    ask = ("ask", built, QUESTION, "--image", IMAGE, "--backend", edition.name)
    (plan,) = built.glob("engines/*/vision_encoder.plan")
    whole = plan.read_bytes()
    for damage in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        plan.write_bytes(damage)
        refused = command(*ask)
        assert_told(refused.code, refused.err, "engines-file-changed", f"'{plan}'")
        assert refused.out == ""
    plan.write_bytes(whole)
    here.change(sms=(90,))
    refused = command(*ask)
    assert_told(refused.code, refused.err, "engines-unfit", "sm_90")
    shutil.rmtree(built / "engines")
    none = command(*ask)
    where = "on this device" if edition is TENSORRT else "for TensorRT-RTX"
    assert_told(none.code, none.err, "engines-missing", where, f"-m runtime build {built}'")
    assert none.out == ""
    assert not [name for name in run.counts if name.startswith("load ")], "no plan was handed to the device"


def test_a_bundle_for_an_rtx_card_is_not_tensorrts(command: Command, here: Here, bundle: Path) -> None:
    refused = command("ask", bundle, QUESTION, "--image", IMAGE, "--backend", "tensorrt")
    told = (f"'{bundle}'", "GeForce RTX 4090 24GB", "--backend tensorrt-rtx")
    assert_told(refused.code, refused.err, "backend-with-target", *told)
    assert (refused.out, refused.err.count("\n")) == ("", 1)
