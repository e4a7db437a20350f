"""Timing on a GPU: graph replays with rotated inputs, and the least that a selection could take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.selector_forms import Size

# One block, one row after the other, the next one known only from the last: a step of a greedy selection and no more.
CHAIN = r"""
extern "C" __global__ void chain(const float* rows, int n, int stride, int steps, unsigned* result) {
    __shared__ unsigned partial[2][32];
    const int lane = threadIdx.x % 32;
    unsigned pick = 0;
    for (int step = 0; step < steps; ++step) {
        unsigned best = 0;
        for (int i = 4 * threadIdx.x; i < n; i += 4 * blockDim.x) {
            const float4 v = *reinterpret_cast<const float4*>(rows + (long long)pick * stride + i);
            best = max(best, __float_as_uint(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w))));
        }
        best = __reduce_max_sync(0xffffffffu, best);
        if (lane == 0) partial[step % 2][threadIdx.x / 32] = best;
        __syncthreads();
        best = __reduce_max_sync(0xffffffffu, lane < blockDim.x / 32 ? partial[step % 2][lane] : 0u);
        pick = (best + 7919u * step) % n;
    }
    if (threadIdx.x == 0) *result = pick;
}
"""


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
        kernel = torch.cuda._compile_kernel(CHAIN, "chain")
        stride = -(-size.candidates // 4) * 4
        rows = torch.rand(size.candidates, stride, device="cuda")
        result = torch.zeros(1, dtype=torch.int32, device="cuda")
        threads = min(1024, -(-stride // 4 // 32) * 32)
        arguments = (rows, size.candidates, stride, size.keep, result)
        return median(
            event_us([lambda: kernel(grid=(1, 1, 1), block=(threads, 1, 1), args=arguments)], repeats)
        )
