// The greedy picks on a stored matrix, in one launch of one block for each item.

#pragma once

#include "ascending.cuh"

namespace divprune {

constexpr int kPickThreads = 1024;

struct PickArgs {
    const float* matrix;
    const uint8_t* valid;
    const uint32_t* nearest;  // max-min: ordered distance to the nearest other valid row
    const int64_t* seeds;     // sum rule: the first pick
    int64_t* kept;
    int n;
    int stride;
    int keep;
};

// Vectors of four rows that a thread holds; the others follow from the number of candidates.
inline int pick_vectors(int n) {
    int vectors = 1;
    while (vectors * 4 * kPickThreads < n) {
        vectors *= 2;
    }
    return vectors;
}

inline int pick_threads(int n) {
    const int rows = 4 * pick_vectors(n);
    return ((n + rows - 1) / rows + kWarp - 1) / kWarp * kWarp;
}

// Grid (B). Every row's value stays in a register from the first pick to the last; a step is one coalesced read of
// the picked row and one reduction over the block with one barrier.
template <Rule rule, int kVectors>
__global__ void __launch_bounds__(kPickThreads) pick_kernel(PickArgs args) {
    __shared__ uint64_t partial[2][kWarp];
    __shared__ uint32_t chosen[kBitmapWords];
    const int64_t base = static_cast<int64_t>(blockIdx.x) * args.n;
    const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
    const float* matrix = args.matrix + base * args.stride;

    for (int word = threadIdx.x; word < kBitmapWords; word += blockDim.x) {
        chosen[word] = 0;
    }
    float values[kVectors][4];
    uint64_t best = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int first = 4 * (threadIdx.x + v * blockDim.x);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = first + e;
            const bool is_valid = row < args.n && row_is_valid(valid, row);
            values[v][e] = start_value<rule>(is_valid);
            if (rule == Rule::kMaxMin && row < args.n) {
                const uint32_t key = is_valid ? args.nearest[base + row] : ordered(kInvalid);
                const uint64_t mine = pack(key, row);
                best = mine > best ? mine : best;
            }
        }
    }
    if (rule == Rule::kMinSum && threadIdx.x == 0) {
        const int64_t seed = args.seeds[blockIdx.x];
        best = candidate(0.0f, static_cast<uint32_t>(seed < 0 ? 0 : seed >= args.n ? args.n - 1 : seed));
    }
    int pick = candidate_index(block_best(best, partial[0]));

    for (int step = 1; step < args.keep; ++step) {
        if (threadIdx.x == 0) {
            chosen[pick / 32] |= 1u << pick % 32;
        }
        const float* row = matrix + static_cast<int64_t>(pick) * args.stride;
        float best_value = 0.0f;
        int best_row = -1;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            const int first = 4 * (threadIdx.x + v * blockDim.x);
            if (first >= args.n) {
                continue;
            }
            const float4 loaded = *reinterpret_cast<const float4*>(row + first);
            const float distances[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int mine = first + e;
                values[v][e] = mine == pick ? kTaken : accumulate<rule>(values[v][e], distances[e]);
                // Rows come in ascending order, so a strict comparison leaves ties to the smallest index.
                if (mine < args.n && (best_row < 0 || values[v][e] > best_value)) {
                    best_value = values[v][e];
                    best_row = mine;
                }
            }
        }
        best = best_row < 0 ? 0 : candidate(best_value, best_row);
        pick = candidate_index(block_best(best, partial[step % 2]));
    }
    if (threadIdx.x == 0) {
        chosen[pick / 32] |= 1u << pick % 32;
    }
    __syncthreads();
    write_ascending(chosen, args.n, args.kept + static_cast<int64_t>(blockIdx.x) * args.keep);
}

// Grid (N, B), 128 threads: copies the caller's matrix to one with padded rows and finds each row's nearest other
// valid row.
inline constexpr int kAdoptThreads = 128;

struct AdoptArgs {
    const float* distances;
    const uint8_t* valid;
    float* matrix;
    uint32_t* nearest;
    int n;
    int stride;
};

__global__ void __launch_bounds__(kAdoptThreads) adopt_kernel(AdoptArgs args) {
    __shared__ uint32_t shared[kAdoptThreads / kWarp];
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.n;
    const int64_t row = base + blockIdx.x;
    const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
    const bool row_valid = row_is_valid(valid, blockIdx.x);
    float nearest = kFar;
    for (int j = threadIdx.x; j < args.n; j += kAdoptThreads) {
        const float distance = args.distances[row * args.n + j];
        args.matrix[row * args.stride + j] = distance;
        if (j != static_cast<int>(blockIdx.x) && row_valid && row_is_valid(valid, j)) {
            nearest = accumulate<Rule::kMaxMin>(nearest, distance);
        }
    }
    const uint32_t key = warp_min(ordered(nearest));
    if (threadIdx.x % kWarp == 0) {
        shared[threadIdx.x / kWarp] = key;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t least = shared[0];
        for (int warp = 1; warp < kAdoptThreads / kWarp; ++warp) {
            least = shared[warp] < least ? shared[warp] : least;
        }
        args.nearest[row] = least;
    }
}

}  // namespace divprune
