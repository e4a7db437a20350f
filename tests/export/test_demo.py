"""The demo checkpoint itself: twenty prompts, 64 greedy tokens each, the same as transformers'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from exporting import Language, close, export, images, plan_of, see, select

from divprune_edge.export.verify.graphs import open_language
from divprune_edge.export.verify.oracle import ExpectedAnswer, Oracle
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.families import family_named

PROMPTS, STEPS = 20, 64


@dataclass(frozen=True)
class Answered:
    """A prompt of the demo: ids [length], its visual tokens [1, K, D], and transformers' answer."""

    ids: npt.NDArray[np.int64]
    visual: npt.NDArray[np.float32]
    wanted: ExpectedAnswer


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> list[Answered]:
    exported = export(plan_of(CHECKPOINT, keep=None, prune="0.9"), tmp_path_factory.mktemp("demo") / "bundle")
    oracle = Oracle(family_named("llava").reference, CHECKPOINT)
    kept, _ = select(exported, see(exported, images(exported, PROMPTS)))
    random = np.random.default_rng(2)
    forbidden = set(exported.manifest.prompt.forbidden_ids)
    words = np.array([i for i in range(5, exported.rows) if i not in forbidden])
    found = []
    for i in range(PROMPTS):
        before = np.array([1, *random.choice(words, 3)])
        after = random.choice(words, random.integers(2, 24))
        embeddings = np.concatenate([oracle.embed(before), kept[i], oracle.embed(after)])
        ids = np.concatenate([before, exported.rows + np.arange(kept.shape[1]), after])
        found.append(Answered(ids, kept[i : i + 1], oracle.answer(embeddings, STEPS)))
    return found


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(answered: list[Answered], tmp_path: Path) -> None:
    language = Language(export(plan_of(CHECKPOINT, keep=None, prune="0.9"), tmp_path / "bundle"))
    equal = 0
    for i, prompt in enumerate(answered):
        tokens, logits = language.greedy(prompt.ids.tolist(), prompt.visual, STEPS)
        # Up to the first difference both read the same tokens, so up to there the logits must agree; where
        # they do, only a tie within twice their error can have another token.
        pairs = zip(tokens, prompt.wanted.tokens, strict=True)
        step = next((s for s, (found, other) in enumerate(pairs) if found != other), STEPS - 1)
        assert close(logits[: step + 1], prompt.wanted.logits[: step + 1]), (i, step)
        equal += tokens == prompt.wanted.tokens.tolist()
    assert equal >= PROMPTS - 1, "more than a rare tie"


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["static", "decomposed"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 3e-2)])
def test_the_same_along_transformers_tokens_with_a_cache_of_fixed_size(
    dialect: str, precision: str, tolerance: float, answered: list[Answered], tmp_path: Path
) -> None:
    """Each step reads transformers' token, so every one of them counts; margins as in the verification."""
    plan = plan_of(CHECKPOINT, keep=None, prune="0.9", dialect=dialect, precision=precision)
    graph = open_language([export(plan, tmp_path / "bundle").folder / "language_model.onnx"], dialect)
    same = total = 0
    for prompt in answered:
        wanted = prompt.wanted
        mask = np.ones((1, len(prompt.ids)), bool)
        found = graph.follow(prompt.ids[None], prompt.visual, mask, wanted.tokens[None])[0]
        assert close(found, wanted.logits, tolerance)
        for logits, reference in zip(found, wanted.logits, strict=True):
            runner_up, best = np.partition(reference, -2)[-2:]
            equal = logits.argmax() == reference.argmax()
            assert equal or best - runner_up <= 2 * np.abs(logits - reference).max()
            same, total = same + int(equal), total + 1
    assert same >= total * (0.999 if precision == "fp32" else 0.98)
