"""The language graph: chunked prefill, batches of different lengths, the token table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from exporting import Bundle, Language, close, images, see, select

BEFORE, AFTER = [1, 5, 7, 9, 30, 31, 22], [12, 13, 8, 6, 7, 41, 17, 19, 20]


@pytest.fixture(scope="module")
def exported(bundle: Callable[[str], Bundle]) -> Bundle:
    return bundle("grouped queries")


@pytest.fixture(scope="module")
def language(exported: Bundle) -> Language:
    return Language(exported)


@pytest.fixture(scope="module")
def kept(exported: Bundle) -> Any:
    """Kept tokens [4, 9, D] of four images."""
    return select(exported, see(exported, images(exported, 4)))[0]


@pytest.fixture(scope="module")
def prompt(exported: Bundle) -> list[int]:
    """25 ids, 9 of them visual."""
    return [*BEFORE, *range(exported.rows, exported.rows + 9), *AFTER]


def test_prefill_in_chunks_at_every_cut(language: Language, kept: Any, prompt: list[int]) -> None:
    whole, cache = language.chunks(prompt, kept[:1], [])
    assert len(prompt) == 25
    for cut in range(1, len(prompt)):
        logits, grown = language.chunks(prompt, kept[:1], [cut])
        assert close(logits, whole, 1e-5), cut
        assert all(close(a, b, 1e-5) for a, b in zip(grown, cache, strict=True)), cut


def test_prefill_in_three_chunks_and_token_by_token(language: Language, kept: Any, prompt: list[int]) -> None:
    whole, _ = language.chunks(prompt, kept[:1], [])
    for cuts in combinations(range(2, len(prompt), 5), 2):
        assert close(language.chunks(prompt, kept[:1], cuts)[0], whole, 1e-5), cuts
    assert close(language.chunks(prompt, kept[:1], range(1, len(prompt)))[0], whole, 1e-5)


def test_batch_of_different_lengths_equals_one_by_one(
    exported: Bundle, language: Language, kept: Any
) -> None:
    """Padded on the left, each row with its own image, through prefill and six decode steps."""
    image = [*range(exported.rows, exported.rows + 9)]
    prompts = [[*BEFORE, *image, *AFTER], [1, *image, 12], [5, 6, 7], [*image, *AFTER, *AFTER, 11]]
    length = max(map(len, prompts))
    padded = np.array([[3] * (length - len(ids)) + ids for ids in prompts])
    mask = np.array([[False] * (length - len(ids)) + [True] * len(ids) for ids in prompts])
    alone = [language.greedy(ids, kept[i : i + 1], 7) for i, ids in enumerate(prompts)]

    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits, cache = language.step(padded, kept, language.empty(4), mask=mask, positions=positions)
    for step in range(6):
        for i, (_, history) in enumerate(alone):
            assert close(logits[i], history[step], 1e-5), (step, i)
        mask = np.concatenate([mask, np.ones((4, 1), bool)], axis=1)
        following = np.array([[tokens[step]] for tokens, _ in alone])
        logits, cache = language.step(
            following, kept, cache, mask=mask, positions=mask.sum(axis=1, keepdims=True) - 1
        )
        assert np.isfinite(logits).all()


def test_padding_may_hold_any_id(exported: Bundle, language: Language, kept: Any) -> None:
    prompt = [*BEFORE, *range(exported.rows, exported.rows + 9), *AFTER]
    mask = np.array([[False] * 4 + [True] * len(prompt)])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    results = [
        language.step([[pad] * 4 + prompt], kept[:1], language.empty(), mask=mask, positions=positions)[0]
        for pad in (0, 3, exported.rows, exported.rows + 8)
    ]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert close(results[0], language.chunks(prompt, kept[:1], [])[0], 1e-5)


def test_an_id_stands_for_its_row_wherever_it_is(exported: Bundle, language: Language, kept: Any) -> None:
    """Rows of ``visual_tokens`` may lie in any order, with others between them, and be used twice."""
    order = np.random.default_rng(0).permutation(9)
    straight = [*BEFORE, *range(exported.rows, exported.rows + 9), *AFTER]
    shuffled = np.empty_like(kept[:1])
    shuffled[:, order] = kept[:1]
    ids = [*BEFORE, *(exported.rows + order).tolist(), *AFTER]
    wanted, _ = language.chunks(straight, kept[:1], [])
    assert np.array_equal(language.chunks(ids, shuffled, [])[0], wanted)
    wide = np.concatenate([kept[1:2], kept[:1], kept[2:3]], axis=1)
    offset = [i + 9 if i >= exported.rows else i for i in straight]
    assert np.array_equal(language.chunks(offset, wide, [])[0], wanted)
    twice = [exported.rows, 5, exported.rows]
    doubled = np.concatenate([kept[:1, :1], kept[:1, :1]], axis=1)
    assert np.array_equal(
        language.chunks(twice, kept[:1], [])[0],
        language.chunks([exported.rows, 5, exported.rows + 1], doubled, [])[0],
    )


def test_logits_index_chooses_the_position(language: Language, kept: Any, prompt: list[int]) -> None:
    for index in (0, 6, 7, 15, 16, 24):
        logits, _ = language.step([prompt], kept[:1], language.empty(), index=[index])
        assert close(logits, language.chunks(prompt[: index + 1], kept[:1], [])[0], 1e-5), index
    both, _ = language.step(
        [prompt, prompt], np.repeat(kept[:1], 2, axis=0), language.empty(2), index=[24, 6]
    )
    assert close(both[:1], language.chunks(prompt, kept[:1], [])[0], 1e-5)
    assert close(both[1:], language.chunks(prompt[:7], kept[:1], [])[0], 1e-5)


def test_text_without_an_image(language: Language, kept: Any) -> None:
    nothing = np.zeros((1, 1, kept.shape[-1]), np.float32)
    wanted, _ = language.chunks([1, 7, 9, 30], kept[:1], [])
    assert np.array_equal(language.chunks([1, 7, 9, 30], nothing, [])[0], wanted)


def test_the_whole_context_can_be_used(exported: Bundle, language: Language, kept: Any) -> None:
    context = exported.manifest.language_model.context
    ids = np.random.default_rng(1).integers(5, 50, context).tolist()
    whole, _ = language.chunks(ids, kept[:1], [])
    assert np.isfinite(whole).all()
    assert close(language.chunks(ids, kept[:1], [context - 1])[0], whole, 1e-5)


def test_fp16_answers_like_fp32(bundle: Callable[..., Bundle], kept: Any, prompt: list[int]) -> None:
    half, single = bundle("grouped queries", "fp16"), bundle("grouped queries")
    found, cache = Language(half).chunks(prompt, kept[:1], [])
    wanted, _ = Language(single).chunks(prompt, kept[:1], [])
    assert found.dtype == np.float32
    assert {value.dtype for value in cache} == {np.dtype(np.float16)}
    assert close(found, wanted, 3e-2)
