"""``--budget auto``: the smallest of a selector's budgets that covers an image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_made import noise_pixels
from PIL import Image
from raising import refused

from divprune_edge.export.add_selector import add_selectors
from divprune_edge.models.selectors.divprune import cosine_distances
from divprune_edge.runtime.budgets import budgets_of, coverage_radius
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import (
    Dataset,
    ImageQuestions,
    LabelledQuestion,
    load_dataset,
)
from divprune_edge.runtime.lab.evaluation.evaluate import evaluate
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod, choose_methods
from divprune_edge.runtime.lab.evaluation.radius import learn_from, learn_radius
from divprune_edge.runtime.lab.evaluation.results import Record
from divprune_edge.runtime.pipeline import Pipeline

QUESTION = "What color is the circle?"
BUDGETS = (8, 29, 58)


@pytest.fixture(scope="module")
def budgets(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("budgets") / "bundle"))
    list(add_selectors(folder, "divprune", "8,29", force=False, verify=False))
    return folder


def plain(shade: int) -> Any:
    return np.full((96, 96, 3), shade, np.uint8)


def noisy(seed: int) -> Any:
    return noise_pixels(96, 96, seed)


def farthest_dropped(tokens: Any, kept: Any) -> float:
    """The definition, over the matrix of all distances."""
    dropped = np.setdiff1d(np.arange(len(tokens)), kept)
    return float(cosine_distances(tokens)[np.ix_(dropped, kept)].min(axis=1).max())


def radii(bundle: Path, image: Any) -> list[float]:
    """The coverage radius of each budget, by the definition."""
    pipeline = Pipeline(bundle, "none", threads=1)
    vision = pipeline.vision
    candidates = vision.encode(vision.read([image]), [None])
    tokens = pipeline.backend.to_host(candidates.encoded.tokens)[0]
    found = []
    for keep in BUDGETS:
        kept = Pipeline(bundle, "divprune", keep, threads=1).ask(image, QUESTION, max_tokens=1).kept_indices
        found.append(farthest_dropped(tokens, kept))
    return found


def test_the_smallest_budget_that_covers_an_image_is_taken(budgets: Path) -> None:
    image = noisy(3)
    small, middle, large = radii(budgets, image)
    assert small > middle > large > 0
    for radius, keep in ((small + 1e-3, 8), (middle + 1e-3, 29), (large + 1e-3, 58), (large / 2, 58)):
        auto = Pipeline(budgets, "divprune", budget="auto", radius=radius, threads=1)
        answer = auto.ask(image, QUESTION, max_tokens=3)
        wanted = Pipeline(budgets, "divprune", keep, threads=1).ask(image, QUESTION, max_tokens=3)
        assert (answer.visual_tokens, answer.prompt_tokens) == (wanted.visual_tokens, wanted.prompt_tokens)
        assert answer.kept_indices.tolist() == wanted.kept_indices.tolist()
        assert answer.token_ids == wanted.token_ids
    assert auto.visual_tokens == 58, "at most"


def test_each_image_has_its_own(budgets: Path) -> None:
    """In one prompt, in a batch and in a conversation."""
    easy, hard = plain(90), noisy(4)
    radius = (radii(budgets, easy)[0] + radii(budgets, hard)[0]) / 2
    assert radii(budgets, easy)[0] < radius < radii(budgets, hard)[0]
    auto = Pipeline(budgets, budget="auto", radius=radius, threads=1)
    one, two = auto.ask(easy, QUESTION, max_tokens=2), auto.ask(hard, QUESTION, max_tokens=2)
    assert one.visual_tokens == 8 < two.visual_tokens
    both = auto.ask([easy, hard], QUESTION, max_tokens=2)
    assert both.image_tokens == (one.visual_tokens, two.visual_tokens)
    batch = auto.ask_batch([(easy, QUESTION), (hard, QUESTION)], max_tokens=2)
    assert [answer.token_ids for answer in batch] == [one.token_ids, two.token_ids]
    chat = auto.chat(easy)
    chat.ask(QUESTION, max_tokens=2)
    assert chat.ask(QUESTION, image=hard, max_tokens=2).image_tokens == both.image_tokens


def test_the_command_line(budgets: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    Image.fromarray(noisy(5)).save(tmp_path / "a.png")
    told = ("ask", budgets, "--image", tmp_path / "a.png", "--json", "--budget", "auto")
    result = command(*told, "--radius", 2, QUESTION)
    assert result.code == 0, result.err
    assert json.loads(result.out)["visual_tokens"] == 8
    result = command(*told, "--radius", 2, "--show-kept", tmp_path / "kept.png", QUESTION)
    assert result.code == 0, result.err
    assert (tmp_path / "kept.png").exists()
    for wrong, code in (
        ((), "budget-auto-needs-radius"),
        (("--radius", 3), "option-invalid"),
        (("--radius", 1, "--keep", 58), "options-exclusive"),
    ):
        result = command(*told, *wrong, QUESTION)
        assert result.code == 2
        assert f"error[{code}]" in result.err


def test_what_cannot_be_chosen_from_is_told(demo_bundle: Path, budgets: Path) -> None:
    with refused("budget-auto-needs-budgets", "divprune-58", "--selectors divprune"):
        budgets_of(Bundle.open(demo_bundle), None, 0.1)
    with refused("budget-auto-needs-budgets", "none"):
        budgets_of(Bundle.open(budgets), "none", 0.1)
    with refused("budget-auto-needs-radius", "--learn-radius"):
        budgets_of(Bundle.open(budgets), "divprune-29", None)
    with refused("option-invalid", "'small'"):
        Pipeline(budgets, budget="small")
    with refused("radius-without-budget", 0.1, "--budget auto"):
        Pipeline(budgets, radius=0.1)
    found = budgets_of(Bundle.open(budgets), "divprune-29", 0.1)
    assert [entry.keep for entry in found.selectors] == [8, 29, 58]


@pytest.mark.parametrize("seed", range(3))
def test_the_radius_is_that_of_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens, kept = random.normal(size=(40, 8)).astype(np.float32), random.permutation(40)[:6]
    wanted = farthest_dropped(tokens, kept)
    assert coverage_radius(tokens, kept) == pytest.approx(wanted, abs=1e-6)
    assert coverage_radius(tokens, np.append(kept, -1)) == pytest.approx(wanted, abs=1e-6)
    assert coverage_radius(tokens, np.array([-1])) == 2
    assert coverage_radius(tokens, np.arange(40)) == 0


# --- evaluation


def made(name: str, method: str, right: list[bool], radius: float, tokens: int, data: Dataset) -> Record:
    asked = next(image.digest for image in data.images if image.name == name)
    times = [1.0] * len(right)
    return Record(name, asked, method, ["x"] * len(right), right, times, times, {}, radius, 1.0, tokens, 9)


def test_a_radius_is_learnt_from_records() -> None:
    """Image a needs four tokens for its digits, b and c do with two."""
    questions = (LabelledQuestion("?", ("x",), "count"), LabelledQuestion("?", ("x",), "digits"))
    data = Dataset("set", tuple(ImageQuestions(name, lambda: plain(0), questions) for name in "abc"))
    methods = [
        EvaluatedMethod("none", 9, None),
        EvaluatedMethod("divprune", 4, None),
        EvaluatedMethod("divprune", 2, None),
    ]
    records = []
    for name, few, radius in (("a", [True, False], 0.6), ("b", [True, True], 0.4), ("c", [True, True], 0.2)):
        records += [
            made(name, "none", [True, True], 0, 9, data),
            made(name, "divprune-4", [True, True], radius / 2, 4, data),
            made(name, "divprune-2", few, radius, 2, data),
        ]
    found = learn_radius(records, methods, data, "divprune", 1.0)
    assert found is not None
    assert (found.radius, found.tokens) == (0.4, pytest.approx(8 / 3))
    loose = learn_radius(records, methods, data, "divprune", 0.6)
    assert loose is not None and (loose.radius, loose.tokens) == (0.6, 2)
    records[1] = made("a", "divprune-4", [True, False], 0.3, 4, data)
    assert learn_radius(records, methods, data, "divprune", 1.0) is None


def test_evaluate_asks_with_it(budgets: Path, tmp_path: Path) -> None:
    bundle, data = Bundle.open(budgets), load_dataset("demo-development", 2)
    assert data.images[0].questions != load_dataset("demo", 1).images[0].questions
    methods = choose_methods(bundle, ["divprune"], [29, 8], 2.0)
    assert [m.id for m in methods if m.budgets] == ["divprune-auto@2"]
    rows = {row.method: row for row in evaluate(bundle, data, methods, tmp_path, threads=1, max_tokens=8)}
    assert rows["divprune-auto@2"].tokens == 8
    assert replace(rows["divprune-auto@2"], method="", keep=0, ttft_ms=0, total_ms=0) == replace(
        rows["divprune-8"], method="", keep=0, ttft_ms=0, total_ms=0
    )
    sentences = learn_from(tmp_path, methods, data, 0.0)
    assert [sentence.partition(":")[0] for sentence in sentences] == ["divprune", "random", "uniform"]
    assert sentences[0].startswith("divprune: --budget auto --radius ")
    assert "of what the unpruned model gets right" in sentences[0]
    named = learn_from(tmp_path, methods, data, 0.0, "selector none (schedule fastv)")
    assert "of what selector none (schedule fastv) gets right" in named[0]
    with refused("budget-auto-needs-budgets"):
        learn_from(tmp_path, methods[:2], data, 0.5)


def test_evaluate_learns_and_uses_a_radius(
    budgets: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    told = (
        "evaluate",
        budgets,
        "--data",
        "demo-development",
        "--images",
        1,
        "--threads",
        1,
        "--max-tokens",
        8,
    )
    told = (*told, "--output", tmp_path / "out")
    result = command(*told, "--learn-radius", 0)
    assert result.code == 0, result.err
    assert "divprune: --budget auto --radius" in result.err
    result = command(*told, "--budget", "auto", "--radius", 0.5, "--json")
    assert result.code == 0, result.err
    assert "divprune-auto@0.5" in {row["method"] for row in json.loads(result.out)["rows"]}
    for wrong, code in (
        (("--budget", "auto"), "budget-auto-needs-radius"),
        (("--radius", 0.5), "radius-without-budget"),
        (("--budget", "small", "--radius", 0.5), "option-invalid"),
    ):
        assert f"error[{code}]" in command(*told, *wrong).err
