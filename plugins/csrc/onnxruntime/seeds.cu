#include "seeds.h"

#include <cuda_runtime.h>

#include "../launch.h"
#include "../selection.h"

namespace divprune {
namespace {

constexpr int kThreads = 256;

// One block for each item; the halving order does not matter to a maximum of integers.
__global__ void seeds_kernel(const float* attention, const uint8_t* valid, int n, int64_t* seeds) {
    __shared__ unsigned long long best[kThreads];
    const int64_t start = static_cast<int64_t>(blockIdx.x) * n;
    unsigned long long mine = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) {
        const unsigned long long other = candidate(attention[start + i], static_cast<uint32_t>(i));
        mine = valid[start + i] != 0 && other > mine ? other : mine;
    }
    best[threadIdx.x] = mine;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half && best[threadIdx.x + half] > best[threadIdx.x]) {
            best[threadIdx.x] = best[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        seeds[blockIdx.x] = best[0] == 0 ? 0 : candidate_index(best[0]);
    }
}

}  // namespace

int find_seeds(const divprune_problem& problem, const float* attention, const uint8_t* valid, int64_t* seeds,
               void* stream) {
    return to_status(launch(seeds_kernel, dim3(static_cast<unsigned>(problem.batch)), kThreads, 0,
                            static_cast<cudaStream_t>(stream), attention, valid, static_cast<int>(problem.candidates),
                            seeds));
}

}  // namespace divprune
