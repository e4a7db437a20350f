"""Checkpoints of every shape and spelling answer exactly as transformers does with the same embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import IMAGE_TOKEN_ID, TILED_VARIATIONS, VARIATIONS
from exporting import Bundle, Language, close, keep, look
from PIL import Image
from tilings import TINY_SHAPES

from divprune_edge.export.verify import verify_bundle

BEFORE, AFTER = [1, 5, 7, 9], [12, 13, 8, 6, 7]

every_variation = pytest.mark.parametrize("name", VARIATIONS)


@lru_cache(maxsize=2)
def stock(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], "transformers would answer with random weights"
    return model.eval()


def picture(name: str, bundle: Bundle) -> Image.Image:
    """An image of the tower's size; where images are cut into tiles, of a shape of the variation's own."""
    size = (bundle.manifest.vision_encoder.image_height,) * 2
    if name in TILED_VARIATIONS:
        size = TINY_SHAPES[list(TILED_VARIATIONS).index(name) % len(TINY_SHAPES)]
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8))


def processed(folder: Path, image: Image.Image) -> Any:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images=[image], return_tensors="pt")


def steps(name: str) -> int:
    return 20 if name in TILED_VARIATIONS and not name.endswith("plain") else 64


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
    folder, image = exported.plan.checkpoint.folder, picture(name, exported)
    tokens = look(exported, image).read
    ids = torch.tensor([BEFORE + [IMAGE_TOKEN_ID] * len(tokens) + AFTER])
    with torch.inference_mode():
        wanted = stock(folder)(input_ids=ids, **processed(folder, image)).logits[0, -1].numpy()
    table_ids = [*BEFORE, *range(exported.rows, exported.rows + len(tokens)), *AFTER]
    found, _ = Language(exported).chunks(table_ids, tokens[None], [])
    assert close(found[0], wanted)


@every_variation
def test_pruned_greedy_answer_equals_transformers(name: str, bundle: Callable[[str], Bundle]) -> None:
    """transformers sees the whole sequence anew at each step, so its own cache is not trusted either."""
    exported = bundle(name)
    model = stock(exported.plan.checkpoint.folder)
    kept = keep(exported, look(exported, picture(name, exported)))
    ids = [*BEFORE, *range(exported.rows, exported.rows + len(kept)), *AFTER]
    tokens, logits = Language(exported).greedy(ids, kept[None], steps(name))
    wanted_tokens, wanted = [], []
    with torch.inference_mode():
        for _ in tokens:
            text = model.get_input_embeddings()(torch.tensor([*BEFORE, *AFTER, *wanted_tokens]))
            start = len(BEFORE)
            embeddings = torch.cat([text[:start], torch.from_numpy(kept), text[start:]])[None]
            wanted.append(model(inputs_embeds=embeddings, logits_to_keep=1).logits[0, -1].numpy())
            wanted_tokens.append(int(wanted[-1].argmax()))
    assert close(logits, np.stack(wanted))
    assert tokens == wanted_tokens
    assert len(set(tokens)) > 1, "a model that repeats one token would hide mistakes"
