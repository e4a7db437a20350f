// Copying new rows behind the rows that caches hold.

#pragma once

#include "device.cuh"

namespace divprune {

constexpr int kAppendThreads = 256;

// Sizes and strides count vectors of the type that is copied.
struct AppendArgs {
    const void* new_rows;
    void* caches;
    const int64_t* position;
    int heads;
    int rows;
    int capacity;
    int row_vectors;
    int64_t cache_stride;
    int64_t rows_stride;
    int64_t count;  // of all new rows
};

// One thread a vector. The new rows of a head lie in one piece, here as there, so neighbours copy neighbours.
template <class Vector>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(AppendArgs args) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kAppendThreads + threadIdx.x;
    if (index >= args.count) {
        return;
    }
    const int64_t piece = static_cast<int64_t>(args.rows) * args.row_vectors;
    const int64_t head = index / piece;
    const int64_t within = index - head * piece;
    const int64_t tensor = head / args.heads;
    const int64_t of_tensor = head - tensor * args.heads;
    const int64_t first = *args.position;
    const int64_t row = within / args.row_vectors;
    // In this order nothing can overflow.
    if (first < 0 || first >= args.capacity || row >= args.capacity - first) {
        return;
    }
    const int64_t from = tensor * args.rows_stride + of_tensor * piece + within;
    const int64_t to = tensor * args.cache_stride +
                       (of_tensor * args.capacity + first) * args.row_vectors + within;
    static_cast<Vector*>(args.caches)[to] = static_cast<const Vector*>(args.new_rows)[from];
}

}  // namespace divprune
