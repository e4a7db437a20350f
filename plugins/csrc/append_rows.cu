// The entry point that appends rows: check, launch.

#include "append_rows.h"

#include <cuda_runtime.h>

#include "append_rows.cuh"
#include "launch.h"

namespace divprune {
namespace {

constexpr int kMostTensors = 65536;
constexpr int kLargestRowBytes = 65536;
constexpr uint64_t kLargestStride = 1ull << 44;
constexpr int64_t kLargestGrid = 0x7fffffff;

// Bounded before it is multiplied, so that no product here or in the kernel leaves 64 bits.
bool good_stride(uint64_t stride, uint64_t rows, uint64_t row_bytes) {
    return stride % 16 == 0 && stride <= kLargestStride && rows <= kLargestStride && stride >= rows * row_bytes;
}

int check(const divprune_append& sizes) {
    if (sizes.tensors < 1 || sizes.tensors > kMostTensors || sizes.heads < 1) {
        return DIVPRUNE_BAD_CACHES;
    }
    if (sizes.rows < 1 || sizes.rows > sizes.capacity) {
        return DIVPRUNE_BAD_ROWS;
    }
    if (sizes.row_bytes < 4 || sizes.row_bytes > kLargestRowBytes || sizes.row_bytes % 4 != 0) {
        return DIVPRUNE_BAD_ROW_BYTES;
    }
    const uint64_t heads = static_cast<uint64_t>(sizes.heads);
    const uint64_t row_bytes = static_cast<uint64_t>(sizes.row_bytes);
    const bool fits = good_stride(sizes.cache_stride, heads * static_cast<uint64_t>(sizes.capacity), row_bytes) &&
                      good_stride(sizes.rows_stride, heads * static_cast<uint64_t>(sizes.rows), row_bytes);
    return fits ? DIVPRUNE_OK : DIVPRUNE_BAD_STRIDE;
}

template <class Vector>
int append(const divprune_append& sizes, const void* new_rows, void* caches, const int64_t* position, void* stream) {
    constexpr int kBytes = static_cast<int>(sizeof(Vector));
    AppendArgs args{};
    args.new_rows = new_rows;
    args.caches = caches;
    args.position = position;
    args.heads = sizes.heads;
    args.rows = sizes.rows;
    args.capacity = sizes.capacity;
    args.row_vectors = sizes.row_bytes / kBytes;
    args.cache_stride = static_cast<int64_t>(sizes.cache_stride) / kBytes;
    args.rows_stride = static_cast<int64_t>(sizes.rows_stride) / kBytes;
    args.count = static_cast<int64_t>(sizes.tensors) * sizes.heads * sizes.rows * args.row_vectors;
    const int64_t blocks = (args.count + kAppendThreads - 1) / kAppendThreads;
    if (blocks > kLargestGrid) {
        return DIVPRUNE_BAD_CACHES;
    }
    return to_status(launch(append_kernel<Vector>, {dim3(static_cast<unsigned>(blocks)), kAppendThreads},
                            static_cast<cudaStream_t>(stream), args));
}

}  // namespace
}  // namespace divprune

using namespace divprune;

int divprune_append_rows(const divprune_append* sizes, const void* new_rows, void* caches, const int64_t* position,
                         void* stream) {
    if (sizes == nullptr || new_rows == nullptr || caches == nullptr || position == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const int status = check(*sizes);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    if (misaligned(new_rows) || misaligned(caches) || reinterpret_cast<uintptr_t>(position) % 8 != 0) {
        return DIVPRUNE_MISALIGNED;
    }
    return sizes->row_bytes % 16 == 0 ? append<uint4>(*sizes, new_rows, caches, position, stream)
                                      : append<uint32_t>(*sizes, new_rows, caches, position, stream);
}
