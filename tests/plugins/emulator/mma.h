// Warp-wide 16x16x16 matrix fragments: each lane holds 8 consecutive elements of the row-major tile. The real layout
// is not specified, and code that uses the interface as documented cannot depend on it.

#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

inline float widen(__half value) { return __half2float(value); }
inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
    static_assert(m == 16 && n == 16 && k == 16, "only 16x16x16 is emulated");
    float x[8];
};

template <class Fragment>
void fill_fragment(Fragment& fragment, float value) {
    for (float& x : fragment.x) {
        x = value;
    }
}

inline void check_tile(const void* at, unsigned stride, std::size_t multiple) {
    emulator::require(reinterpret_cast<uintptr_t>(at) % 32 == 0, "a matrix tile is not on 32 bytes");
    emulator::require(stride % multiple == 0, "the stride of a matrix tile is not a multiple of 16 bytes");
}

template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& fragment, const T* from, unsigned stride) {
    check_tile(from, stride, 16 / sizeof(T));
    constexpr bool row_major_tile = std::is_same<Layout, row_major>::value;
    for (unsigned i = 0; i < 8; ++i) {
        const unsigned row = (emulator::lane() * 8 + i) / 16;
        const unsigned col = (emulator::lane() * 8 + i) % 16;
        fragment.x[i] = widen(row_major_tile ? from[row * stride + col] : from[col * stride + row]);
    }
    __syncwarp();
}

template <class A, class B, class Sums>
void mma_sync(Sums& result, const A& a, const B& b, const Sums& sums) {
    struct Factors {
        float a[8];
        float b[8];
    } mine;
    std::memcpy(mine.a, a.x, sizeof mine.a);
    std::memcpy(mine.b, b.x, sizeof mine.b);
    const unsigned char* all = emulator::exchange(&mine, sizeof mine);
    const auto factors = [&](unsigned element) {
        return reinterpret_cast<const Factors*>(all + element / 8 * 64);
    };
    for (unsigned i = 0; i < 8; ++i) {
        const unsigned row = (emulator::lane() * 8 + i) / 16;
        const unsigned col = (emulator::lane() * 8 + i) % 16;
        float sum = sums.x[i];
        for (unsigned k = 0; k < 16; ++k) {
            sum += factors(row * 16 + k)->a[k % 8] * factors(k * 16 + col)->b[col % 8];
        }
        result.x[i] = sum;
    }
}

template <class Sums>
void store_matrix_sync(float* to, const Sums& sums, unsigned stride, layout_t) {
    check_tile(to, stride, 4);
    for (unsigned i = 0; i < 8; ++i) {
        to[(emulator::lane() * 8 + i) / 16 * stride + (emulator::lane() * 8 + i) % 16] = sums.x[i];
    }
    __syncwarp();
}

}  // namespace wmma
}  // namespace nvcuda
