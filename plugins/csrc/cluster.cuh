// Blocks that work together as a cluster, with a barrier and each other's shared memory (sm_90 and later; before it
// every block is a cluster of its own), and launches that begin before the one before them has ended.

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

// The same where nothing was written for the others, which only must not go on too early: no memory is waited for.
__device__ __forceinline__ void cluster_meet(int blocks) {
    if (blocks == 1) {
        __syncthreads();
        return;
    }
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
}

// A variable in shared memory as another block of the cluster has it.
template <class V>
__device__ __forceinline__ V* of_block(V* shared, int rank) {
    return static_cast<V*>(__cluster_map_shared_rank(shared, static_cast<unsigned>(rank)));
}

// Counts what other blocks of a cluster have stored here, so that a reader waits for that alone: a barrier of the
// cluster would wait for all memory. Between two waits it must be told once how many bytes will come, by one thread.
class Mailbox {
public:
#if defined(__CUDACC__)
    // Before a barrier of the cluster that is before the first use.
    __device__ __forceinline__ void init() {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(here(&state_)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __device__ __forceinline__ void expect(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(here(&state_)), "r"(bytes)
                     : "memory");
    }
    // Until all has come that was expected the time before last (parity 0: the first time).
    __device__ __forceinline__ void wait(int parity) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "again:\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra again;\n"
            "}\n" ::"r"(here(&state_)),
            "r"(parity)
            : "memory");
    }

private:
    friend class Route;
    static __device__ __forceinline__ unsigned here(const void* shared) {
        return static_cast<unsigned>(__cvta_generic_to_shared(shared));
    }
    uint64_t state_;
#else
    void init() { box_ = {}; }
    void expect(int bytes) { emulator::expect_mail(box_, bytes); }
    void wait(int parity) { emulator::wait_for_mail(box_, parity); }

private:
    friend class Route;
    emulator::Mail box_;
#endif
};

// The way to a block's slots, and to the mailboxes in which it counts what comes there, found once: where it is worked
// out for every letter, each of them waits for that.
class Route {
public:
#if defined(__CUDACC__)
    __device__ __forceinline__ Route(Mailbox* boxes, uint64_t* slots, int rank) {
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(boxes_) : "r"(Mailbox::here(boxes)), "r"(rank));
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(slots_) : "r"(Mailbox::here(slots)), "r"(rank));
    }
    // Stores a value in that block's slot, which counts it in its mailbox.
    __device__ __forceinline__ void send(int box, int slot, uint64_t value, bool wanted) const {
        asm volatile(
            "{\n"
            ".reg .pred wanted;\n"
            "setp.ne.u32 wanted, %3, 0;\n"
            "@wanted st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];\n"
            "}\n" ::"r"(slots_ + 8 * slot),
            "l"(value), "r"(boxes_ + 8 * box), "r"(static_cast<uint32_t>(wanted))
            : "memory");
    }

private:
    uint32_t boxes_;
    uint32_t slots_;
#else
    Route(Mailbox* boxes, uint64_t* slots, int rank) : boxes_(boxes), slots_(slots), rank_(rank) {}
    void send(int box, int slot, uint64_t value, bool wanted) const {
        if (wanted) {
            emulator::send_mail(boxes_[box].box_, slots_ + slot, value, rank_);
        }
    }

private:
    Mailbox* boxes_;
    uint64_t* slots_;
    int rank_;
#endif
};

// The next launch may start to be placed.
__device__ __forceinline__ void let_next_launch_begin() { cudaTriggerProgrammaticLaunchCompletion(); }

// Everything that the launch before this one wrote can be read.
__device__ __forceinline__ void wait_for_last_launch() { cudaGridDependencySynchronize(); }

#else

__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ int cluster_blocks() { return 1; }
__device__ __forceinline__ void cluster_sync(int) { __syncthreads(); }
__device__ __forceinline__ void cluster_meet(int) { __syncthreads(); }
struct Mailbox {
    __device__ __forceinline__ void init() {}
    __device__ __forceinline__ void expect(int) {}
    __device__ __forceinline__ void wait(int) {}
};
struct Route {
    __device__ __forceinline__ Route(Mailbox*, uint64_t*, int) {}
    __device__ __forceinline__ void send(int, int, uint64_t, bool) const {}
};
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
