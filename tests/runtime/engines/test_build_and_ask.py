"""``build`` and then ``ask``: what one writes is what the other opens, over fakes of the device and of TensorRT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exporting import export, plan_of
from fake_device import FakeDevice
from fake_tensorrt import World, install

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.engines import cuda

Command = Any
Here = Any
PICTURE = CHECKPOINT.parent / "picture.png"
QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo checkpoint in a dialect for TensorRT."""

    def make(dialect: str) -> Path:
        folder = tmp_path_factory.mktemp("exported") / dialect
        return export(plan_of(CHECKPOINT, 58, dialect=dialect, capacity=704), folder).folder

    return make


@pytest.fixture
def newer(here: Here, monkeypatch: pytest.MonkeyPatch) -> Here:
    """TensorRT 10.16: it takes the selector with its function, which the fake device can run."""
    here.world = World("10.16.2")
    install(here.world, monkeypatch)
    here.change(tensorrt="10.16.2")
    monkeypatch.setattr(cuda, "CudaDevice", lambda edition: FakeDevice())
    return here


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_the_same_answer_as_on_the_cpu(
    command: Command, newer: Here, exported: Callable[[str], Path], dialect: str
) -> None:
    bundle = exported(dialect)
    built = command("build", bundle, "--selector", "all,none")
    assert built.code == 0, built.err
    (language,) = (plan for plan in newer.world.built if plan["graph"].endswith("language_model.onnx"))
    assert language["extra_memory"] == [0, 0], "both profiles use one copy of the weights"
    split = language["decomposable"]
    assert (bool(split), all(split)) == (dialect == "static", True), "attention may take several kernels"
    for selector in ("divprune-58", "none"):
        answers = []
        for backend in ("cpu", "tensorrt"):
            asked = ("ask", bundle, QUESTION, "--image", PICTURE, "--selector", selector, "--max-tokens", 8)
            done = command(*asked, "--ignore-eos", "--backend", backend, "--json")
            assert done.code == 0, done.err
            answers.append(json.loads(done.out))
        cpu, tensorrt = answers
        assert tensorrt["token_ids"] == cpu["token_ids"]
        assert tensorrt["kept_indices"] == cpu["kept_indices"]
        assert "tensorrt" in tensorrt["backend"]
    assert newer.world.deserialized == 3, "TensorRT itself read plans in the builder alone"


def test_engines_that_do_not_fit_are_not_loaded(
    command: Command, newer: Here, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported("static")
    ask = ("ask", bundle, QUESTION, "--image", PICTURE, "--backend", "tensorrt")
    none = command(*ask)
    assert (none.code, none.out) == (2, "")
    assert f"has no engines: build them on this device with 'python -m runtime build {bundle}'" in none.err
    assert command("build", bundle).code == 0

    def load(*_: object) -> None:
        pytest.fail("a plan was handed to the device")

    monkeypatch.setattr(FakeDevice, "load", load)
    (plan,) = bundle.glob("engines/*/vision_encoder.plan")
    whole = plan.read_bytes()
    for damage in (whole[:-1], whole[:-1] + b"?"):
        plan.write_bytes(damage)
        refused = command(*ask)
        assert (refused.code, refused.out) == (2, "")
        assert f"'{plan}'" in refused.err
        assert len(refused.err.splitlines()) == 1
    plan.write_bytes(whole)
    newer.change(sms=(90,))
    refused = command(*ask)
    assert refused.code == 2
    assert "were built with sm_87, but this is sm_90" in refused.err
