// The greedy picks on a stored matrix, and the copy of the rows that they keep, in one launch.

#pragma once

#include "ascending.cuh"
#include "cluster.cuh"
#include "gather.cuh"
#include "nearest.cuh"

namespace divprune {

struct PickArgs {
    const float* matrix;
    const uint8_t* valid;
    Nearest nearest;       // max-min
    const int64_t* seeds;  // sum rule: the first pick
    int64_t* kept;
    GatherArgs gather;
    uint32_t* begun;  // zero: how many clusters have begun
    uint32_t* made;   // [B], zero: whether an item's picks are made
    int n;
    int stride;
    int keep;
    int items;
    int workers;  // blocks that copy an item's rows
};

// What the warps of a block, or of a cluster, tell each other: a candidate each, and of a cluster who has come. Steps
// alternate between two, which saves the barrier that would keep a slow reader from a fast writer: nobody sends twice
// before he has heard of all others.
struct Exchange {
    uint64_t partial[2][kWarp];  // zero where no warp writes
    Mailbox mail[2];

    // Before a barrier that is before the first use.
    __device__ __forceinline__ void init() {
        for (int i = threadIdx.x; i < 2 * kWarp; i += blockDim.x) {
            partial[i / kWarp][i % kWarp] = 0;
        }
        if (threadIdx.x < 2) {
            mail[threadIdx.x].init();
        }
    }
};

// One thread's part in that.
struct Desk {
    SharedPlace<uint64_t> out;  // where its warp's candidate goes in its own block
    SharedPlace<uint64_t> in;   // the candidate that its lane reads
    Route route;                // where its lane sends its warp's candidate in a cluster
    int blocks;
    bool speaks;  // for its warp

    __device__ __forceinline__ Desk(Exchange& exchange, int blocks)
        : out(exchange.partial[0] + threadIdx.x / kWarp),
          in(exchange.partial[0] + threadIdx.x % kWarp),
          route(exchange.mail,
                exchange.partial[0] + (cluster_rank() * static_cast<int>(blockDim.x) + threadIdx.x) / kWarp,
                static_cast<int>(threadIdx.x) % kWarp < blocks ? static_cast<int>(threadIdx.x) % kWarp : 0),
          blocks(blocks),
          speaks(threadIdx.x % kWarp == 0) {}
};

// What a step's mail will be; before the step's own candidates are known, as nobody need wait for that.
__device__ __forceinline__ void expect_mail(Exchange& exchange, const Desk& desk, int step) {
    if (desk.blocks > 1 && threadIdx.x == 0) {
        const int warps = desk.blocks * static_cast<int>(blockDim.x) / kWarp;
        exchange.mail[step % 2].expect(warps * static_cast<int>(sizeof(uint64_t)));
    }
}

// The best candidate of a cluster of at most 32 warps, in every thread. Each warp tells it to every block.
__device__ __forceinline__ uint64_t cluster_best(uint64_t candidate, Exchange& exchange, const Desk& desk, int step) {
    const int turn = step % 2;
    candidate = warp_best(candidate);
    if (desk.blocks == 1) {
        desk.out.put(turn * kWarp, candidate, desk.speaks);
        __syncthreads();
    } else {
        desk.route.send(turn, turn * kWarp, candidate, static_cast<int>(threadIdx.x) % kWarp < desk.blocks);
        __syncwarp();
        exchange.mail[turn].wait(step / 2 % 2);
    }
    return warp_best(desk.in.get(turn * kWarp));
}

// A thread's best candidate: the largest of its values, and of equal ones the first, as rows come in ascending order.
// Which it is can be found out while the value is compared with those of other threads.
template <int kVectors>
__device__ __forceinline__ uint64_t best_of(const float (&values)[kVectors][4], int thread, int threads) {
    float largest = kNowhere;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const float four = fmaxf(fmaxf(values[v][0], values[v][1]), fmaxf(values[v][2], values[v][3]));
        largest = v == 0 ? four : fmaxf(largest, four);
    }
    int row = 0;
#pragma unroll
    for (int v = kVectors - 1; v >= 0; --v) {
#pragma unroll
        for (int e = 3; e >= 0; --e) {
            row = values[v][e] == largest ? 4 * (thread + v * threads) + e : row;
        }
    }
    return candidate(largest, static_cast<uint32_t>(row));
}

