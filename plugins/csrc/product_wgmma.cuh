// Dot products of two sets of rows by Hopper's warpgroups: 16-bit factors, float32 sums.

#pragma once

#include "cluster.cuh"
#include "hopper.cuh"
#include "tile.cuh"

namespace divprune {

// The part [begin, end) of the width of the rows that a pair of blocks multiplies: each block 128 rows of its own with
// 256 columns, which both have.
struct PairRows {
    int item;
    int first_row;     // of this block
    int first_column;  // of the pair
    int begin;
    int end;
    int first_rank;  // of the pair in its cluster
    int rank;        // of this block in its pair: 0 or 1
};

// Steps of 64 values of all rows lie in shared memory, three ahead of the arithmetic. A block brings its rows, and half
// of the columns to both blocks: with 256 x 256 products for 512 rows, the L2 cache is read half as much as by blocks of
// 128 x 128 that bring their own.
template <class T>
class WgmmaProduct {
    static constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));
    static constexpr int kStages = 4;
    static constexpr int kSideBytes = kPairTile * kRowBytes;
    static constexpr int kStageBytes = 3 * kSideBytes;
    static constexpr int kWarps = kPairThreads / kWarp;

public:
    static constexpr int kSharedBytes = kStages * kStageBytes;

    // What the blocks of a pair tell each other. A stage is `full` when all its bytes have come, and `free` when both
    // blocks have multiplied what is in it: only then the other one may write into it.
    struct Stages {
        Barrier full[kStages];
        Barrier free[kStages];

        // Before a barrier of the cluster that is before the first use.
        __device__ void init() {
            if (threadIdx.x == 0) {
                for (int stage = 0; stage < kStages; ++stage) {
                    full[stage].init(1);
                    free[stage].init(2 * kWarps);
                }
                publish_barriers();
            }
        }
    };

    // `shared` is on a multiple of eight rows.
    __device__ void run(const CUtensorMap& tokens, const PairRows& rows, Stages& stages, unsigned char* shared) {
#pragma unroll
        for (float& sum : sums_) {
            sum = 0.0f;
        }
        hold(sums_);
#pragma unroll
        for (float& square : squares_) {
            square = 0.0f;
        }
        const int steps = (rows.end - rows.begin + kDepth - 1) / kDepth;
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int step = 0; step < kStages && step < steps; ++step) {
                fetch(tokens, rows, stages, shared, step);
            }
        }
        __syncwarp();
        for (int step = 0; step < steps; ++step) {
            const unsigned char* stage = shared + step % kStages * kStageBytes;
            stages.full[step % kStages].wait(step / kStages % 2);
            start(stage);
            square(rows, stage);
            fence_async_proxy();
            // The step before is multiplied; this one is on its way.
            warpgroup_wait<1>();
            if (step > 0) {
                release(rows, stages, step - 1);
                if (threadIdx.x == 0 && step - 1 + kStages < steps) {
                    stages.free[(step - 1) % kStages].wait((step - 1) / kStages % 2);
                    fetch(tokens, rows, stages, shared, step - 1 + kStages);
                }
                __syncwarp();
            }
        }
        warpgroup_finish(sums_);
        __syncthreads();
    }

    // The sum of squares, as far as they were multiplied, of row threadIdx.x of this block's rows and of its half of the
    // columns.
    __device__ float squares() const { return sum_in_pairs(squares_); }

    // Writes the sums to two tiles in shared memory, one for each half of the columns.
    __device__ void store(float* shared) const {
        using G = Geometry<kPairTile>;
        const int warp = threadIdx.x / kWarp;
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < kSums; i += 2) {
            const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
            const int column = i / 4 * 8 + lane % 4 * 2;
            float* tile = shared + column / kPairTile * kPairTile * G::kStride;
            *reinterpret_cast<float2*>(tile + row * G::kStride + column % kPairTile) = {sums_[i], sums_[i + 1]};
        }
    }

private:
    // Starts to bring one step of this block's rows, and of its half of the columns to both blocks; what lies outside
    // the tensor is zero.
    __device__ void fetch(const CUtensorMap& tokens, const PairRows& rows, Stages& stages, unsigned char* shared,
                          int step) const {
        Barrier& full = stages.full[step % kStages];
        unsigned char* stage = shared + step % kStages * kStageBytes;
        const int k = rows.begin + step * kDepth;
        full.expect(kStageBytes);
        full.load(tokens, stage, k, rows.first_row, rows.item);
        full.load_for(3u << rows.first_rank, tokens, stage + (1 + rows.rank) * kSideBytes, k,
                      rows.first_column + rows.rank * kPairTile, rows.item);
    }

    // Starts to multiply one step; a warpgroup has 64 of the block's rows.
    __device__ void start(const unsigned char* stage) {
        const uint32_t rows = shared_address(stage) + threadIdx.x / kWarpgroup * 64 * kRowBytes;
        const uint32_t columns = shared_address(stage) + kSideBytes;
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < kDepth; k += kProductDepth) {
            const int bytes = k * static_cast<int>(sizeof(T));
            multiply(sums_, matrix_at(rows + bytes), matrix_at(columns + bytes), T{});
        }
        warpgroup_commit();
    }

    __device__ void square(const PairRows& rows, const unsigned char* stage) {
        const unsigned char* side = stage + (threadIdx.x < kPairTile ? 0 : 1 + rows.rank) * kSideBytes;
#pragma unroll 2
        for (int piece = 0; piece < kRowBytes / 16; ++piece) {
            const int at = swizzled(static_cast<int>(threadIdx.x) % kPairTile, piece);
            const Pack<T> pack = load_pack(reinterpret_cast<const T*>(side + at));
#pragma unroll
            for (int j = 0; j < Pack<T>::size; ++j) {
                const float value = to_float(pack.values[j]);
                squares_[j % 4] = fmaf(value, value, squares_[j % 4]);
            }
        }
    }

    // Lets both blocks write into the stage of a step.
    __device__ void release(const PairRows& rows, Stages& stages, int step) const {
        __syncwarp();
        if (threadIdx.x % kWarp < 2) {
            stages.free[step % kStages].arrive_at(rows.first_rank + static_cast<int>(threadIdx.x) % kWarp);
        }
    }

    float sums_[kSums];
    float squares_[4];
};

}  // namespace divprune
