"""Rows and bytes of a decode step, counted by hand."""

from __future__ import annotations

import pytest

from divprune_edge.models.families.llava.spec import read_llava
from divprune_edge.models.kv_cache import (
    APPEND_PLUGIN,
    GROWING,
    SCATTER,
    SCHEMES,
    TWO_PART,
    step_weight_bytes,
)

LLAVA_7B = read_llava(
    {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
).decoder


def test_rows_by_hand() -> None:
    """200 live rows of 512: what is read, what is written."""
    assert GROWING.rows(200, 512) == 200 + 201 + 201
    assert TWO_PART.rows(200, 512) == 1 + (512 + 1) + (1 + 1)
    assert APPEND_PLUGIN.rows(200, 512) == 1 + (1 + 1) + 512
    assert SCATTER.rows(200, 512) == 1 + 512


def test_bytes_of_llava_15_7b() -> None:
    """Half a MiB per row; a capacity of 320 is read as 168 MB."""
    row = 2 * 32 * 32 * 128 * 2
    assert SCATTER.bytes(LLAVA_7B, 200, 512) == 513 * row
    assert TWO_PART.bytes(LLAVA_7B, 0, 320) == pytest.approx(168e6 + 4 * row, rel=0.01)
    assert GROWING.bytes(LLAVA_7B, 200, 512, element_bytes=4) == 602 * 2 * row


def test_only_a_growing_cache_depends_on_how_full_it_is() -> None:
    for scheme in SCHEMES:
        same = scheme.rows(10, 512) == scheme.rows(400, 512)
        assert same == scheme.static == (scheme.copies == 1)


def test_weights_of_a_step() -> None:
    """7B: 6.48e9 values in matrices, 131e6 in the head; the embedding is one row."""
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * 32064 * 4096 + 2 * 4096 + 2 * (2 * 32 + 1) * 4096
    assert step_weight_bytes(LLAVA_7B, 32064) == 2 * matrices + rest
    assert step_weight_bytes(LLAVA_7B, 32064, block_size=32) == matrices * (1 / 2 + 2 / 32) + rest
    assert step_weight_bytes(LLAVA_7B, 32064, block_size=128) == matrices * (1 / 2 + 2 / 128) + rest
