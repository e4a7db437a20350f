// Sorting picks: distinct small integers need no comparisons, only a bitmap and a count of what comes before.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kBitmapWords = 32768 / 32;

// Writes the positions of the set bits of `bitmap` in ascending order. The whole block calls it; `bitmap` is shared
// memory that no thread writes any more.
__device__ inline void write_ascending(const uint32_t* bitmap, int n, int64_t* ascending) {
    __shared__ int warp_counts[kWarp];
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int words = (n + 31) / 32;
    const int each = (words + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    const int begin = static_cast<int>(threadIdx.x) * each;
    const int end = begin + each < words ? begin + each : words;
    int count = 0;
    for (int word = begin; word < end; ++word) {
        count += __popc(bitmap[word]);
    }
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
    for (int word = begin; word < end; ++word) {
        for (uint32_t bits = bitmap[word]; bits != 0; bits &= bits - 1) {
            ascending[at++] = word * 32 + __ffs(static_cast<int>(bits)) - 1;
        }
    }
}

}  // namespace divprune
