// Small device functions: vector loads, conversions, reductions over a warp.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "selection.h"

namespace divprune {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// 16 bytes of a row: 4 floats or 8 values of 16 bits.
template <class T>
struct Pack {
    static constexpr int size = 16 / sizeof(T);
    T values[size];
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    Pack<T> pack;
    memcpy(&pack, &raw, sizeof raw);
    return pack;
}

// The sum over a warp, in every lane; the order of additions is fixed.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, distance);
    }
    return value;
}

// The sum of a few values, in a fixed order.
template <int count>
__device__ __forceinline__ float sum_in_pairs(const float (&values)[count]) {
    float sums[count];
    memcpy(sums, values, sizeof values);
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) {
            sums[i] += sums[i + half];
        }
    }
    return sums[0];
}

__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_min_sync(kFullWarp, value);
#else
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const uint32_t other = __shfl_xor_sync(kFullWarp, value, distance);
        value = other < value ? other : value;
    }
    return value;
#endif
}

// The best candidate of a warp, in every lane. Where the hardware reduces 32-bit integers by itself, two such
// reductions replace five rounds of 64-bit shuffles.
__device__ __forceinline__ uint64_t warp_best(uint64_t candidate) {
#if __CUDA_ARCH__ >= 800
    const uint32_t key = static_cast<uint32_t>(candidate >> 32);
    const uint32_t best = __reduce_max_sync(kFullWarp, key);
    const uint32_t low = __reduce_max_sync(kFullWarp, key == best ? static_cast<uint32_t>(candidate) : 0u);
    return static_cast<uint64_t>(best) << 32 | low;
#else
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const uint64_t other = __shfl_xor_sync(kFullWarp, static_cast<unsigned long long>(candidate), distance);
        candidate = other > candidate ? other : candidate;
    }
    return candidate;
#endif
}

// Values in shared memory whose address stays in a register. Where it is worked out anew for every use, as the compiler
// likes to on sm_90, each use waits for the number of the block.
template <class V>
class SharedPlace {
public:
#if defined(__CUDACC__)
    __device__ __forceinline__ explicit SharedPlace(V* at)
        : at_(static_cast<uint32_t>(__cvta_generic_to_shared(at))) {
        asm volatile("" : "+r"(at_));
    }
    // Offsets count values.
    __device__ __forceinline__ void put(int offset, uint64_t value, bool wanted) const {
        asm volatile(
            "{\n"
            ".reg .pred wanted;\n"
            "setp.ne.u32 wanted, %2, 0;\n"
            "@wanted st.shared.b64 [%0], %1;\n"
            "}\n" ::"r"(at_ + 8 * offset),
            "l"(value), "r"(static_cast<uint32_t>(wanted))
            : "memory");
    }
    __device__ __forceinline__ uint64_t get(int offset) const {
        uint64_t value;
        asm volatile("ld.shared.b64 %0, [%1];" : "=l"(value) : "r"(at_ + 8 * offset) : "memory");
        return value;
    }

private:
    uint32_t at_;
#else
    explicit SharedPlace(V* at) : at_(at) {}
    void put(int offset, uint64_t value, bool wanted) const {
        if (wanted) {
            at_[offset] = value;
        }
    }
    uint64_t get(int offset) const { return at_[offset]; }

private:
    V* at_;
#endif
};

// A pointer that stays in registers, for the same reason.
template <class V>
__device__ __forceinline__ V* kept(V* pointer) {
#if defined(__CUDACC__)
    asm volatile("" : "+l"(pointer));
#endif
    return pointer;
}

// The best candidate of a block, in every thread. `partial` is shared memory of 32 candidates; calls in a row must
// alternate between two of them, which saves the barrier that would keep a slow reader from a fast writer.
__device__ __forceinline__ uint64_t block_best(uint64_t candidate, uint64_t* partial) {
    const int lane = threadIdx.x % kWarp;
    candidate = warp_best(candidate);
    if (lane == 0) {
        partial[threadIdx.x / kWarp] = candidate;
    }
    __syncthreads();
    const int warps = blockDim.x / kWarp;
    return warp_best(lane < warps ? partial[lane] : 0);
}

__device__ __forceinline__ bool row_is_valid(const uint8_t* valid, int row) {
    return valid == nullptr || valid[row] != 0;
}

}  // namespace divprune
