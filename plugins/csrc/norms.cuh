// Row norms in float32, and the state that the later kernels expect to find cleared.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kNormThreads = 128;

// The sum of squares of one row over a block of kNormThreads threads, in thread 0; `shared` holds one float a warp.
template <class T>
__device__ float row_squares(const T* row, int width, float* shared) {
    float sum = 0.0f;
    for (int i = threadIdx.x * Pack<T>::size; i < width; i += kNormThreads * Pack<T>::size) {
        const Pack<T> pack = load_pack(row + i);
#pragma unroll
        for (int j = 0; j < Pack<T>::size; ++j) {
            const float value = to_float(pack.values[j]);
            sum = fmaf(value, value, sum);
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) {
        shared[threadIdx.x / kWarp] = sum;
    }
    __syncthreads();
    sum = 0.0f;
    for (int warp = 0; warp < kNormThreads / kWarp; ++warp) {
        sum += shared[warp];
    }
    return sum;
}

struct NormArgs {
    const void* tokens;
    float* norms;
    uint32_t* nearest;
    uint32_t* arrivals;
    int64_t arrivals_count;
    unsigned long long* best;
    int64_t best_count;
    int n;
    int width;
};

// Grid (N, B): norms[b, i] = max(|x_i|, FLT_MIN); nothing is near anything yet; counters and candidates are zero.
template <class T>
__global__ void __launch_bounds__(kNormThreads) norms_kernel(NormArgs args) {
    __shared__ float shared[kNormThreads / kWarp];
    const int64_t row = static_cast<int64_t>(blockIdx.y) * args.n + blockIdx.x;
    const T* tokens = static_cast<const T*>(args.tokens);
    const float squares = row_squares(tokens + row * args.width, args.width, shared);
    if (threadIdx.x == 0) {
        args.norms[row] = fmaxf(sqrtf(squares), kTiny);
        args.nearest[row] = ordered(kFar);
    }
    const int64_t item = row * kNormThreads + threadIdx.x;
    if (item < args.arrivals_count) {
        args.arrivals[item] = 0;
    }
    if (item < args.best_count) {
        args.best[item] = 0;
    }
}

}  // namespace divprune
