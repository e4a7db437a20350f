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
from exporting import Bundle, Language, close, keep, keep_indices, look
from images_made import noise_image
from PIL import Image
from qwen_checkpoints import QWEN_VARIATIONS, SHAPES
from qwen_reference import QwenReference
from tilings import TINY_SHAPES

from divprune_edge.export.verify import verify_bundle
from divprune_edge.processing.layout import PlacedImage, PromptIds, lay_out

BEFORE, AFTER = [1, 5, 7, 9], [12, 13, 8, 6, 7]

every_variation = pytest.mark.parametrize("name", [*VARIATIONS, *QWEN_VARIATIONS])
one_position_a_token = pytest.mark.parametrize("name", VARIATIONS)
three_positions_a_token = pytest.mark.parametrize("name", QWEN_VARIATIONS)


@lru_cache(maxsize=2)
def qwen(folder: Path) -> QwenReference:
    return QwenReference(folder)


@lru_cache(maxsize=2)
def stock(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], "transformers would answer with random weights"
    return model.eval()


def picture(name: str, bundle: Bundle) -> Image.Image:
    """An image of the tower's size; where images are of any size, of a shape of the variation's own."""
    size = (bundle.manifest.vision_encoder.image_height,) * 2
    for variations, shapes in ((TILED_VARIATIONS, TINY_SHAPES), (QWEN_VARIATIONS, SHAPES)):
        if name in variations:
            size = shapes[list(variations).index(name) % len(shapes)]
    return noise_image(*size, seed=3)


def processed(folder: Path, image: Image.Image) -> Any:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images=[image], return_tensors="pt")


def steps(name: str) -> int:
    few = name in TILED_VARIATIONS or name in QWEN_VARIATIONS
    return 20 if few and not name.endswith("plain") else 64


def asked(bundle: Bundle, image: Any, kept: Any, numbering: str) -> PromptIds:
    """Return the prompt around the rows of an image that were kept, as the runtime places them."""
    manifest = bundle.manifest
    place, rows = manifest.prompt.image_token_id, np.arange(len(kept))
    laid = lay_out([*BEFORE, place, *AFTER], {place}, [len(kept)], bundle.rows)
    where = (
        PlacedImage(rows) if numbering == "compact" else PlacedImage(rows, image.places[:, kept], image.ahead)
    )
    return laid.placed(bundle.rows, [where], manifest.language_model.axes)


def with_more(prompt: PromptIds, steps: int) -> Any:
    """Return the positions of a prompt and of so many ids behind it."""
    more = np.tile(prompt.next_position + np.arange(steps), (len(prompt.positions), 1))
    return np.concatenate([prompt.positions, more], axis=1)


@every_variation
def test_verification_passes(name: str, bundle: Callable[[str], Bundle]) -> None:
    exported = bundle(name)
    result = verify_bundle(exported.plan, exported.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    assert result.status == "verified"
    assert result.language_layers is None


@one_position_a_token
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


@one_position_a_token
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


@three_positions_a_token
def test_an_image_of_any_size_equals_the_stock_forward(name: str, bundle: Callable[[str], Bundle]) -> None:
    """transformers processes the image, finds the places of its tokens and numbers them; so do we, by ourselves."""
    exported = bundle(name)
    reference, image = qwen(exported.plan.checkpoint.folder), picture(name, exported)
    seen = look(exported, image)
    inputs = reference.inputs([*BEFORE, reference.place, *AFTER], [image])
    read = exported.plan.family.reader.image(image, *exported.manifest.encoder_input, True)
    prompt = asked(exported, read, np.arange(len(seen.read)), "original")
    places, after = reference.positions(inputs)
    assert np.array_equal(prompt.positions, places)
    assert prompt.next_position == after
    found, _ = Language(exported).chunks(prompt.ids, seen.read[None], [], places)
    assert close(found[0], reference.logits(inputs))


@three_positions_a_token
def test_pruned_greedy_answer_equals_transformers_with_positions(
    name: str, bundle: Callable[[str], Bundle]
) -> None:
    """The kept rows are transformers' own, and so is what is beside them for the decoder's first layers."""
    exported = bundle(name)
    reference, image = qwen(exported.plan.checkpoint.folder), picture(name, exported)
    kept, indices = keep_indices(exported, look(exported, image))
    assert len(kept) == 9
    inputs = reference.inputs([*BEFORE, reference.place, *AFTER], [image])
    read = exported.plan.family.reader.image(image, *exported.manifest.encoder_input, True)
    for numbering in ("original", "compact"):
        prompt, spliced = (
            asked(exported, read, indices, numbering),
            reference.spliced(inputs, [indices], numbering),
        )
        assert np.array_equal(prompt.positions, spliced.positions)
        assert prompt.next_position == spliced.next_position
        count = steps(name)
        tokens, logits = Language(exported).greedy(prompt.ids, kept[None], count, with_more(prompt, count))
        wanted = reference.followed(spliced, count)
        assert close(logits, wanted)
        assert tokens == wanted.argmax(axis=-1).tolist()
        assert len(set(tokens)) > 1, "a model that repeats one token would hide mistakes"
