"""The selection on PyTorch's CUDA tensors, without TensorRT: for pipelines, tests and benchmarks.

Calls run on PyTorch's current stream and may be captured in a CUDA graph. ``torch`` is imported on first use.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING

from divprune_edge.errors import UserError
from divprune_edge.plugins import abi
from divprune_edge.plugins.loader import find_library

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Return the default library, loaded.

    Raises:
        UserError: it is missing or not the one that was built.
    """
    return abi.load(find_library().path)


def max_min_diversity(
    visual_tokens: torch.Tensor,
    keep: int,
    valid: torch.Tensor | None = None,
    *,
    matrix_budget: int = 0,
    product: str = "tuned",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the tokens that are farthest from each other (DivPrune).

    Args:
        visual_tokens: [B, N, D] on a CUDA device, float32, float16 or bfloat16; D a multiple of 8.
        keep: K, 1 to N.
        valid: bool [B, N]; at least K rows of each item must be True. None: all are.
        matrix_budget: bytes that the distances of all pairs may take before each step computes its own; 0 for
            the default of 256 MiB.
        product: one of ``abi.PRODUCTS``, how 16-bit tokens are multiplied: ``wgmma`` only on a GPU of sm_90.

    Returns:
        kept tokens [B, K, D] and their indices, int64 [B, K], ascending.

    Raises:
        UserError: an argument does not fit.
    """
    problem = _problem(visual_tokens, keep, matrix_budget, product)
    return _select(visual_tokens, problem, valid, None)


def min_sum_similarity(
    visual_tokens: torch.Tensor,
    seeds: torch.Tensor,
    keep: int,
    valid: torch.Tensor | None = None,
    *,
    matrix_budget: int = 0,
    product: str = "tuned",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grow from a seed by the token with the smallest summed cosine similarity to those chosen (ToDRE, stage 1).

    ``seeds`` is int64 [B]; everything else is as in :func:`max_min_diversity`.
    """
    import torch

    problem = _problem(visual_tokens, keep, matrix_budget, product)
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (problem.batch,):
        raise UserError(
            f"seeds must be int64 [{problem.batch}], not {seeds.dtype} {list(seeds.shape)}.",
            code="tensor-unfit",
        )
    return _select(visual_tokens, problem, valid, seeds)


def cosine_distances(visual_tokens: torch.Tensor, *, product: str = "tuned") -> torch.Tensor:
    """Return float32 [B, N, N] of ``1 - cos`` between the rows of ``visual_tokens`` [B, N, D], 0 on the diagonal."""
    import torch

    problem = _problem(visual_tokens, 1, 0, product)
    tokens = visual_tokens.contiguous()
    shape = (problem.batch, problem.candidates, problem.candidates)
    with torch.cuda.device(tokens.device):
        distances = torch.empty(shape, dtype=torch.float32, device=tokens.device)
        workspace, stream = _workspace(problem, tokens.device)
        status = library().divprune_distances(
            problem, tokens.data_ptr(), distances.data_ptr(), workspace.data_ptr(), workspace.numel(), stream
        )
    abi.check(library(), status)
    return distances


def pick(
    distances: torch.Tensor, keep: int, valid: torch.Tensor | None = None, seeds: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the ascending int64 [B, K] indices that either rule picks on symmetric float32 [B, N, N] distances.

    Without ``seeds`` the rule is max-min, with int64 [B] ``seeds`` the sum rule.
    """
    import torch

    if distances.ndim != 3 or distances.dtype != torch.float32 or not distances.is_cuda:
        raise UserError("distances must be float32 [B, N, N] on a CUDA device.", code="tensor-unfit")
    batch, rows, _ = distances.shape
    problem = abi.Problem(batch, rows, 8, keep, abi.DTYPES["float32"], 0, 2**63)
    matrix = distances.contiguous()
    mask = _mask(valid, problem)
    with torch.cuda.device(matrix.device):
        kept = torch.empty((batch, keep), dtype=torch.int64, device=matrix.device)
        workspace, stream = _workspace(problem, matrix.device)
        status = library().divprune_pick(
            problem,
            matrix.data_ptr(),
            _pointer(mask),
            _pointer(seeds),
            kept.data_ptr(),
            workspace.data_ptr(),
            workspace.numel(),
            stream,
        )
    abi.check(library(), status)
    return kept


def _problem(tokens: torch.Tensor, keep: int, matrix_budget: int, product: str) -> abi.Problem:
    if not tokens.is_cuda:
        raise UserError(
            f"visual_tokens must be on a CUDA device, not on '{tokens.device}'.", code="tensor-unfit"
        )
    if tokens.ndim != 3:
        raise UserError(f"visual_tokens must be [B, N, D], not {list(tokens.shape)}.", code="tensor-unfit")
    dtype = str(tokens.dtype).removeprefix("torch.")
    if dtype not in abi.DTYPES:
        raise UserError(
            f"visual_tokens must be float32, float16 or bfloat16, not {dtype}.", code="tensor-unfit"
        )
    batch, rows, width = tokens.shape
    return abi.Problem(batch, rows, width, keep, abi.DTYPES[dtype], abi.PRODUCTS[product], matrix_budget)


def _mask(valid: torch.Tensor | None, problem: abi.Problem) -> torch.Tensor | None:
    import torch

    if valid is None:
        return None
    if valid.dtype != torch.bool or tuple(valid.shape) != (problem.batch, problem.candidates):
        raise UserError(
            f"valid must be bool [{problem.batch}, {problem.candidates}], not {valid.dtype} {list(valid.shape)}.",
            code="tensor-unfit",
        )
    return valid.contiguous()


def _select(
    visual_tokens: torch.Tensor, problem: abi.Problem, valid: torch.Tensor | None, seeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    tokens = visual_tokens.contiguous()
    mask = _mask(valid, problem)
    with torch.cuda.device(tokens.device):
        workspace, stream = _workspace(problem, tokens.device)
        kept = torch.empty(
            (problem.batch, problem.keep, problem.width), dtype=tokens.dtype, device=tokens.device
        )
        indices = torch.empty((problem.batch, problem.keep), dtype=torch.int64, device=tokens.device)
        outputs = (kept.data_ptr(), indices.data_ptr(), workspace.data_ptr(), workspace.numel(), stream)
        if seeds is None:
            status = library().divprune_max_min(problem, tokens.data_ptr(), _pointer(mask), *outputs)
        else:
            contiguous = seeds.contiguous()
            status = library().divprune_min_sum(
                problem, tokens.data_ptr(), _pointer(mask), contiguous.data_ptr(), *outputs
            )
    abi.check(library(), status)
    return kept, indices


def _workspace(problem: abi.Problem, device: torch.device) -> tuple[torch.Tensor, int]:
    """PyTorch's allocator ties the workspace to the current stream, on which the kernels run."""
    import torch

    size = abi.workspace_bytes(library(), problem)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    return workspace, int(torch.cuda.current_stream(device).cuda_stream)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
