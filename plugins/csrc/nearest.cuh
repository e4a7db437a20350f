// Each row's nearest other valid row, from what every tile of distances says of it.

#pragma once

#include "device.cuh"

namespace divprune {

__device__ __forceinline__ uint32_t lesser(uint32_t a, uint32_t b) { return b < a ? b : a; }

__device__ __forceinline__ uint4 lesser(const uint4& a, const uint4& b) {
    return {lesser(a.x, b.x), lesser(a.y, b.y), lesser(a.z, b.z), lesser(a.w, b.w)};
}

struct Nearest {
    const uint32_t* keys;  // [B, slots, stride]: ordered distances
    int slots;
    int stride;  // a multiple of 4

    // Of one row, or of four neighbouring ones, from so many tiles at once.
    template <class V, int kAtOnce = 4>
    __device__ __forceinline__ V of(int64_t item, int row) const {
        const uint32_t* from = keys + item * slots * stride + row;
        V least = *reinterpret_cast<const V*>(from);
#pragma unroll kAtOnce
        for (int slot = 1; slot < slots; ++slot) {
            least = lesser(least, *reinterpret_cast<const V*>(from + static_cast<int64_t>(slot) * stride));
        }
        return least;
    }
};

}  // namespace divprune
