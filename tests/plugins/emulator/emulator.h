// A stand-in for CUDA that runs the plugin's kernels on the CPU, for tests only. It is not a GPU and says nothing
// about speed.
//
// Every thread of a block is a fiber; a fiber runs until it has to wait for its block or its warp. Blocks run one after
// the other; those of a cluster each on a thread of the operating system, one at a time, so that what is thread_local
// to it is the shared memory of one block, which the others find by its address. The order in which fibers and blocks
// run is chosen by divprune_emulator_schedule, so a missing barrier shows as a difference between schedules.
// Asynchronous copies happen only when they are waited for; alignment rules of the real interface are asserted; a
// barrier that some threads never reach ends the process with a message.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One operating-system thread runs all fibers of a block: what is thread_local to it is shared by them.
#define __shared__ thread_local

struct uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern thread_local dim3 threadIdx;
extern thread_local dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace emulator {

// The current device, and the kernels that were started.
extern int device;
extern unsigned launches;

[[noreturn]] void fail(const char* what);
void run_grid(dim3 grid, dim3 block, std::size_t shared, unsigned cluster, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_cluster();
unsigned cluster_rank();
unsigned cluster_blocks();
// What other blocks of the cluster store here, and how much of it is still to come.
struct Mail {
    int32_t bytes = 0;
    int16_t told = 0;
    int16_t times = 0;
};
void expect_mail(Mail& box, int bytes);
void send_mail(Mail& box, uint64_t* slot, uint64_t value, int rank);
void wait_for_mail(const Mail& box, int parity);
// A thread waits until another one may have done what it waits for; one has.
void wait_a_turn();
void delivered();
unsigned schedule();
// Of a block, at most.
constexpr std::size_t kSharedBytes = 227 * 1024;
// Where a block of the cluster has what this one has at `shared`.
void* of_block(const void* shared, unsigned rank);
// Publishes `bytes` of this lane and waits for the warp; returns what lane `lane` published is at lane * 64.
const unsigned char* exchange(const void* mine, std::size_t bytes);
void queue_copy(void* to, const void* from, std::size_t bytes, std::size_t zeros);
void commit_copies();
void wait_for_copies(std::size_t groups_in_flight);
void allow_shared(const void* kernel, std::size_t bytes);
std::size_t allowed_shared(const void* kernel);

inline unsigned lane() { return threadIdx.x % 32; }

inline void require(bool holds, const char* what) {
    if (!holds) {
        fail(what);
    }
}

template <class T>
T from_lane(const T& mine, unsigned lane) {
    T theirs;
    std::memcpy(&theirs, exchange(&mine, sizeof mine) + lane * 64, sizeof theirs);
    return theirs;
}

template <class T, class Combine>
T reduce(T mine, Combine combine) {
    const unsigned char* all = exchange(&mine, sizeof mine);
    T result = mine;
    for (unsigned i = 0; i < 32; ++i) {
        T theirs;
        std::memcpy(&theirs, all + i * 64, sizeof theirs);
        result = combine(result, theirs);
    }
    return result;
}

}  // namespace emulator

#if __CUDA_ARCH__ >= 900
inline unsigned __clusterRelativeBlockRank() { return emulator::cluster_rank(); }
inline unsigned __clusterSizeInBlocks() { return emulator::cluster_blocks(); }
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_arrive_relaxed() {}
inline void __cluster_barrier_wait() { emulator::wait_for_cluster(); }
inline void* __cluster_map_shared_rank(const void* shared, unsigned rank) { return emulator::of_block(shared, rank); }
// Launches run one after the other.
inline void cudaTriggerProgrammaticLaunchCompletion() {}
inline void cudaGridDependencySynchronize() {}
#endif

// A block that waits for another one of its grid waits forever unless that has begun before it: here it has ended,
// then.
inline void __nanosleep(unsigned) { emulator::fail("a block waits for one that begins after it"); }
inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() { emulator::from_lane(0, 0); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::from_lane(value, emulator::lane() ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
    const unsigned lane = emulator::lane();
    return emulator::from_lane(value, lane >= delta ? lane - delta : lane);
}
inline uint32_t __reduce_min_sync(unsigned, uint32_t value) {
    return emulator::reduce(value, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) {
    return emulator::reduce(value, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}

template <class T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at += value;
    return before;
}
template <class T>
T atomicMin(T* at, T value) {
    const T before = *at;
    *at = value < before ? value : before;
    return before;
}
template <class T>
T atomicMax(T* at, T value) {
    const T before = *at;
    *at = value > before ? value : before;
    return before;
}
template <class T>
T atomicOr(T* at, T value) {
    const T before = *at;
    *at |= value;
    return before;
}

template <class T>
T __ldcg(const T* from) {
    return *from;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
