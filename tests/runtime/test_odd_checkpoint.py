"""Every selector from export to image, on checkpoints of odd sizes: 7 x 7 tokens of width 36, from either tower."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SIGLIP, make_checkpoint
from conftest import run_module
from PIL import Image

from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.signals import CLASS_TOKEN
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.runner import Runner
from divprune_edge.runtime.pipeline import Pipeline

TOKENS, KEPT = 49, (17, 5)
QUESTIONS = ("what is in the picture ?", "how many red star ?")


FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
TOWERS = {"clip": {}, "siglip": {"tower": SIGLIP, "llava": FULL}}


@pytest.fixture(scope="module", params=TOWERS)
def odd_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All selectors that the tower can serve at two budgets, neither of them a divisor of anything."""
    folder = tmp_path_factory.mktemp("odd")
    make_checkpoint(
        folder / "checkpoint",
        **TOWERS[request.param],
        vision={"hidden_size": 30, "num_attention_heads": 5, "image_size": 77, "patch_size": 11},
        text={"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2},
    )
    bundle = folder / "bundle"
    export = ("export", "llava", "--model", str(folder / "checkpoint"), "--output", str(bundle))
    first = run_module(*export, "--keep", str(KEPT[0]), "--signals", "all", "--no-verify")
    assert first.returncode == 0, first.stderr
    rest = run_module("export", "selectors", str(bundle), "--keep", ",".join(map(str, KEPT)))
    assert rest.returncode == 0, rest.stderr
    assert ("no class token" in rest.stdout) == (request.param == "siglip")
    return bundle


def served(bundle: Path) -> list[str]:
    """Return the selectors that the bundle has."""
    there = {entry.name for entry in Bundle.open(bundle).manifest.selectors}
    without = {name for name, one in SELECTORS.items() if set(one.signals) & set(CLASS_TOKEN)}
    assert len(there) in (len(SELECTORS) - len(without), len(SELECTORS))
    return sorted(there)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images that are not square, with two questions each."""
    folder = tmp_path_factory.mktemp("questions")
    random = np.random.default_rng(3)
    lines = []
    for name, size in (("wide.png", (50, 131)), ("tall.jpg", (203, 61))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
        lines += [{"image": name, "question": text, "answer": ["red", "two"]} for text in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def test_evaluate_then_sweep(
    odd_bundle: Path, questions: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    options = ("--data", questions, "--output", tmp_path / "out", "--max-tokens", 3, "--threads", 1)
    result = command("evaluate", odd_bundle, *options, "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    wanted = {"none", *(f"{name}-{keep}" for name in served(odd_bundle) for keep in KEPT)}
    assert {row["method"] for row in rows} == wanted
    assert not any(row["reference"] for row in rows)  # all of them ran as graphs
    assert {row["questions"] for row in rows} == {4}
    for row in rows:
        assert 0 <= row["coverage"] <= 2
        assert (row["coverage"] == pytest.approx(0, abs=1e-6)) == (row["keep"] == TOKENS), row["method"]
    swept = command("sweep", odd_bundle, *options)
    assert swept.code == 0, swept.err
    table = list(csv.DictReader((tmp_path / "out" / "sweep.csv").read_text().splitlines()))
    assert [row["method"] for row in table] == [row["method"] for row in rows]
    assert (tmp_path / "out" / "sweep-tokens.svg").read_text().count("<title>") == len(rows)


def test_answers_are_the_pipelines(odd_bundle: Path, questions: Path) -> None:
    """What an evaluation asks is what a user gets."""
    from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
    from divprune_edge.runtime.lab.evaluation.methods import choose_methods

    bundle = Bundle.open(odd_bundle)
    methods = choose_methods(bundle)
    image = load_dataset(str(questions)).images[0]
    records = Runner(bundle, methods, threads=1, max_tokens=3).ask(image, methods)
    pipeline = Pipeline(bundle, "none", threads=1)
    for method, record in zip(methods, records, strict=True):
        one = pipeline.with_selector(method.id)
        answers = [one.ask(questions / image.name, text, max_tokens=3) for text in QUESTIONS]
        assert record.answers == [answer.answer for answer in answers], method.id
        kept = [index for index in answers[0].kept_indices if index >= 0]  # -1: the class token of VisionZip
        assert len(answers[0].kept_indices) == method.keep == answers[0].visual_tokens
        assert len(set(kept)) == len(kept) >= method.keep - 1
        assert max(kept) < TOKENS


def test_pages_and_images(
    odd_bundle: Path, questions: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    page = tmp_path / "page.html"
    options = ("--image", questions / "tall.jpg", "--max-tokens", 2, "--threads", 1)
    result = command("compare-selectors", odd_bundle, *options, "-o", page, QUESTIONS[0])
    assert result.code == 0, result.err
    text = page.read_text(encoding="utf-8")
    names = served(odd_bundle)
    assert text.count("<article>") == 1 + len(names) * len(KEPT)
    assert len(re.findall(rf"{KEPT[1]} of {TOKENS} visual tokens", text)) >= len(names)
    drawn = set()
    for name in names:
        drawing = tmp_path / f"{name}.png"
        chosen = ("--selector", name, "--keep", KEPT[1], "--show-kept", drawing)
        result = command("ask", odd_bundle, *options, *chosen, QUESTIONS[0])
        assert result.code == 0, result.err
        with Image.open(drawing) as image:
            drawn.add(image.convert("RGB").tobytes())
    assert len(drawn) >= len(names) - 2  # a few may keep the same tokens of noise
