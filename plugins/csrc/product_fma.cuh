// Dot products of two sets of rows in true float32: no tensor core, no TF32.

#pragma once

#include "tile.cuh"

namespace divprune {

// One tile of X_rows X_cols^T. Both sets lie transposed in shared memory, two steps of 16 values in turn: the next
// step is on its way from memory while this one is multiplied. Each thread holds 8 rows by 4 or 8 columns.
template <class T, int kTile>
class FmaProduct {
    using G = Geometry<kTile>;
    static constexpr int kDepth = 16;
    // Steps of which the sums are added to those of before: rounding grows with how long a sum is.
    static constexpr int kFold = 32;
    static constexpr int kStride = kTile + 4;
    static constexpr int kSide = kDepth * kStride;
    static constexpr int kStage = 2 * kSide;
    static constexpr int kRows = 8;
    static constexpr int kCols = kTile / 16;
    static constexpr int kChunks = kDepth / Pack<T>::size;
    static constexpr int kPacks = 2 * kTile * kChunks / G::kThreads;

public:
    static constexpr int kSharedBytes = 2 * kStage * static_cast<int>(sizeof(float));

    __device__ void run(const TileRows<T>& rows, void* shared) {
        float* stages = static_cast<float*>(shared);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                sums_[i][j] = totals_[i][j] = 0.0f;
            }
        }
        squares_ = total_squares_ = 0.0f;
        const int steps = (rows.end - rows.begin + kDepth - 1) / kDepth;
        Pack<T> packs[kPacks];
        fetch(rows, 0, packs);
        for (int step = 0; step < steps; ++step) {
            float* stage = stages + step % 2 * kStage;
            spread(packs, stage);
            __syncthreads();
            if (step + 1 < steps) {
                fetch(rows, step + 1, packs);
            }
            multiply(stage);
            square(stage);
            if (step % kFold == kFold - 1) {
                fold();
            }
        }
        fold();
        __syncthreads();
    }

    // The sum of squares of row threadIdx.x of both sets, as far as it was multiplied.
    __device__ float squares() const { return total_squares_; }

    // Writes the sums to shared memory.
    __device__ void store(float* shared) const {
        float* at = shared + thread_row() * kRows * G::kStride;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                at[i * G::kStride + column(j)] = totals_[i][j];
            }
        }
    }

private:
    static __device__ int thread_row() { return threadIdx.x / 16; }
    static __device__ int column(int j) { return j / 4 * 64 + threadIdx.x % 16 * 4 + j % 4; }

    // Loads this thread's share of one step of both sets of rows; what lies outside is zero.
    __device__ void fetch(const TileRows<T>& rows, int step, Pack<T>* packs) const {
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int chunk = threadIdx.x + i * G::kThreads;
            const int row = chunk % (2 * kTile);
            const int k = rows.begin + step * kDepth + chunk / (2 * kTile) * Pack<T>::size;
            const int source = row < kTile ? rows.first_row + row : rows.first_col + row - kTile;
            if (source < rows.n && k < rows.end) {
                packs[i] = load_pack(rows.tokens + static_cast<int64_t>(source) * rows.width + k);
            } else {
                memset(&packs[i], 0, sizeof packs[i]);
            }
        }
    }

    __device__ void spread(const Pack<T>* packs, float* stage) const {
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int chunk = threadIdx.x + i * G::kThreads;
            const int row = chunk % (2 * kTile);
            float* side = stage + (row < kTile ? row : kSide + row - kTile);
#pragma unroll
            for (int j = 0; j < Pack<T>::size; ++j) {
                side[(chunk / (2 * kTile) * Pack<T>::size + j) * kStride] = to_float(packs[i].values[j]);
            }
        }
    }

    __device__ void fold() {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                totals_[i][j] += sums_[i][j];
                sums_[i][j] = 0.0f;
            }
        }
        total_squares_ += squares_;
        squares_ = 0.0f;
    }

    __device__ void multiply(const float* stage) {
        const float* row_side = stage + thread_row() * kRows;
        const float* col_side = stage + kSide;
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            float a[kRows];
            float b[kCols];
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                a[i] = row_side[k * kStride + i];
            }
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                b[j] = col_side[k * kStride + column(j)];
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
                for (int j = 0; j < kCols; ++j) {
                    sums_[i][j] = fmaf(a[i], b[j], sums_[i][j]);
                }
            }
        }
    }

    // Added in the order in which products are, so that rounding takes the same from the norms of rows that are alike
    // and from their product.
    __device__ void square(const float* stage) {
        const float* side = stage + threadIdx.x / kTile * kSide + threadIdx.x % kTile;
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            const float value = side[k * kStride];
            squares_ = fmaf(value, value, squares_);
        }
    }

    float sums_[kRows][kCols];
    float totals_[kRows][kCols];
    float squares_;
    float total_squares_;
};

}  // namespace divprune
