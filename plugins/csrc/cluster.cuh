// Blocks that work together as a cluster, with a barrier and each other's shared memory (sm_90 and later; before it every
// block is a cluster of its own), and launches that begin before the one before them has ended.

#pragma once

#include "device.cuh"

namespace divprune {

// What the code for this architecture may be launched with.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ int cluster_rank() { return static_cast<int>(__clusterRelativeBlockRank()); }

__device__ __forceinline__ int cluster_blocks() { return static_cast<int>(__clusterSizeInBlocks()); }

// A barrier over all threads of `blocks` blocks; what one of them wrote to shared memory, the others can read.
__device__ __forceinline__ void cluster_sync(int blocks) {
    if (blocks == 1) {
        __syncthreads();
        return;
    }
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
}

// A variable in shared memory as another block of the cluster has it.
template <class V>
__device__ __forceinline__ V* of_block(V* shared, int rank) {
    return static_cast<V*>(__cluster_map_shared_rank(shared, static_cast<unsigned>(rank)));
}

// The next launch may start to be placed.
__device__ __forceinline__ void let_next_launch_begin() { cudaTriggerProgrammaticLaunchCompletion(); }

// Everything that the launch before this one wrote can be read.
__device__ __forceinline__ void wait_for_last_launch() { cudaGridDependencySynchronize(); }

#else

__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ int cluster_blocks() { return 1; }
__device__ __forceinline__ void cluster_sync(int) { __syncthreads(); }
template <class V>
__device__ __forceinline__ V* of_block(V* shared, int) {
    return shared;
}
__device__ __forceinline__ void let_next_launch_begin() {}
__device__ __forceinline__ void wait_for_last_launch() {}

#endif

// What later launches of a call expect to be zero, spread over all threads of the first one.
struct Reset {
    uint32_t* words;
    int64_t count;

    __device__ __forceinline__ void run() const {
        const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
        const int64_t threads = static_cast<int64_t>(gridDim.x) * gridDim.y * blockDim.x;
        for (int64_t word = block * blockDim.x + threadIdx.x; word < count; word += threads) {
            words[word] = 0;
        }
    }
};

}  // namespace divprune
