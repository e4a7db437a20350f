// Copying the kept rows.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kGatherThreads = 128;

struct GatherArgs {
    const void* tokens;
    const int64_t* kept;
    void* kept_tokens;
    int n;
    int keep;
    int row_bytes;  // a multiple of 16
};

// Grid (K, B): row kept[b, k] of the tokens, bit for bit.
__global__ void __launch_bounds__(kGatherThreads) gather_kernel(GatherArgs args) {
    const int64_t to = static_cast<int64_t>(blockIdx.y) * args.keep + blockIdx.x;
    const int64_t from = static_cast<int64_t>(blockIdx.y) * args.n + args.kept[to];
    const int vectors = args.row_bytes / 16;
    const uint4* source = static_cast<const uint4*>(args.tokens) + from * vectors;
    uint4* target = static_cast<uint4*>(args.kept_tokens) + to * vectors;
    for (int i = threadIdx.x; i < vectors; i += kGatherThreads) {
        target[i] = source[i];
    }
}

}  // namespace divprune
