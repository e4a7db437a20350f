// The greedy picks without a stored matrix: each step computes the distances to the last pick anew. The steps are
// separate launches of a fixed number; the pick travels from one to the next as a 64-bit maximum in the workspace.

#pragma once

#include "ascending.cuh"
#include "nearest.cuh"

namespace divprune {

constexpr int kStepThreads = 256;
constexpr int kSortThreads = 1024;

struct StepArgs {
    const void* tokens;
    const float* norms;
    const uint8_t* valid;
    Nearest nearest;
    const int64_t* seeds;
    float* values;
    unsigned long long* best;
    int64_t* kept;
    int n;
    int width;
    int keep;
    int step;
};

__device__ __forceinline__ void offer(uint64_t candidate, uint64_t* partial, unsigned long long* best) {
    const uint64_t winner = block_best(candidate, partial);
    if (threadIdx.x == 0) {
        atomicMax(best, static_cast<unsigned long long>(winner));
    }
}

// Grid (ceil(N / 256), B): start values, and the first pick.
template <Rule rule>
__global__ void __launch_bounds__(kStepThreads) first_kernel(StepArgs args) {
    __shared__ uint64_t partial[kWarp];
    const int item = blockIdx.y;
    const int64_t base = static_cast<int64_t>(item) * args.n;
    const int row = blockIdx.x * kStepThreads + threadIdx.x;
    uint64_t mine = 0;
    if (row < args.n) {
        const bool live = args.valid == nullptr || args.valid[base + row] != 0;
        args.values[base + row] = start_value<rule>(live);
        if (rule == Rule::kMaxMin) {
            mine = pack(live ? args.nearest.of<uint32_t>(item, row) : ordered(kInvalid), row);
        }
    }
    if (rule == Rule::kMinSum && row == 0) {
        const int64_t seed = args.seeds[item];
        mine = candidate(0.0f, static_cast<uint32_t>(seed < 0 ? 0 : seed >= args.n ? args.n - 1 : seed));
    }
    offer(mine, partial, args.best + static_cast<int64_t>(item) * args.keep);
}

// The dot product of two rows over a warp, in every lane.
template <class T>
__device__ float warp_dot(const T* a, const T* b, int width) {
    float sum = 0.0f;
    for (int i = threadIdx.x % kWarp * Pack<T>::size; i < width; i += kWarp * Pack<T>::size) {
        const Pack<T> left = load_pack(a + i);
        const Pack<T> right = load_pack(b + i);
#pragma unroll
        for (int j = 0; j < Pack<T>::size; ++j) {
            sum = fmaf(to_float(left.values[j]), to_float(right.values[j]), sum);
        }
    }
    return warp_sum(sum);
}

// Grid (ceil(N / 8), B): one warp for each row takes the last pick into its value; pick number `step` follows.
template <class T, Rule rule>
__global__ void __launch_bounds__(kStepThreads) step_kernel(StepArgs args) {
    __shared__ uint64_t partial[kWarp];
    const int item = blockIdx.y;
    const int64_t base = static_cast<int64_t>(item) * args.n;
    unsigned long long* best = args.best + static_cast<int64_t>(item) * args.keep + args.step;
    const T* tokens = static_cast<const T*>(args.tokens) + base * args.width;
    const int pick = candidate_index(best[-1]);
    const int row = blockIdx.x * (kStepThreads / kWarp) + threadIdx.x / kWarp;
    uint64_t mine = 0;
    if (row < args.n) {
        float value = args.values[base + row];
        if (row == pick) {
            value = kTaken;
        } else if (value > kLive) {
            const float dot = warp_dot(tokens + static_cast<int64_t>(row) * args.width,
                                       tokens + static_cast<int64_t>(pick) * args.width, args.width);
            const float row_norm = args.norms[base + row];
            const float pick_norm = args.norms[base + pick];
            value = accumulate<rule>(value, row < pick ? cosine_distance(dot, row_norm, pick_norm)
                                                       : cosine_distance(dot, pick_norm, row_norm));
        }
        __syncwarp();
        if (threadIdx.x % kWarp == 0) {
            args.values[base + row] = value;
        }
        mine = candidate(value, row);
    }
    offer(mine, partial, best);
}

// Grid (B): the picks in ascending order.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(StepArgs args) {
    __shared__ uint32_t chosen[kBitmapWords];
    for (int word = threadIdx.x; word < kBitmapWords; word += kSortThreads) {
        chosen[word] = 0;
    }
    __syncthreads();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * args.keep;
    for (int step = threadIdx.x; step < args.keep; step += kSortThreads) {
        const uint32_t pick = candidate_index(args.best[first + step]);
        atomicOr(chosen + pick / 32, 1u << pick % 32);
    }
    __syncthreads();
    write_ascending(chosen, args.n, args.kept + first);
}

}  // namespace divprune
