"""Checkpoints of every shape and spelling answer exactly as transformers does with the same embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import IMAGE_TOKEN_ID, VARIATIONS
from exporting import Bundle, Language, close, images, see, select

from divprune_edge.export.verify import verify_bundle

BEFORE, AFTER = [1, 5, 7, 9], [12, 13, 8, 6, 7]
STEPS = 64

every_variation = pytest.mark.parametrize("name", VARIATIONS)


@lru_cache(maxsize=2)
def stock(folder: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], "transformers would answer with random weights"
    return model.eval()


def pixel_values(folder: Path, pixels: Any) -> torch.Tensor:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images=list(pixels), return_tensors="pt")["pixel_values"]


@every_variation
def test_verification_passes(name: str, bundle: Callable[[str], Bundle]) -> None:
    exported = bundle(name)
    result = verify_bundle(exported.plan, exported.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    assert result.status == "verified"
    assert result.language_layers is None


@every_variation
def test_all_tokens_equal_the_stock_forward(name: str, bundle: Callable[[str], Bundle]) -> None:
    """Ids with placeholders and pixels into transformers; pixels and token-table ids into the graphs."""
    exported = bundle(name)
    folder, pixels = exported.plan.checkpoint.folder, images(exported)
    tokens = see(exported, pixels)
    n = tokens.shape[1]
    ids = torch.tensor([BEFORE + [IMAGE_TOKEN_ID] * n + AFTER])
    with torch.inference_mode():
        wanted = stock(folder)(input_ids=ids, pixel_values=pixel_values(folder, pixels)).logits[0, -1].numpy()
    table_ids = [*BEFORE, *range(exported.rows, exported.rows + n), *AFTER]
    found, _ = Language(exported).chunks(table_ids, tokens, [])
    assert close(found[0], wanted)


@every_variation
def test_pruned_greedy_answer_equals_transformers(name: str, bundle: Callable[[str], Bundle]) -> None:
    """transformers sees the whole sequence anew at each step, so its own cache is not trusted either."""
    exported = bundle(name)
    model = stock(exported.plan.checkpoint.folder)
    kept, _ = select(exported, see(exported, images(exported)))
    ids = [*BEFORE, *range(exported.rows, exported.rows + kept.shape[1]), *AFTER]
    tokens, logits = Language(exported).greedy(ids, kept, STEPS)
    wanted_tokens, wanted = [], []
    with torch.inference_mode():
        for _ in range(STEPS):
            text = model.get_input_embeddings()(torch.tensor([*BEFORE, *AFTER, *wanted_tokens]))
            start = len(BEFORE)
            embeddings = torch.cat([text[:start], torch.from_numpy(kept[0]), text[start:]])[None]
            wanted.append(model(inputs_embeds=embeddings, logits_to_keep=1).logits[0, -1].numpy())
            wanted_tokens.append(int(wanted[-1].argmax()))
    assert close(logits, np.stack(wanted))
    assert tokens == wanted_tokens
    assert len(set(tokens)) > 1, "a model that repeats one token would hide mistakes"
