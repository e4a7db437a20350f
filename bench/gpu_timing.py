"""Timing on a GPU: graph replays with rotated inputs, and the least that a selection could take."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.selector_forms import Size

# One block, one row after the other, the next one known only from the last: the least that a step of a greedy selection
# does. A row comes from the L2 cache, all of it asked for at once by threads that all have a part; one reduction over a
# warp, and a barrier only where there are several; the next row is what the largest bits say, without a division.
CHAIN = r"""
extern "C" __global__ void __launch_bounds__(1024) chain(
    const float* rows, int stride, int steps, unsigned* result) {
    __shared__ unsigned partial[2][32];
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    unsigned pick = 0;
    for (int step = 0; step < steps; ++step) {
        const float4* row = reinterpret_cast<const float4*>(rows + (long long)pick * stride) + threadIdx.x;
        float4 v[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) v[i] = row[i * blockDim.x];
        float best = 0.0f;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) best = fmaxf(best, fmaxf(fmaxf(v[i].x, v[i].y), fmaxf(v[i].z, v[i].w)));
        unsigned key = __reduce_max_sync(0xffffffffu, __float_as_uint(best));
        if (warps > 1) {
            if (lane == 0) partial[step % 2][threadIdx.x / 32] = key;
            __syncthreads();
            key = __reduce_max_sync(0xffffffffu, lane < warps ? partial[step % 2][lane] : 0u);
        }
        pick = key & 0xffffu;
    }
    if (threadIdx.x == 0) *result = pick;
}
"""
CHAIN_VECTORS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Floor:
    """Microseconds that memory, arithmetic and the chain of picks take at the measured rates."""

    memory: float
    arithmetic: float
    chain: float

    @property
    def total(self) -> float:
        """The three follow each other: no pick is known before all distances are."""
        return self.memory + self.arithmetic + self.chain


def replay_us(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Return microseconds of ``repeats`` graph replays, the calls' inputs in turn.

    Each call is captured by itself, after running once so that everything is loaded.
    """
    graphs = []
    for call in calls:
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graphs.append(graph)
    return event_us([graph.replay for graph in graphs], repeats)


def event_us(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Return microseconds of ``repeats`` calls in turn, each between two events of the current stream."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    samples = []
    for i in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[i % len(calls)]()
        end.record()
        end.synchronize()
        samples.append(1e3 * start.elapsed_time(end))
    return samples


def kernel_us(call: Callable[[], Any], repeats: int) -> tuple[dict[str, float], float]:
    """Return microseconds of each kernel of ours that a call starts, by its name without types, and how many it starts.

    Both are CUPTI's; what is not ours is memory that PyTorch fills or copies.
    """
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    launches = 0
    for event in profile.key_averages():
        if (name := kernel_name(event.key)) is not None:
            found[name] = found.get(name, 0.0) + event.device_time_total / repeats
            launches += event.count
    return found, launches / repeats


def kernel_name(signature: str) -> str | None:
    """Return the name of a kernel of ours without namespace, template and types; None of anything else."""
    found = re.search(r"\bdivprune::(?:\(anonymous namespace\)::)?(\w+_kernel)\b", signature)
    return None if found is None else found[1]


def rotation(size: Size, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return tokens [1, N, D], as many sets as it takes to exceed the L2 cache twice."""
    properties = torch.cuda.get_device_properties(0)
    each = size.candidates * size.width * dtype.itemsize
    count = max(2, -(-2 * properties.L2_cache_size // each))
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, size.candidates, size.width)
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(count)]


class Rates:
    """Copy bandwidth and matmul rate of this GPU, measured once."""

    def __init__(self, dtype: torch.dtype, repeats: int) -> None:
        self.dtype = dtype
        source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        # A copy reads and writes every byte.
        self.bytes_per_us = 2 * source.numel() / median(event_us([lambda: target.copy_(source)], repeats))
        a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        self.flops_per_us = 2 * 8192**3 / median(event_us([lambda: a @ b], max(5, repeats // 10)))

    def floor(self, size: Size, repeats: int) -> Floor:
        """Return the floor of a selection: tokens read once, half of the symmetric product, K dependent steps."""
        n, k, d = size.candidates, size.keep, size.width
        moved = (n * d + 2 * k * d) * self.dtype.itemsize + n * n * 4
        return Floor(
            memory=moved / self.bytes_per_us,
            arithmetic=n * n * d / self.flops_per_us,
            chain=self._chain(size, repeats),
        )

    def _chain(self, size: Size, repeats: int) -> float:
        """Return the best of few threads with many values each and many threads with few."""
        return min(
            self._chain_of(size, vectors, repeats)
            for vectors in CHAIN_VECTORS
            if chain_threads(size.candidates, vectors) <= 1024
        )

    def _chain_of(self, size: Size, vectors: int, repeats: int) -> float:
        kernel = torch.cuda._compile_kernel(CHAIN.replace("VECTORS", str(vectors)), "chain")
        threads = chain_threads(size.candidates, vectors)
        rows = torch.from_numpy(chain_rows(size.candidates, 4 * vectors * threads)).cuda()
        result = torch.zeros(1, dtype=torch.int32, device="cuda")
        arguments = (rows, rows.shape[1], size.keep, result)

        def run() -> None:
            kernel(grid=(1, 1, 1), block=(threads, 1, 1), args=arguments)

        return median(replay_us([run], repeats))


def chain_threads(candidates: int, vectors: int) -> int:
    """Return the whole warps that hold a row in ``vectors`` vectors of four each."""
    return -(-candidates // (128 * vectors)) * 32


def chain_rows(candidates: int, stride: int) -> npt.NDArray[np.float32]:
    """Return rows whose largest number has the next row of one round through all of them in its last 16 bits."""
    rng = np.random.default_rng(0)
    rows = rng.random((candidates, stride), np.float32)
    order = rng.permutation(candidates).astype(np.uint32)
    largest = np.uint32(0x40000000) | np.roll(order, -1)  # 2 and a little more
    rows[order, rng.integers(0, candidates, candidates)] = largest.view(np.float32)
    return rows
