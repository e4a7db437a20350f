"""The PyTorch binding without a GPU: what it refuses, and what it hands to the library.

The library is the emulated one and works in host memory; tensors that pretend to be on a GPU take the binding through
to the kernels and back.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from raising import refused
from selection_cases import Case, assert_max_min, min_sum_picks, random_tokens

from divprune_edge.plugins import torch_op

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.xdist_group("emulated")


class Pretend(torch.Tensor):  # type: ignore[misc, name-defined]
    """A tensor in host memory that says it is on a GPU."""

    is_cuda = True


def pretend(array: Any) -> Any:
    return torch.from_numpy(np.array(array)).as_subclass(Pretend)


@pytest.fixture
def on_the_emulator(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_op, "library", lambda: emulated)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))


@pytest.fixture
def case() -> Case:
    valid = np.ones((2, 20), np.bool_)
    valid[0, 3] = False
    return Case("torch", random_tokens(1, (2, 20, 16), "float16"), valid, 5)


@pytest.mark.usefixtures("on_the_emulator")
def test_max_min(case: Case) -> None:
    kept, indices = torch_op.max_min_diversity(pretend(case.tokens), case.keep, pretend(case.valid))
    assert kept.dtype == torch.float16
    assert_max_min(case, kept.numpy(), indices.numpy())
    everything = Case("all", case.tokens, np.ones((2, 20), np.bool_), 5)
    kept, indices = torch_op.max_min_diversity(pretend(case.tokens), 5, matrix_budget=1)
    assert_max_min(everything, kept.numpy(), indices.numpy())


@pytest.mark.usefixtures("on_the_emulator")
def test_the_product_reaches_the_library(case: Case) -> None:
    """Which here has none of warpgroups."""
    tokens = pretend(case.tokens)
    assert torch.equal(torch_op.cosine_distances(tokens, product="mma"), torch_op.cosine_distances(tokens))
    for refuse in (
        lambda: torch_op.cosine_distances(tokens, product="wgmma"),
        lambda: torch_op.max_min_diversity(tokens, 5, product="wgmma"),
        lambda: torch_op.min_sum_similarity(tokens, pretend(np.zeros(2, np.int64)), 5, product="wgmma"),
    ):
        with refused("kernel-arguments-invalid", "sm_90"):
            refuse()


@pytest.mark.usefixtures("on_the_emulator")
def test_a_view_is_made_dense(case: Case) -> None:
    spread = pretend(np.repeat(case.tokens, 2, axis=1))[:, ::2]
    _, indices = torch_op.max_min_diversity(spread, case.keep, pretend(case.valid))
    _, wanted = torch_op.max_min_diversity(pretend(case.tokens), case.keep, pretend(case.valid))
    assert torch.equal(indices, wanted)


@pytest.mark.usefixtures("on_the_emulator")
def test_the_sum_rule_on_a_matrix(case: Case) -> None:
    distances = torch_op.cosine_distances(pretend(case.tokens))
    seeds = np.array([0, 7])
    found = torch_op.pick(distances.as_subclass(Pretend), 5, pretend(case.valid), pretend(seeds))
    for matrix, valid, seed, chosen in zip(distances.numpy(), case.valid, seeds, found.numpy(), strict=True):
        assert np.array_equal(chosen, np.sort(min_sum_picks(matrix, valid, int(seed), 5)))
    _, indices = torch_op.min_sum_similarity(pretend(case.tokens), pretend(seeds), 5, pretend(case.valid))
    assert torch.equal(indices, found)


@pytest.mark.usefixtures("on_the_emulator")
def test_wrong_arguments(case: Case) -> None:
    tokens, valid = pretend(case.tokens), pretend(case.valid)
    with refused("tensor-unfit", "cpu"):
        torch_op.max_min_diversity(torch.zeros(1, 4, 8), 3)
    with refused("tensor-unfit", "[B, N, D]", "[20, 16]"):
        torch_op.max_min_diversity(tokens[0], 3)
    with refused("tensor-unfit", "float64"):
        torch_op.max_min_diversity(tokens.double(), 3)
    with refused("kernel-arguments-invalid"):
        torch_op.max_min_diversity(tokens, 21)
    with refused("kernel-arguments-invalid", 8):
        torch_op.max_min_diversity(tokens[:, :, :12], 3)
    with refused("tensor-unfit", "valid", "bool [2, 20]", "torch.uint8 [2, 20]"):
        torch_op.max_min_diversity(tokens, 3, valid.to(torch.uint8))
    with refused("tensor-unfit", "seeds", "int64 [2]", "torch.int64 [3]"):
        torch_op.min_sum_similarity(tokens, pretend(np.zeros(3, np.int64)), 3)
    with refused("tensor-unfit", "distances", "float32 [B, N, N]"):
        torch_op.pick(tokens, 3)