// The picks of a block as a bitmap. What a thread remembers takes no time of a step's chain; a write would.
class Picks {
public:
    __device__ __forceinline__ explicit Picks(uint32_t* chosen) : chosen_(chosen), remembered_(kNone), count_(0) {}

    // Each time by another thread.
    __device__ __forceinline__ void remember(uint32_t pick) {
        remembered_ = threadIdx.x == count_ ? pick : remembered_;
        if (++count_ == blockDim.x) {
            write();
        }
    }

    // With all threads of the block.
    __device__ __forceinline__ void write() {
        __syncthreads();
        if (remembered_ != kNone) {
            atomicOr(chosen_ + remembered_ / 32, 1u << remembered_ % 32);
        }
        remembered_ = kNone;
        count_ = 0;
    }

private:
    static constexpr uint32_t kNone = ~0u;
    uint32_t* chosen_;
    uint32_t remembered_;
    uint32_t count_;
};

// The picks of one item by a cluster. Every row's value stays in a register from the first pick to the last; a step is
// one coalesced read of the picked row and one reduction with one barrier.
template <Rule rule, int kVectors>
__device__ void pick_item(const PickArgs& args, int item, Exchange& exchange) {
    __shared__ uint32_t chosen[kBitmapWords];
    const int64_t base = static_cast<int64_t>(item) * args.n;
    const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
    const int blocks = cluster_blocks();
    const int thread = cluster_rank() * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    const int threads = blocks * static_cast<int>(blockDim.x);

    for (int word = threadIdx.x; word < kBitmapWords; word += blockDim.x) {
        chosen[word] = 0;
    }
    float values[kVectors][4];
    uint64_t best = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int first = 4 * (thread + v * threads);
        uint4 nearest{};
        if (rule == Rule::kMaxMin && first < args.n) {
            nearest = args.nearest.of<uint4, kVectors < 4 ? 8 / kVectors : 1>(item, first);
        }
        const uint32_t keys[4] = {nearest.x, nearest.y, nearest.z, nearest.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = first + e;
            const bool is_valid = row < args.n && row_is_valid(valid, row);
            values[v][e] = row < args.n ? start_value<rule>(is_valid) : kNowhere;
            if (rule == Rule::kMaxMin && row < args.n) {
                const uint64_t mine = pack(is_valid ? keys[e] : ordered(kInvalid), row);
                best = mine > best ? mine : best;
            }
        }
    }
    if (rule == Rule::kMinSum && threadIdx.x == 0) {
        const int64_t seed = args.seeds[item];
        best = candidate(0.0f, static_cast<uint32_t>(seed < 0 ? 0 : seed >= args.n ? args.n - 1 : seed));
    }
    const Desk desk(exchange, blocks);
    expect_mail(exchange, desk, 0);
    uint32_t pick = candidate_index(cluster_best(best, exchange, desk, 0));

    Picks picks(chosen);
    // The thread's first vector of row 0: of another one it is found by one instruction.
    const int own = 4 * thread < args.n ? 4 * thread : 0;
    const unsigned char* column = kept(reinterpret_cast<const unsigned char*>(args.matrix + base * args.stride + own));
    const uint32_t row_bytes = static_cast<uint32_t>(args.stride) * static_cast<uint32_t>(sizeof(float));
    for (int step = 1; step < args.keep; ++step) {
        const unsigned char* row = column + static_cast<uint64_t>(pick) * row_bytes;
        // So many vectors are on their way at once; with more, registers would spill.
        constexpr int kAhead = kVectors < 4 ? kVectors : 1;
        float4 loaded[kAhead];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (v % kAhead == 0) {
#pragma unroll
                for (int ahead = 0; ahead < kAhead; ++ahead) {
                    const int beyond = (v + ahead) * threads;
                    const bool inside = 4 * (thread + beyond) < args.n;
                    loaded[ahead] = __ldcg(reinterpret_cast<const float4*>(row) + (inside ? beyond : 0));
                }
            }
            if (v == 0) {
                picks.remember(pick);
                expect_mail(exchange, desk, step);
            }
            const float4 four = loaded[v % kAhead];
            const float distances[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t mine = static_cast<uint32_t>(4 * (thread + v * threads) + e);
                // No distance brings a taken row back, so this need not wait for them.
                const float value = mine == pick ? kTaken : values[v][e];
                values[v][e] = accumulate<rule>(value, distances[e]);
            }
        }
        best = best_of<kVectors>(values, thread, threads);
        pick = candidate_index(cluster_best(best, exchange, desk, step));
    }
    if (cluster_rank() != 0) {
        return;
    }
    picks.remember(pick);
    picks.write();
    __syncthreads();
    write_ascending(chosen, args.n, args.kept + static_cast<int64_t>(item) * args.keep);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(args.made + item, 1u);
    }
}

