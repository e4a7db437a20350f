// What only sm_90a has: boxes of a tensor that arrive in the shared memory of several blocks, barriers that count their
// bytes, and products by four warps straight from shared memory. All of its PTX is here; where nvcc does not compile it,
// the tests' emulator stands in for it.

#pragma once

#include <cuda.h>

#include "device.cuh"

namespace divprune {

// Threads that multiply together, and the values of each row that one instruction takes.
constexpr int kWarpgroup = 128;
constexpr int kProductDepth = 16;
// Columns of the product; a thread of a warpgroup has half as many sums.
constexpr int kProductColumns = 256;
constexpr int kSums = kProductColumns / 2;

// Rows in shared memory as boxes bring them and products take them: 128 bytes each, one after the other, of which the
// 16-byte pieces of row r lie in the order of `piece ^ r % 8`. Eight rows begin on a multiple of their size.
constexpr int kRowBytes = 128;
constexpr int kEightRows = 8 * kRowBytes;

// Where the 16 bytes of number `piece` of row `row` lie.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A barrier in shared memory that completes, phase after phase, once so many have arrived and all bytes have that were
// expected.
class Barrier {
public:
    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state_)), "r"(arrivals)
                     : "memory");
    }
    // Arrives, and expects so many bytes more in this phase.
    __device__ __forceinline__ void expect(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state_)),
                     "r"(bytes)
                     : "memory");
    }
    // Arrives at the barrier of this name of a block of the cluster. What this thread has read is read by then; what it
    // wrote, only its own block may rely on: to make it known to others would wait for all memory.
    __device__ __forceinline__ void arrive_at(int rank) {
        asm volatile(
            "{\n"
            ".reg .u32 barrier;\n"
            "mapa.shared::cluster.u32 barrier, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [barrier];\n"
            "}\n" ::"r"(shared_address(&state_)),
            "r"(rank)
            : "memory");
    }
    // Until a phase of this parity has completed; the first one has parity 0.
    __device__ __forceinline__ void wait(int parity) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "again:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra again;\n"
            "}\n" ::"r"(shared_address(&state_)),
            "r"(parity)
            : "memory");
    }
    // Starts copying the box at these coordinates to `shared`; its bytes arrive at this barrier.
    __device__ __forceinline__ void load(const CUtensorMap& tensor, void* shared, int k, int row, int item) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
            "[%5];" ::"r"(shared_address(shared)),
            "l"(&tensor), "r"(k), "r"(row), "r"(item), "r"(shared_address(&state_))
            : "memory");
    }
    // The same to the same place of each block of the cluster whose bit is set, where they arrive at the barrier of this
    // name.
    __device__ __forceinline__ void load_for(unsigned blocks, const CUtensorMap& tensor, void* shared, int k, int row,
                                             int item) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
            "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
            "l"(&tensor), "r"(k), "r"(row), "r"(item), "r"(shared_address(&state_)),
            "h"(static_cast<uint16_t>(blocks))
            : "memory");
    }

private:
    uint64_t state_;
};

// Barriers that were initialized are so for the whole cluster, after its next barrier.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What this thread read or wrote in shared memory comes before what boxes and products do there.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product, and after sums were touched.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than `groups` of the committed groups are under way: what these read may be overwritten.
template <int groups>
__device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

#define DIVPRUNE_8(i)                                                                                               \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]),    \
        "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define DIVPRUNE_32(i) DIVPRUNE_8(i), DIVPRUNE_8(i + 8), DIVPRUNE_8(i + 16), DIVPRUNE_8(i + 24)
#define DIVPRUNE_ALL_SUMS DIVPRUNE_32(0), DIVPRUNE_32(32), DIVPRUNE_32(64), DIVPRUNE_32(96)

// Sums are in their registers here, and nothing moves them from one side of this to the other.
__device__ __forceinline__ void hold(float (&sums)[kSums]) { asm volatile("" : DIVPRUNE_ALL_SUMS : : "memory"); }

// Until all sums can be read.
__device__ __forceinline__ void warpgroup_finish(float (&sums)[kSums]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : DIVPRUNE_ALL_SUMS : : "memory");
}

#define DIVPRUNE_MULTIPLY(type)                                                                                     \
    asm volatile(                                                                                                   \
        "{\n"                                                                                                       \
        ".reg .pred adds;\n"                                                                                        \
        "setp.eq.u32 adds, 0, 0;\n"                                                                                 \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {"                                           \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                    \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                          \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                          \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                          \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                          \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                          \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "              \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"            \
        "}, %128, %129, adds, 1, 1, 0, 0;\n"                                                                        \
        "}\n"                                                                                                       \
        : DIVPRUNE_ALL_SUMS                                                                                         \
        : "l"(rows), "l"(columns)                                                                                   \
        : "memory")

// Starts to add the products of 64 rows and 256 columns, each of 16 values, as `matrix_at` says where they are. Sum
// 4 * b + 2 * h + e of lane l of warp w of the warpgroup is of row 16 * w + l / 4 + 8 * h, column 8 * b + l % 4 * 2 + e.
__device__ __forceinline__ void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, __half) {
    DIVPRUNE_MULTIPLY("f16");
}
__device__ __forceinline__ void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, __nv_bfloat16) {
    DIVPRUNE_MULTIPLY("bf16");
}

#undef DIVPRUNE_MULTIPLY
#undef DIVPRUNE_ALL_SUMS
#undef DIVPRUNE_32
#undef DIVPRUNE_8

#else

using emulator::Barrier;
using emulator::fence_async_proxy;
using emulator::hold;
using emulator::multiply;
using emulator::publish_barriers;
using emulator::shared_address;
using emulator::warpgroup_commit;
using emulator::warpgroup_fence;
using emulator::warpgroup_finish;
using emulator::warpgroup_wait;

#endif

// Describes rows in shared memory, from the one at this address on, for `multiply`: address, bytes from eight rows to
// the next eight (the other of the two distances means nothing in this order), and the order of 128 bytes.
__device__ __forceinline__ uint64_t matrix_at(uint32_t address) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | 1ull << 16 |
           static_cast<uint64_t>(kEightRows >> 4) << 32 | 1ull << 62;
}

}  // namespace divprune
