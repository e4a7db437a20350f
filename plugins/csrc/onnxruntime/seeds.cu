#include "seeds.h"

#include <cuda_runtime.h>

#include "../device.cuh"
#include "../launch.h"

namespace divprune {
namespace {

constexpr int kThreads = 256;

// One block for each item.
__global__ void seeds_kernel(const float* attention, const uint8_t* valid, int n, int64_t* seeds) {
    __shared__ uint64_t partial[kWarp];
    const int64_t start = static_cast<int64_t>(blockIdx.x) * n;
    uint64_t mine = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) {
        const uint64_t other = candidate(attention[start + i], static_cast<uint32_t>(i));
        mine = row_is_valid(valid + start, i) && other > mine ? other : mine;
    }
    const uint64_t best = block_best(mine, partial);
    if (threadIdx.x == 0) {
        seeds[blockIdx.x] = best == 0 ? 0 : candidate_index(best);
    }
}

}  // namespace

int find_seeds(const divprune_problem& problem, const float* attention, const uint8_t* valid, int64_t* seeds,
               void* stream) {
    return to_status(launch(seeds_kernel, {dim3(static_cast<unsigned>(problem.batch)), kThreads},
                            static_cast<cudaStream_t>(stream), attention, valid, static_cast<int>(problem.candidates),
                            seeds));
}

}  // namespace divprune
