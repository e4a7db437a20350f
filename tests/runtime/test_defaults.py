"""The checkpoint's decoding settings: used where asked, outranked by options, and never dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divprune_edge.manifest import GenerationDefaults
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.defaults import decoding_of
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.pipeline import Pipeline

QUESTION = "what color is the circle?"


@pytest.fixture
def stating(demo_bundle: Path) -> Callable[..., Bundle]:
    def build(**stated: Any) -> Bundle:
        bundle = Bundle.open(demo_bundle)
        prompt = bundle.manifest.prompt.model_copy(update={"generation": GenerationDefaults(**stated)})
        return Bundle(bundle.path, bundle.manifest.model_copy(update={"prompt": prompt}))

    return build


def decode(bundle: Bundle, **options: Any) -> Decoding:
    return decoding_of(bundle.manifest.prompt, options)


def test_only_where_asked(stating: Callable[..., Bundle]) -> None:
    bundle = stating(repetition_penalty=1.5, max_new_tokens=7, stop=("END",))
    assert decode(bundle) == Decoding()
    assert decode(bundle, checkpoint_defaults=True) == Decoding(7, repetition_penalty=1.5, stop=("END",))
    assert decode(bundle, checkpoint_defaults=True, max_tokens=9, stop=()).max_tokens == 9


def test_sampling_counts_where_the_checkpoint_samples(stating: Callable[..., Bundle]) -> None:
    settings = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert decode(stating(**settings), checkpoint_defaults=True) == Decoding()
    asked = decode(stating(do_sample=True, **settings), checkpoint_defaults=True, seed=3)
    assert asked == Decoding(**settings, seed=3)
    assert (
        decode(stating(do_sample=True, **settings), checkpoint_defaults=True, temperature=0.0).temperature
        == 0
    )
    # transformers' own defaults
    assert decode(stating(do_sample=True), checkpoint_defaults=True) == Decoding(temperature=1.0, top_k=50)


def test_what_cannot_be_done_is_named(
    stating: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = stating(unsupported={"num_beams": 4})
    decode(bundle)
    assert caplog.text == ""
    decode(bundle, checkpoint_defaults=True)
    assert "num_beams 4, which this runtime does not have" in caplog.text


def test_it_is_named_once_for_a_question(
    stating: Callable[..., Bundle], image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(stating(unsupported={"num_beams": 4}))
    pipeline.ask(image, QUESTION, checkpoint_defaults=True, max_tokens=2)
    assert caplog.text.count("num_beams 4") == 1


def test_in_the_python_api(stating: Callable[..., Bundle], image: Path) -> None:
    pipeline = Pipeline(stating(repetition_penalty=3.0, max_new_tokens=24))
    same = {"ignore_eos": True}
    expected = pipeline.ask(image, QUESTION, max_tokens=24, repetition_penalty=3.0, **same).token_ids
    assert pipeline.ask(image, QUESTION, checkpoint_defaults=True, **same).token_ids == expected
    batch = pipeline.ask_batch([(image, QUESTION)], checkpoint_defaults=True, **same)
    assert batch[0].token_ids == expected
    assert pipeline.ask(image, QUESTION, max_tokens=24, **same).token_ids != expected


def test_on_the_command_line(command: Any, demo_bundle: Path, image: Path, tmp_path: Path) -> None:
    """The demo's file says 16 new tokens."""
    asked = ["ask", demo_bundle, "--image", image, QUESTION, "--json", "--ignore-eos"]
    assert len(json.loads(command(*asked, "--checkpoint-defaults").out)["token_ids"]) == 16
    assert len(json.loads(command(*asked, "--checkpoint-defaults", "--max-tokens", 3).out)["token_ids"]) == 3
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": str(image), "question": QUESTION}))
    batch = command("batch", demo_bundle, tmp_path / "q.jsonl", "--ignore-eos", "--checkpoint-defaults")
    assert len(json.loads(batch.out)["token_ids"]) == 16


def test_info_shows_them(command: Any, demo_bundle: Path) -> None:
    shown = " ".join(command("info", demo_bundle).out.split())
    assert "max_new_tokens 16 (with --checkpoint-defaults)" in shown
    assert "ends an answer </s> (2)" in shown
    assert "chat template chat_template.jinja" in shown
    facts = json.loads(command("info", demo_bundle, "--json").out)
    assert facts["prompt"]["generation"]["max_new_tokens"] == 16
