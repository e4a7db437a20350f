// Copying the kept rows.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kGatherThreads = 128;

struct GatherArgs {
    const void* tokens;
    const int64_t* kept;
    void* kept_tokens;  // NULL: not wanted
    int n;
    int keep;
    int row_bytes;  // a multiple of 16

    // Copies row kept[b, k] of the tokens, bit for bit, with a whole block.
    __device__ __forceinline__ void copy(int64_t item, int k) const {
        const int64_t to = item * keep + k;
        // Written by another block, perhaps of this launch: not from a cache of this multiprocessor.
        const int64_t from = item * n + __ldcg(reinterpret_cast<const long long*>(kept) + to);
        const int vectors = row_bytes / 16;
        const uint4* source = static_cast<const uint4*>(tokens) + from * vectors;
        uint4* target = static_cast<uint4*>(kept_tokens) + to * vectors;
#pragma unroll 4
        for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
            target[i] = source[i];
        }
    }
};

// Grid (K, B).
__global__ void __launch_bounds__(kGatherThreads) gather_kernel(GatherArgs args) {
    args.copy(blockIdx.y, static_cast<int>(blockIdx.x));
}

}  // namespace divprune
