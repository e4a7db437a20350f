// Dot products of two sets of rows on the tensor cores: 16-bit factors, float32 sums.

#pragma once

#include <cuda_pipeline_primitives.h>
#include <mma.h>

#include "tile.cuh"

namespace divprune {

// One tile of X_rows X_cols^T. Rows stream through shared memory in steps of 32 values, several steps ahead of the
// arithmetic; 8 values of padding a row keep the matrix loads free of bank conflicts.
template <class T, int kTile>
class MmaProduct {
    using G = Geometry<kTile>;
    static constexpr int kDepth = 32;
    static constexpr int kStages = kTile == 64 ? 4 : 3;
    static constexpr int kStride = kDepth + 8;
    static constexpr int kStage = 2 * kTile * kStride;
    static constexpr int kRowFragments = G::kWarpRows / 16;
    static constexpr int kColFragments = G::kWarpCols / 16;

    using RowFragment = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major>;
    using ColFragment = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, nvcuda::wmma::col_major>;
    using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;

public:
    static constexpr int kSharedBytes = kStages * kStage * static_cast<int>(sizeof(T));

    __device__ void run(const TileRows<T>& rows, void* shared) {
        T* stages = static_cast<T*>(shared);
        clear();
        const int steps = (rows.end - rows.begin + kDepth - 1) / kDepth;
        for (int step = 0; step < kStages - 1; ++step) {
            fetch(rows, step, steps, stages + step * kStage);
        }
        for (int step = 0; step < steps; ++step) {
            __pipeline_wait_prior(kStages - 2);
            // Also: every warp is done with the stage that is fetched into next.
            __syncthreads();
            const int ahead = step + kStages - 1;
            fetch(rows, ahead, steps, stages + ahead % kStages * kStage);
            multiply(stages + step % kStages * kStage);
            square(stages + step % kStages * kStage);
        }
        __pipeline_wait_prior(0);
        __syncthreads();
    }

    // The sum of squares of row threadIdx.x of both sets, as far as it was multiplied.
    __device__ float squares() const { return sum_in_pairs(squares_); }

    // Writes the sums to shared memory.
    __device__ void store(float* shared) const {
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
            for (int j = 0; j < kColFragments; ++j) {
                float* at = shared + (G::first_row() + i * 16) * G::kStride + G::first_col() + j * 16;
                nvcuda::wmma::store_matrix_sync(at, sums_[i][j], G::kStride, nvcuda::wmma::mem_row_major);
            }
        }
    }

private:
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
            for (int j = 0; j < kColFragments; ++j) {
                nvcuda::wmma::fill_fragment(sums_[i][j], 0.0f);
            }
        }
#pragma unroll
        for (float& square : squares_) {
            square = 0.0f;
        }
    }

    // Starts copying one step of both sets of rows; what lies outside is zero. Commits even when nothing is left,
    // so that the number of groups in flight stays constant.
    __device__ void fetch(const TileRows<T>& rows, int step, int steps, T* stage) const {
        constexpr int kChunks = kDepth / Pack<T>::size;
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < 2 * kTile * kChunks / G::kThreads; ++i) {
                const int chunk = threadIdx.x + i * G::kThreads;
                const int row = chunk / kChunks;
                const int k = rows.begin + step * kDepth + chunk % kChunks * Pack<T>::size;
                const int source = row < kTile ? rows.first_row + row : rows.first_col + row - kTile;
                const bool inside = source < rows.n && k < rows.end;
                const T* from = inside ? rows.tokens + static_cast<int64_t>(source) * rows.width + k : rows.tokens;
                T* to = stage + row * kStride + chunk % kChunks * Pack<T>::size;
                __pipeline_memcpy_async(to, from, 16, inside ? 0 : 16);
            }
        }
        __pipeline_commit();
    }

    __device__ void multiply(const T* stage) {
        const T* row_tile = stage + G::first_row() * kStride;
        const T* col_tile = stage + (kTile + G::first_col()) * kStride;
#pragma unroll
        for (int k = 0; k < kDepth; k += 16) {
            RowFragment a[kRowFragments];
            ColFragment b[kColFragments];
#pragma unroll
            for (int i = 0; i < kRowFragments; ++i) {
                nvcuda::wmma::load_matrix_sync(a[i], row_tile + i * 16 * kStride + k, kStride);
            }
#pragma unroll
            for (int j = 0; j < kColFragments; ++j) {
                nvcuda::wmma::load_matrix_sync(b[j], col_tile + j * 16 * kStride + k, kStride);
            }
#pragma unroll
            for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
                for (int j = 0; j < kColFragments; ++j) {
                    nvcuda::wmma::mma_sync(sums_[i][j], a[i], b[j], sums_[i][j]);
                }
            }
        }
    }

    __device__ void square(const T* stage) {
#pragma unroll 2
        for (int k = 0; k < kDepth; k += Pack<T>::size) {
            const Pack<T> pack = load_pack(stage + threadIdx.x * kStride + k);
#pragma unroll
            for (int j = 0; j < Pack<T>::size; ++j) {
                const float value = to_float(pack.values[j]);
                squares_[j % 4] = fmaf(value, value, squares_[j % 4]);
            }
        }
    }

    Sums sums_[kRowFragments][kColFragments];
    float squares_[4];
};

}  // namespace divprune
