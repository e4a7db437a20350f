// What stands in for sm_90a: boxes of a tensor, barriers that count bytes, and products by warpgroups from shared memory,
// by the rules of the PTX ISA.
//
// What is asynchronous happens as late as it may or as early as it may, by the schedule, so that what does not wait for
// it reads something else: 0: both late, 1: boxes early, 2: products early, 3: both. A box that is late comes when
// somebody waits for its barrier, a product when its group is waited for. Until then its sums are no numbers.

#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

#define __grid_constant__

struct alignas(64) CUtensorMap {
    const unsigned char* tokens;
    uint64_t sizes[3];
    uint64_t strides[2];
    uint32_t box[3];
    bool swizzled;
};

namespace emulator {

// Where in shared memory something is, which begins anywhere on 128 bytes.
uint32_t shared_address(const void* shared);

class Barrier {
public:
    void init(int arrivals);
    void expect(int bytes);
    void arrive_at(int rank);
    void wait(int parity);
    void load(const CUtensorMap& tensor, void* shared, int k, int row, int item);
    void load_for(unsigned blocks, const CUtensorMap& tensor, void* shared, int k, int row, int item);
    // A box has come.
    void complete(int bytes);

private:
    void arrive();
    void advance();

    int32_t bytes_;
    uint8_t count_;
    uint8_t arrived_;
    uint8_t phases_;
    bool brings_;  // boxes
};

void publish_barriers();
void fence_async_proxy();
void warpgroup_fence();
void warpgroup_commit();
void wait_for_products(int groups);

template <int groups>
void warpgroup_wait() {
    wait_for_products(groups);
}

constexpr int kSums = 128;
using Widen = float (*)(uint16_t bits);
void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, Widen widen);

inline void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, __half) {
    multiply(sums, rows, columns, [](uint16_t bits) { return __half2float({bits}); });
}
inline void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, __nv_bfloat16) {
    multiply(sums, rows, columns, [](uint16_t bits) { return __bfloat162float({bits}); });
}
inline void hold(float (&)[kSums]) {}
inline void warpgroup_finish(float (&)[kSums]) { wait_for_products(0); }

// Of the emulator itself: a block begins, a thread of it ends, all have.
void begin_asynchronous(std::size_t threads);
void end_asynchronous_thread(std::size_t thread);
void end_asynchronous();

}  // namespace emulator
