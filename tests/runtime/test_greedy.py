"""Bundles whose language model says the next id: the same answers, and its logits stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import same
from exporting import export, plan_of
from fake_device import FakeDevice, FakeEngines
from raising import refused

import divprune_edge.runtime.pipeline as pipelines
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends.session import Prediction
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.sampling import Sampler

QUESTIONS = ("what color is the circle?", "is there a square above the red circle?")
FREE = {"max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module", params=list(DIALECTS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pipeline, Pipeline]:
    """One bundle that says next ids and one that does not."""
    folder = tmp_path_factory.mktemp("bundles")
    options = {"capacity": 704} if DIALECTS[request.param].for_tensorrt else {}
    found = []
    for greedy in (True, False):
        plan = plan_of(CHECKPOINT, 58, dialect=request.param, greedy=greedy, **options)
        found.append(Pipeline(export(plan, folder / str(greedy)).folder, threads=1))
    return found[0], found[1]


def all_same(found: list[Answer], wanted: list[Answer]) -> None:
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


def read_logits(monkeypatch: pytest.MonkeyPatch) -> list[Prediction]:
    """Return a list of the predictions whose logits are read from now on."""
    read: list[Prediction] = []
    logits = Prediction.logits.fget
    monkeypatch.setattr(Prediction, "logits", property(lambda s: (read.append(s), logits(s))[1]))
    return read


def test_answers_are_the_same_without_the_logits(
    pair: tuple[Pipeline, Pipeline], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = pair
    wanted = [other.ask(image, question, **FREE) for question in QUESTIONS]
    both = other.ask_batch([(image, question) for question in QUESTIONS], **FREE)
    read = read_logits(monkeypatch)
    all_same([ours.ask(image, question, **FREE) for question in QUESTIONS], wanted)
    all_same(ours.ask_batch([(image, question) for question in QUESTIONS], **FREE), both)
    chat = ours.chat(image)
    for question in QUESTIONS:
        chat.ask(question, max_tokens=3)
    assert read == []


@pytest.mark.parametrize("options", [{"temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.4}])
def test_other_sampling_reads_them(
    pair: tuple[Pipeline, Pipeline], image: Path, options: dict[str, Any]
) -> None:
    ours, other = pair
    all_same(
        [ours.ask(image, QUESTIONS[0], **FREE, **options)],
        [other.ask(image, QUESTIONS[0], **FREE, **options)],
    )
    asked = [(image, question) for question in QUESTIONS]
    all_same(ours.ask_batch(asked, **FREE, **options), other.ask_batch(asked, **FREE, **options))


def test_an_engine_says_it_as_well(
    pair: tuple[Pipeline, Pipeline], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight bytes a step leave the device, captured or not; what samples otherwise gets the logits."""
    ours, _ = pair
    bundle = ours.bundle
    if not DIALECTS[bundle.manifest.language_model.dialect].for_tensorrt:
        pytest.skip("no engine is built of this dialect")
    device = FakeDevice()
    with monkeypatch.context() as patch:
        backend = TensorRtBackend(bundle, device, FakeEngines(bundle))
        patch.setattr(pipelines, "open_backend", lambda *_: backend)
        engines = Pipeline(Bundle.open(bundle.path), backend="tensorrt")
    for options in ({}, {"repetition_penalty": 1.4}):
        device.copies.clear()
        found = [engines.ask(image, question, **FREE, **options) for question in QUESTIONS]
        all_same(found, [ours.ask(image, question, **FREE, **options) for question in QUESTIONS])
        logits = 4 * bundle.manifest.language_model.vocabulary
        steps = sum(len(one.token_ids) for one in found)
        assert device.copies.count(("download", 8)) == steps
        assert device.copies.count(("download", logits)) == (steps if options else 0)


def test_the_host_looks_where_no_number_is_the_largest() -> None:
    broken = Prediction(None, lambda: np.array([0, np.nan, 1], np.float32))
    with refused("logits-not-finite"):
        Sampler().next(broken)
    sampler = Sampler(repetition_penalty=2.0)
    assert sampler.next(Prediction(0, lambda: np.array([3, 2, 1], np.float32))) == 0
    assert sampler.next(Prediction(0, lambda: np.array([3, 2, 1], np.float32))) == 1
