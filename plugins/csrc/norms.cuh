// Row norms in float32 by themselves: for the sum rule without a stored matrix, which needs no distances of all pairs.

#pragma once

#include "cluster.cuh"

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
    Reset reset;
    int n;
    int width;
};

// Grid (N, B): norms[b, i] = max(|x_i|, FLT_MIN).
template <class T>
__global__ void __launch_bounds__(kNormThreads) norms_kernel(NormArgs args) {
    __shared__ float shared[kNormThreads / kWarp];
    args.reset.run();
    const int64_t row = static_cast<int64_t>(blockIdx.y) * args.n + blockIdx.x;
    const T* tokens = static_cast<const T*>(args.tokens);
    const float squares = row_squares(tokens + row * args.width, args.width, shared);
    if (threadIdx.x == 0) {
        args.norms[row] = fmaxf(sqrtf(squares), kTiny);
    }
}

}  // namespace divprune
