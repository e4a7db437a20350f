"""The demo checkpoint itself: twenty prompts, 64 greedy tokens each, the same as transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exporting import Language, close, export, pictures, plan_of, see, select

from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.models.demo import CHECKPOINT

PROMPTS, STEPS = 20, 64


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(tmp_path: Path) -> None:
    exported = export(plan_of(CHECKPOINT, keep=None, prune="0.9"), tmp_path / "bundle")
    oracle, language = Oracle(CHECKPOINT), Language(exported)
    kept, _ = select(exported, see(exported, pictures(exported, PROMPTS)))
    random = np.random.default_rng(2)
    forbidden = set(exported.manifest.prompt.forbidden_ids)
    words = np.array([i for i in range(5, exported.rows) if i not in forbidden])
    equal = 0
    for i in range(PROMPTS):
        before = np.array([1, *random.choice(words, 3)])
        after = random.choice(words, random.integers(2, 24))
        embeddings = np.concatenate([oracle.embed(before), kept[i], oracle.embed(after)])
        wanted = oracle.answer(embeddings, STEPS)
        ids = [*before.tolist(), *range(exported.rows, exported.rows + kept.shape[1]), *after.tolist()]
        tokens, logits = language.greedy(ids, kept[i : i + 1], STEPS)
        # Up to the first difference both read the same tokens, so up to there the logits must agree; where
        # they do, only a tie within twice their error can have another token.
        pairs = zip(tokens, wanted.tokens, strict=True)
        step = next((s for s, (found, other) in enumerate(pairs) if found != other), STEPS - 1)
        assert close(logits[: step + 1], wanted.logits[: step + 1]), (i, step)
        equal += tokens == wanted.tokens.tolist()
    assert equal >= PROMPTS - 1, "more than a rare tie"
