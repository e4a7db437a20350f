// Sorting picks: distinct small integers need no comparisons, only a bitmap and a count of what comes before.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kBitmapWords = 32768 / 32;

// Writes the positions of the set bits of `bitmap` in ascending order. The whole block calls it, with at least one
// thread for each word of 32 candidates; `bitmap` is shared memory that no thread writes any more.
__device__ inline void write_ascending(const uint32_t* bitmap, int n, int64_t* ascending) {
    __shared__ int warp_counts[kWarp];
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int word = threadIdx.x;
    uint32_t bits = word * 32 < n ? bitmap[word] : 0;
    const int count = __popc(bits);
    int before = count;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int other = __shfl_up_sync(kFullWarp, before, distance);
        before += lane >= distance ? other : 0;
    }
    if (lane == kWarp - 1) {
        warp_counts[warp] = before;
    }
    __syncthreads();
    int at = before - count;
    for (int earlier = 0; earlier < warp; ++earlier) {
        at += warp_counts[earlier];
    }
    while (bits != 0) {
        ascending[at++] = word * 32 + __ffs(bits) - 1;
        bits &= bits - 1;
    }
}

}  // namespace divprune