// One block's share of the kept rows of an item, once they are known.
__device__ inline void copy_kept(const PickArgs& args, int worker) {
    const int item = worker / args.workers;
    if (item >= args.items) {
        return;
    }
    if (threadIdx.x == 0) {
        while (*const_cast<const volatile uint32_t*>(args.made + item) == 0) {
            __nanosleep(100);
        }
        __threadfence();
    }
    __syncthreads();
    for (int k = worker % args.workers; k < args.keep; k += args.workers) {
        args.gather.copy(item, k);
    }
}

// Grid (blocks of all clusters). Clusters take what is to be done in the order in which they begin to run, first the
// picks of all items: what waits, waits for what runs, wherever the GPU puts them.
template <Rule rule, int kVectors>
__global__ void __launch_bounds__(kPickThreads, 1) pick_kernel(PickArgs args) {
    __shared__ int taken;
    __shared__ Exchange exchange;
    exchange.init();
    wait_for_last_launch();
    if (cluster_rank() == 0 && threadIdx.x == 0) {
        taken = static_cast<int>(atomicAdd(args.begun, 1u));
    }
    cluster_sync(cluster_blocks());
    const int job = *of_block(&taken, 0);
    // The first one stays until all have read it. A load that a relaxed arrival overtakes would read a block that is gone.
    cluster_sync(cluster_blocks());
    if (job < args.items) {
        pick_item<rule, kVectors>(args, job, exchange);
    } else {
        copy_kept(args, (job - args.items) * cluster_blocks() + cluster_rank());
    }
}

// Grid (N, B), 128 threads: copies the caller's matrix to one with padded rows and finds each row's nearest other
// valid row.
inline constexpr int kAdoptThreads = 128;

struct AdoptArgs {
    const float* distances;
    const uint8_t* valid;
    float* matrix;
    uint32_t* nearest;  // [B, stride]
    Reset reset;
    int n;
    int stride;
};

__global__ void __launch_bounds__(kAdoptThreads) adopt_kernel(AdoptArgs args) {
    __shared__ uint32_t shared[kAdoptThreads / kWarp];
    args.reset.run();
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.n;
    const int64_t row = base + blockIdx.x;
    const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
    const bool row_valid = row_is_valid(valid, blockIdx.x);
    float nearest = kFar;
    for (int j = threadIdx.x; j < args.n; j += kAdoptThreads) {
        const float distance = args.distances[row * args.n + j];
        args.matrix[row * args.stride + j] = distance;
        if (j != static_cast<int>(blockIdx.x) && row_valid && row_is_valid(valid, j)) {
            nearest = accumulate<Rule::kMaxMin>(nearest, distance);
        }
    }
    const uint32_t key = warp_min(ordered(nearest));
    if (threadIdx.x % kWarp == 0) {
        shared[threadIdx.x / kWarp] = key;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t least = shared[0];
        for (int warp = 1; warp < kAdoptThreads / kWarp; ++warp) {
            least = shared[warp] < least ? shared[warp] : least;
        }
        args.nearest[static_cast<int64_t>(blockIdx.y) * args.stride + blockIdx.x] = least;
    }
}

}  // namespace divprune
